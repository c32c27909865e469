#pragma once

#include <cstddef>
#include <span>
#include <utility>

#include <kvcondense/backend/cuda/context.cuh>
#include <kvcondense/core/config.hpp>
#include <kvcondense/core/status.hpp>

namespace kvcondense::cuda {

/// Page-locked memory of the host that kernels read and write in place: for the few numbers per head with which the host
/// steers them. Every access of a kernel crosses the bus.
class SteeringMemory {
 public:
  SteeringMemory() = default;
  SteeringMemory(SteeringMemory&& o) noexcept { swap(o); }
  SteeringMemory& operator=(SteeringMemory&& o) noexcept {
    SteeringMemory gone(static_cast<SteeringMemory&&>(o));
    swap(gone);
    return *this;
  }
  SteeringMemory(const SteeringMemory&) = delete;
  SteeringMemory& operator=(const SteeringMemory&) = delete;
  ~SteeringMemory() {
    if (data_ != nullptr) static_cast<void>(settled(cudaFreeHost(data_)));
  }

  /// Only on an empty one.
  Status make(std::size_t bytes) {
    void* p = nullptr;
    if (const Status s = settled(cudaMallocHost(&p, bytes)); s != Status::ok) return s;
    data_ = static_cast<std::byte*>(p);
    size_ = bytes;
    return Status::ok;
  }
  std::size_t size() const { return size_; }
  std::span<std::byte> part(std::size_t first, std::size_t bytes) const { return {data_ + first, bytes}; }

 private:
  void swap(SteeringMemory& o) noexcept {
    std::swap(data_, o.data_);
    std::swap(size_, o.size_);
  }
  std::byte* data_ = nullptr;
  std::size_t size_ = 0;
};

/// A place in a stream that the host may wait for.
class Fence {
 public:
  Fence() = default;
  Fence(Fence&& o) noexcept : event_(std::exchange(o.event_, nullptr)) {}
  Fence& operator=(Fence&& o) noexcept {
    std::swap(event_, o.event_);
    return *this;
  }
  ~Fence() {
    if (event_ != nullptr) static_cast<void>(settled(cudaEventDestroy(event_)));
  }

  Status make() { return settled(cudaEventCreateWithFlags(&event_, cudaEventDisableTiming)); }
  Status record(const Context<Cuda>& ctx) { return settled(cudaEventRecord(event_, ctx.stream())); }
  /// Until the stream has passed the last record; done at once where there was none.
  Status wait() const { return settled(cudaEventSynchronize(event_)); }

 private:
  cudaEvent_t event_ = nullptr;
};

}  // namespace kvcondense::cuda
