#pragma once

#include <algorithm>
#include <cassert>
#include <cstring>
#include <span>
#include <type_traits>
#include <utility>

#include <kvcondense/core/config.hpp>
#include <kvcondense/core/memory.hpp>
#include <kvcondense/core/status.hpp>

namespace kvcondense {

/// A growing host array over a caller's resource; growth can be refused and then changes nothing.
///
/// Trivial element types only: rows move by memcpy. Capacity doubles and is kept when the size
/// shrinks, so a cache in its steady state stops asking for memory; `give_back` is for the moment
/// after a long prompt shrank for good. `Align` is for bytes that will be read as something larger.
template <class T, std::size_t Align = alignof(T)>
class Buffer {
  static_assert(std::is_trivially_copyable_v<T>, "kvcondense: a Buffer holds trivially copyable values.");

 public:
  Buffer() = default;
  explicit Buffer(MemoryResource<Cpu>& memory) : memory_(&memory) {}
  Buffer(Buffer&& o) noexcept { swap(o); }
  Buffer& operator=(Buffer&& o) noexcept {
    Buffer gone(std::move(o));
    swap(gone);
    return *this;
  }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  ~Buffer() { free(); }

  T* data() { return data_; }
  const T* data() const { return data_; }
  index_t size() const { return size_; }
  bool empty() const { return size_ == 0; }
  std::size_t bytes() const { return static_cast<std::size_t>(capacity_) * sizeof(T); }
  T& operator[](index_t i) { return assert(i >= 0 && i < size_), data_[i]; }
  const T& operator[](index_t i) const { return assert(i >= 0 && i < size_), data_[i]; }
  T& back() { return (*this)[size_ - 1]; }
  const T& back() const { return (*this)[size_ - 1]; }
  T* begin() { return data_; }
  T* end() { return data_ + size_; }
  const T* begin() const { return data_; }
  const T* end() const { return data_ + size_; }
  std::span<const T> span() const { return {data_, static_cast<std::size_t>(size_)}; }

  /// Room for `n` elements in all, exactly `n` when `exact`.
  Status reserve(index_t n, bool exact = false) {
    if (n <= capacity_) return Status::ok;
    assert(memory_ != nullptr);
    const index_t want = exact ? n : std::max<index_t>(n, std::max<index_t>(8, capacity_ * 2));
    void* p = memory_->allocate(static_cast<std::size_t>(want) * sizeof(T), Align);
    if (p == nullptr) return Status::out_of_memory;
    if (size_ > 0) std::memcpy(p, data_, static_cast<std::size_t>(size_) * sizeof(T));
    release();
    data_ = static_cast<T*>(p);
    capacity_ = want;
    return Status::ok;
  }

  /// New elements are copies of `value`.
  Status resize(index_t n, T value = T{}) {
    if (const Status s = reserve(n); s != Status::ok) return s;
    for (index_t i = size_; i < n; ++i) data_[i] = value;
    size_ = n;
    return Status::ok;
  }

  Status push_back(const T& value) {
    if (const Status s = reserve(size_ + 1); s != Status::ok) return s;
    data_[size_++] = value;
    return Status::ok;
  }

  /// Only after `reserve`: cannot fail.
  void append_reserved(const T& value) {
    assert(size_ < capacity_);
    data_[size_++] = value;
  }

  void shrink(index_t n) {
    assert(n >= 0 && n <= size_);
    size_ = n;
  }

  /// Returns most of a room that is over four times too large for `needed` elements; keeps it when the
  /// resource refuses.
  void give_back(index_t needed) {
    const index_t want = std::max<index_t>(8, std::max(needed, size_) * 2);
    if (capacity_ <= 2 * want) return;
    Buffer less(*memory_);
    if (less.reserve(want, true) != Status::ok || less.copy_from(*this) != Status::ok) return;
    swap(less);
  }

  /// Returns all room that is not used; keeps it when the resource refuses.
  void fit() {
    if (capacity_ == size_) return;
    Buffer less(*memory_);
    if (less.copy_from(*this) == Status::ok) swap(less);
  }

  void erase_front(index_t n) {
    assert(n >= 0 && n <= size_);
    if (n > 0 && n < size_) std::memmove(data_, data_ + n, static_cast<std::size_t>(size_ - n) * sizeof(T));
    size_ -= n;
  }

  Status copy_from(const Buffer& o) {
    if (const Status s = reserve(o.size_, true); s != Status::ok) return s;
    if (o.size_ > 0) std::memcpy(data_, o.data_, static_cast<std::size_t>(o.size_) * sizeof(T));
    size_ = o.size_;
    return Status::ok;
  }

  void free() {
    release();
    data_ = nullptr;
    size_ = capacity_ = 0;
  }

  void swap(Buffer& o) noexcept {
    std::swap(memory_, o.memory_);
    std::swap(data_, o.data_);
    std::swap(size_, o.size_);
    std::swap(capacity_, o.capacity_);
  }

 private:
  void release() {
    if (data_ != nullptr) memory_->release(data_, static_cast<std::size_t>(capacity_) * sizeof(T), Align);
  }

  MemoryResource<Cpu>* memory_ = nullptr;
  T* data_ = nullptr;
  index_t size_ = 0;
  index_t capacity_ = 0;
};

}  // namespace kvcondense
