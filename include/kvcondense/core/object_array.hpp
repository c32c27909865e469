#pragma once

#include <cassert>
#include <new>
#include <utility>

#include <kvcondense/core/config.hpp>
#include <kvcondense/core/memory.hpp>
#include <kvcondense/core/status.hpp>

namespace kvcondense {

/// A fixed number of objects in memory of a resource. Moves, never copies; making it can be refused.
template <class T>
class ObjectArray {
 public:
  ObjectArray() = default;
  ObjectArray(ObjectArray&& o) noexcept { swap(o); }
  ObjectArray& operator=(ObjectArray&& o) noexcept {
    ObjectArray gone(std::move(o));
    swap(gone);
    return *this;
  }
  ObjectArray(const ObjectArray&) = delete;
  ObjectArray& operator=(const ObjectArray&) = delete;
  ~ObjectArray() {
    if (data_ == nullptr) return;
    for (index_t i = size_; i > 0; --i) data_[i - 1].~T();
    memory_->release(data_, bytes(), alignof(T));
  }

  /// Only on an empty array. make(i) gives the i-th object and cannot fail.
  template <class F>
  Status fill(MemoryResource<Cpu>& memory, index_t n, F&& make) {
    assert(data_ == nullptr);
    void* p = memory.allocate(static_cast<std::size_t>(n) * sizeof(T), alignof(T));
    if (p == nullptr) return Status::out_of_memory;
    memory_ = &memory;
    data_ = static_cast<T*>(p);
    for (; size_ < n; ++size_) new (data_ + size_) T(make(size_));
    return Status::ok;
  }

  index_t size() const { return size_; }
  std::size_t bytes() const { return static_cast<std::size_t>(size_) * sizeof(T); }
  T& operator[](index_t i) { return assert(i >= 0 && i < size_), data_[i]; }
  const T& operator[](index_t i) const { return assert(i >= 0 && i < size_), data_[i]; }
  T* begin() { return data_; }
  T* end() { return data_ + size_; }
  const T* begin() const { return data_; }
  const T* end() const { return data_ + size_; }

  void swap(ObjectArray& o) noexcept {
    std::swap(memory_, o.memory_);
    std::swap(data_, o.data_);
    std::swap(size_, o.size_);
  }

 private:
  MemoryResource<Cpu>* memory_ = nullptr;
  T* data_ = nullptr;
  index_t size_ = 0;
};

}  // namespace kvcondense
