#pragma once

#include <cstddef>
#include <span>
#include <type_traits>
#include <utility>

#include <kvcondense/backend/cuda/context.cuh>
#include <kvcondense/core/backend_memory.hpp>
#include <kvcondense/core/config.hpp>
#include <kvcondense/core/memory.hpp>
#include <kvcondense/core/status.hpp>

namespace kvcondense::cuda {

/// cudaMalloc and cudaFree of the current device. Both may wait for the device: for long-lived memory only.
class DeviceMemory final : public MemoryResource<Cuda> {
 public:
  /// CUDA aligns to 256 bytes; more is refused.
  void* allocate(std::size_t bytes, std::size_t align) noexcept override {
    void* p = nullptr;
    if (align > 256 || settled(cudaMalloc(&p, bytes)) != Status::ok) return nullptr;
    return p;
  }
  void release(void* p, std::size_t, std::size_t) noexcept override { static_cast<void>(settled(cudaFree(p))); }
};

/// The resource that makers use when the caller names none.
inline MemoryResource<Cuda>& device_memory() {
  static DeviceMemory memory;
  return memory;
}

/// Bytes on the device for `n` values of T, from a resource; the host never looks at them. Copies are enqueued on
/// a stream: host memory must stay until it is done.
template <class T>
class DeviceArray {
  static_assert(std::is_trivially_copyable_v<T>, "kvcondense: a DeviceArray holds trivially copyable values.");

 public:
  DeviceArray() = default;
  explicit DeviceArray(MemoryResource<Cuda>& memory) : memory_(&memory) {}
  DeviceArray(DeviceArray&& o) noexcept { swap(o); }
  DeviceArray& operator=(DeviceArray&& o) noexcept {
    DeviceArray gone(static_cast<DeviceArray&&>(o));
    swap(gone);
    return *this;
  }
  DeviceArray(const DeviceArray&) = delete;
  DeviceArray& operator=(const DeviceArray&) = delete;
  ~DeviceArray() { free(); }

  /// Room for exactly n values, their content undefined. On refusal nothing changes.
  Status resize(index_t n) {
    if (n == size_) return Status::ok;
    void* p = nullptr;
    if (n > 0) p = resource().allocate(static_cast<std::size_t>(n) * sizeof(T), alignof(T) > 64 ? alignof(T) : 64);
    if (n > 0 && p == nullptr) return Status::out_of_memory;
    free();
    data_ = static_cast<T*>(p);
    size_ = n;
    return Status::ok;
  }

  /// Resizes to the values and enqueues their copy.
  Status upload(const Context<Cuda>& ctx, std::span<const T> values) {
    if (const Status s = resize(static_cast<index_t>(values.size())); s != Status::ok) return s;
    if (values.empty()) return Status::ok;
    return settled(cudaMemcpyAsync(data_, values.data(), values.size_bytes(), cudaMemcpyHostToDevice, ctx.stream()));
  }
  /// Enqueues a copy of the first values.size() values.
  Status download(const Context<Cuda>& ctx, std::span<T> values) const {
    if (static_cast<index_t>(values.size()) > size_) return Status::out_of_range;
    if (values.empty()) return Status::ok;
    return settled(cudaMemcpyAsync(values.data(), data_, values.size_bytes(), cudaMemcpyDeviceToHost, ctx.stream()));
  }
  /// As many values as `from` has, which are enqueued.
  Status copy_from(const Context<Cuda>& ctx, const DeviceArray& from) {
    if (const Status s = resize(from.size()); s != Status::ok || size_ == 0) return s;
    return settled(cudaMemcpyAsync(data_, from.data(), static_cast<std::size_t>(size_) * sizeof(T), cudaMemcpyDeviceToDevice, ctx.stream()));
  }
  /// Enqueues the same byte everywhere.
  Status fill_bytes(const Context<Cuda>& ctx, int byte) {
    if (size_ == 0) return Status::ok;
    return settled(cudaMemsetAsync(data_, byte, static_cast<std::size_t>(size_) * sizeof(T), ctx.stream()));
  }

  T* data() { return data_; }
  const T* data() const { return data_; }
  index_t size() const { return size_; }
  /// As a workspace of a context.
  std::span<std::byte> bytes() { return {reinterpret_cast<std::byte*>(data_), static_cast<std::size_t>(size_) * sizeof(T)}; }

 private:
  MemoryResource<Cuda>& resource() { return memory_ == nullptr ? *(memory_ = &device_memory()) : *memory_; }
  void free() {
    if (data_ != nullptr) resource().release(data_, static_cast<std::size_t>(size_) * sizeof(T), 64);
    data_ = nullptr;
    size_ = 0;
  }
  void swap(DeviceArray& o) noexcept {
    std::swap(memory_, o.memory_);
    std::swap(data_, o.data_);
    std::swap(size_, o.size_);
  }

  MemoryResource<Cuda>* memory_ = nullptr;
  T* data_ = nullptr;
  index_t size_ = 0;
};

}  // namespace kvcondense::cuda

namespace kvcondense {

/// Of a device: cudaMalloc, unless a resource is named.
template <>
struct BackendMemory<Cuda> {
  template <class T>
  using Array = cuda::DeviceArray<T>;
  static MemoryResource<Cuda>& resource() { return cuda::device_memory(); }
};

}  // namespace kvcondense
