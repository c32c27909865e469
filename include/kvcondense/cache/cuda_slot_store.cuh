#pragma once

#include <algorithm>
#include <utility>

#include <kvcondense/backend/cuda/context.cuh>
#include <kvcondense/backend/cuda/head_slots.cuh>
#include <kvcondense/backend/cuda/memory.cuh>
#include <kvcondense/core/config.hpp>
#include <kvcondense/core/status.hpp>

namespace kvcondense::cache {

/// Numbers of one kind per slot of all heads, with room to grow.
template <class T>
class SlotStore {
 public:
  explicit SlotStore(MemoryResource<Cuda>& memory) : data_(memory), memory_(&memory) {}

  prim::HeadNumbers<T> view() { return {data_.data(), room_}; }
  prim::HeadNumbers<const T> view() const { return {data_.data(), room_}; }
  std::size_t bytes() const { return static_cast<std::size_t>(data_.size()) * sizeof(T); }

  /// Room for `slots` of each head, of which `old(head)` are there. The stream is waited for where memory changes.
  template <class Old>
  Status reserve(const Context<Cuda>& ctx, index_t heads, index_t slots, Old&& old) {
    if (slots <= room_) return Status::ok;
    const index_t room = std::max<index_t>({slots, 2 * room_, 64});
    cuda::DeviceArray<T> more(*memory_);
    if (const Status s = more.resize(heads * room); s != Status::ok) return s;
    for (index_t h = 0; h < heads && room_ > 0; ++h) {
      const auto n = static_cast<std::size_t>(old(h)) * sizeof(T);
      if (n == 0) continue;
      const cudaError_t e = cudaMemcpyAsync(more.data() + h * room, data_.data() + h * room_, n, cudaMemcpyDeviceToDevice, ctx.stream());
      if (const Status s = cuda::settled(e); s != Status::ok) return s;
    }
    if (const Status s = ctx.wait(); s != Status::ok) return s;
    std::swap(data_, more);
    room_ = room;
    return Status::ok;
  }
  void clear() { data_ = cuda::DeviceArray<T>(*memory_), room_ = 0; }
  Status fork(const Context<Cuda>& ctx, SlotStore& out) const {
    const Status s = out.data_.copy_from(ctx, data_);
    if (s == Status::ok) out.room_ = room_;
    return s;
  }

 private:
  cuda::DeviceArray<T> data_;
  MemoryResource<Cuda>* memory_;
  index_t room_ = 0;
};

}  // namespace kvcondense::cache
