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
  Status wait() const { return event_ == nullptr ? Status::ok : settled(cudaEventSynchronize(event_)); }
  bool made() const { return event_ != nullptr; }

 private:
  cudaEvent_t event_ = nullptr;
};

/// Page-locked memory from which bytes of the host go to the device: two halves in turn, so that one is written while a copy may still
/// read the other. What a copy reads from memory that is not page-locked may be read when the call has returned long ago.
class Staging {
 public:
  Staging() = default;
  Staging(Staging&&) = default;
  Staging& operator=(Staging&& o) noexcept {
    Staging gone(std::move(o));  // what this one had is waited for
    std::swap(memory_, gone.memory_), std::swap(behind_, gone.behind_);
    std::swap(room_, gone.room_), std::swap(half_, gone.half_);
    return *this;
  }
  ~Staging() { static_cast<void>(wait()); }

  /// Room for copies of so many bytes; where memory changes, copies are waited for. On refusal nothing changes.
  Status reserve(std::size_t bytes) {
    if (bytes <= room_) return Status::ok;
    for (Fence& f : behind_)
      if (const Status s = f.made() ? Status::ok : f.make(); s != Status::ok) return s;
    if (const Status s = wait(); s != Status::ok) return s;
    SteeringMemory more;
    const std::size_t room = (bytes + 63) / 64 * 64;
    if (const Status s = more.make(2 * room); s != Status::ok) return s;
    memory_ = std::move(more), room_ = room;
    return Status::ok;
  }
  /// Where the bytes of the next copy are to be written, as many as there is room for: the copy before the last is waited for.
  Status next(std::span<std::byte>& bytes) const {
    bytes = memory_.part(half_ * room_, room_);
    return behind_[half_].wait();
  }
  /// Enqueues the copy of the first of them.
  Status send(const Context<Cuda>& ctx, void* to, std::size_t bytes) {
    Status s = settled(cudaMemcpyAsync(to, memory_.part(half_ * room_, bytes).data(), bytes, cudaMemcpyHostToDevice, ctx.stream()));
    if (s != Status::ok) return s;
    s = behind_[half_].record(ctx);
    if (s != Status::ok) static_cast<void>(ctx.wait());
    half_ = 1 - half_;
    return s;
  }

 private:
  Status wait() const {
    const Status s = behind_[0].wait(), t = behind_[1].wait();
    return s == Status::ok ? t : s;
  }

  SteeringMemory memory_;
  Fence behind_[2];
  std::size_t room_ = 0;  ///< of a half
  std::size_t half_ = 0;
};

}  // namespace kvcondense::cuda
