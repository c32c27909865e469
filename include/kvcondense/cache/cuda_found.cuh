#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <span>
#include <utility>

#include <kvcondense/backend/cuda/context.cuh>
#include <kvcondense/backend/cuda/head_slots.cuh>
#include <kvcondense/backend/cuda/memory.cuh>
#include <kvcondense/core/buffer.hpp>
#include <kvcondense/core/bytes.hpp>
#include <kvcondense/core/config.hpp>
#include <kvcondense/core/status.hpp>

namespace kvcondense::cache {

/// What a prompt taught a retrieval stage in one layer: numbers of every KV head, on the device. How many they are the host knows.
///
/// Numbers of a head that has learned nothing are 0. The last `lead` numbers of a head's file stand in front of the others: those that tell a kernel
/// how many others there are.
class CudaFound {
 public:
  explicit CudaFound(MemoryResource<Cuda>& memory) : data_(memory), size_(heap_memory()), memory_(&memory) {}

  Status make(index_t heads, index_t lead) {
    lead_ = lead;
    const Status s = size_.resize(heads);
    std::fill(size_.begin(), size_.end(), index_t{0});
    return s;
  }
  /// 0: nothing yet.
  index_t size(index_t head) const { return size_[head]; }
  void settle(index_t head, index_t floats) { size_[head] = floats; }
  float* row(index_t head) { return data_.data() + head * room_; }
  prim::HeadNumbers<const float> view() const { return {data_.data(), room_}; }
  std::size_t bytes() const { return static_cast<std::size_t>(data_.size()) * sizeof(float); }

  /// Room for so many numbers of each head. The stream is waited for where memory changes; on refusal nothing does.
  Status reserve(const Context<Cuda>& ctx, index_t floats) {
    if (floats <= room_) return Status::ok;
    cuda::DeviceArray<float> more(*memory_);
    if (const Status s = more.resize(size_.size() * floats); s != Status::ok) return s;
    Status s = more.fill_bytes(ctx, 0);
    for (index_t h = 0; h < size_.size() && s == Status::ok; ++h)
      if (size_[h] > 0) s = copy(ctx, more.data() + h * floats, row(h), size_[h], cudaMemcpyDeviceToDevice);
    const Status done = ctx.wait();
    if (s != Status::ok || done != Status::ok) return s != Status::ok ? s : done;
    std::swap(data_, more);
    room_ = floats;
    return Status::ok;
  }
  Status fork(const Context<Cuda>& ctx, CudaFound& out) const {
    std::copy(size_.begin(), size_.end(), out.size_.begin());
    out.room_ = room_;
    return out.data_.copy_from(ctx, data_);
  }
  /// Only while no kernel uses it.
  void clear() {
    std::fill(size_.begin(), size_.end(), index_t{0});
    data_ = cuda::DeviceArray<float>(*memory_), room_ = 0;
  }

  /// As `save_found` writes those of the host; waits for the stream.
  void save(ByteWriter& w, const Context<Cuda>& ctx) const {
    Buffer<float> numbers(heap_memory());
    for (index_t h = 0; h < size_.size(); ++h) {
      const index_t n = size_[h], tail = n > 0 ? lead_ : 0;
      Status s = numbers.resize(n);
      if (s == Status::ok) s = copy(ctx, numbers.data(), data_.data() + h * room_ + tail, n - tail, cudaMemcpyDeviceToHost);
      if (s == Status::ok) s = copy(ctx, numbers.data() + n - tail, data_.data() + h * room_, tail, cudaMemcpyDeviceToHost);
      const Status done = ctx.wait();
      if (s != Status::ok || done != Status::ok) return w.fail(s != Status::ok ? s : done);
      w.put(static_cast<std::uint32_t>(n));
      w.bytes(std::as_bytes(numbers.span()));
    }
  }
  /// Of an empty one; `fits(numbers)`: whether they are what a fit finds, or none. Waits for the stream.
  template <class Fits>
  Status load(ByteReader& r, const Context<Cuda>& ctx, Fits&& fits) {
    Buffer<float> numbers(heap_memory());
    for (index_t h = 0; h < size_.size(); ++h) {
      std::uint32_t count = 0;
      std::span<const std::byte> bytes;
      if (!r.read(count) || !r.take(count, sizeof(float), bytes)) return Status::corrupt_data;
      const auto n = static_cast<index_t>(count);
      if (const Status s = numbers.resize(n); s != Status::ok) return s;
      if (n > 0) std::memcpy(numbers.data(), bytes.data(), bytes.size());
      if (!std::all_of(numbers.begin(), numbers.end(), [](float x) { return std::isfinite(x); }) || !fits(numbers.span())) return Status::corrupt_data;
      if (n == 0) continue;
      if (const Status s = reserve(ctx, n); s != Status::ok) return s;
      Status s = copy(ctx, row(h) + lead_, numbers.data(), n - lead_, cudaMemcpyHostToDevice);
      if (s == Status::ok) s = copy(ctx, row(h), numbers.data() + n - lead_, lead_, cudaMemcpyHostToDevice);
      const Status done = ctx.wait();
      if (s != Status::ok || done != Status::ok) return s != Status::ok ? s : done;
      size_[h] = n;
    }
    return Status::ok;
  }

 private:
  static Status copy(const Context<Cuda>& ctx, float* to, const float* from, index_t n, cudaMemcpyKind kind) {
    return n == 0 ? Status::ok : cuda::settled(cudaMemcpyAsync(to, from, static_cast<std::size_t>(n) * sizeof(float), kind, ctx.stream()));
  }

  cuda::DeviceArray<float> data_;  ///< [heads][room]
  Buffer<index_t> size_;
  MemoryResource<Cuda>* memory_;
  index_t room_ = 0, lead_ = 0;
};

}  // namespace kvcondense::cache
