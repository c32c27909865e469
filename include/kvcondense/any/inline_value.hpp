#pragma once

#include <cstddef>
#include <cstring>
#include <new>
#include <type_traits>

namespace kvcondense::any {

/// Room for one plain value of a type that only its function table knows. Trivially copyable, no
/// heap.
template <std::size_t Bytes>
class InlineValue {
 public:
  template <class T>
  static constexpr bool fits = std::is_trivially_copyable_v<T> && sizeof(T) <= Bytes &&
                               alignof(T) <= alignof(double);

  InlineValue() = default;
  template <class T>
  explicit InlineValue(const T& value) {
    store(value);
  }

  template <class T>
  void store(const T& value) {
    static_assert(std::is_trivially_copyable_v<T>,
                  "kvcondense: a stage chosen at run time must be trivially copyable.");
    static_assert(fits<T>,
                  "kvcondense: this value is larger than the room a stage chosen at run time has.");
    std::memcpy(bytes_, &value, sizeof(T));
  }
  /// The value, which must be a T.
  template <class T>
  const T& as() const {
    return *std::launder(reinterpret_cast<const T*>(bytes_));
  }
  template <class T>
  T& as() {
    return *std::launder(reinterpret_cast<T*>(bytes_));
  }
  const void* data() const { return bytes_; }
  void* data() { return bytes_; }

 private:
  alignas(double) std::byte bytes_[Bytes]{};
};

}  // namespace kvcondense::any
