#pragma once

#include <cstddef>
#include <cstring>
#include <new>
#include <type_traits>

namespace kvcondense::test {

/// An array between two bands of known bytes: `ok()` says whether anybody wrote outside it. The array
/// is 64-byte aligned, so that its end touches the second band exactly.
template <class T>
class Guarded {
  static_assert(std::is_trivially_copyable_v<T>);

 public:
  explicit Guarded(std::size_t n, T fill = T{}) : n_(n) {
    memory_ = static_cast<unsigned char*>(::operator new(2 * band + bytes(), std::align_val_t{64}));
    std::memset(memory_, canary, 2 * band + bytes());
    for (std::size_t i = 0; i < n; ++i) data()[i] = fill;
  }
  Guarded(const Guarded&) = delete;
  Guarded& operator=(const Guarded&) = delete;
  ~Guarded() { ::operator delete(memory_, std::align_val_t{64}); }

  T* data() { return reinterpret_cast<T*>(memory_ + band); }
  const T* data() const { return reinterpret_cast<const T*>(memory_ + band); }
  std::size_t size() const { return n_; }
  T* begin() { return data(); }
  T* end() { return data() + n_; }
  const T* begin() const { return data(); }
  const T* end() const { return data() + n_; }
  template <class I>
  T& operator[](I i) {
    return data()[static_cast<std::size_t>(i)];
  }
  template <class I>
  const T& operator[](I i) const {
    return data()[static_cast<std::size_t>(i)];
  }

  bool ok() const {
    for (std::size_t i = 0; i < band; ++i)
      if (memory_[i] != canary || memory_[band + bytes() + i] != canary) return false;
    return true;
  }

 private:
  static constexpr std::size_t band = 256;
  static constexpr unsigned char canary = 0xa5;

  std::size_t bytes() const { return n_ * sizeof(T); }

  unsigned char* memory_ = nullptr;
  std::size_t n_ = 0;
};

}  // namespace kvcondense::test
