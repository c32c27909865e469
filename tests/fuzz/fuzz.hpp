#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <vector>

#include <catch2/catch.hpp>  // the stand-in: a broken demand is thrown

namespace kvcondense::fuzz {

using Bytes = std::span<const std::byte>;
using Input = std::vector<std::byte>;

/// Something that reads bytes from outside. Whatever they are, it ends, stays inside its memory (the sanitizers look) and keeps
/// what its REQUIREs say.
struct Target {
  const char* name;  ///< also of its folder under corpus/
  void (*run)(Bytes);
  std::vector<Input> (*seeds)();  ///< good inputs, made by this build, so that they never age
};

extern const Target recipe_text, snapshot, bitstream, model_files, page_tables, top_k, cache_calls;

/// Takes numbers from the front of an input, zeros once it is used up.
class Reader {
 public:
  explicit Reader(Bytes bytes) : left_(bytes) {}
  template <class T>
  T take() {
    T value{};
    std::byte raw[sizeof(T)]{};
    const std::size_t n = left_.size() < sizeof(T) ? left_.size() : sizeof(T);
    std::memcpy(raw, left_.data(), n);
    std::memcpy(&value, raw, sizeof(T));
    left_ = left_.subspan(n);
    return value;
  }
  std::uint8_t byte() { return take<std::uint8_t>(); }
  /// In [0, most].
  std::uint8_t up_to(std::uint8_t most) { return static_cast<std::uint8_t>(byte() % (most + 1)); }
  Bytes rest() const { return left_; }
  bool done() const { return left_.empty(); }

 private:
  Bytes left_;
};

inline Input bytes_of(const char* text) {
  const auto* first = reinterpret_cast<const std::byte*>(text);
  return {first, first + std::strlen(text)};
}

}  // namespace kvcondense::fuzz
