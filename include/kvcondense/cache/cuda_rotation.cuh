#pragma once

#include <algorithm>
#include <span>
#include <utility>

#include <kvcondense/backend/cuda/memory.cuh>
#include <kvcondense/core/memory.hpp>
#include <kvcondense/prim/rope.hpp>
#include <kvcondense/prim/slot_runs.hpp>

namespace kvcondense::cache {

/// How raw keys turn as they are read: the table of RopeTable on the host, and where kernels read it.
class CudaRotation {
 public:
  explicit CudaRotation(MemoryResource<Cuda>& memory = cuda::device_memory()) : memory_(&memory), fine_(memory), coarse_(memory) {}

  Status make(const prim::RopeConfig& config, index_t dim) {
    auto table = prim::RopeTable::make(config, dim, heap_memory());
    if (!table) return table.status();
    host_ = std::move(*table);
    cuda::DeviceArray<float> fine(*memory_);
    Status s = fine.resize(prim::RopeTable::tile * host_.entry());
    if (s == Status::ok) s = cuda::settled(cudaMemcpyAsync(fine.data(), host_.fine(0), fine.bytes().size(), cudaMemcpyHostToDevice, nullptr));
    if (s == Status::ok) s = cuda::settled(cudaStreamSynchronize(nullptr));
    if (s == Status::ok) std::swap(fine_, fine);
    return s;
  }
  index_t slots() const { return slots_; }
  bool made() const { return fine_.size() > 0; }
  std::size_t bytes() const { return static_cast<std::size_t>(fine_.size() + coarse_.size()) * sizeof(float) + host_.bytes(); }
  const prim::RopeAngles& angles() const { return host_.angles(); }
  float logit_scale(bool rotated_input) const { return host_.logit_scale(rotated_input); }

  /// Entries for slots [0, slots). The stream is waited for where the table grows; on refusal nothing changes.
  Status reserve(const Context<Cuda>& ctx, index_t slots) {
    if (slots <= slots_) return Status::ok;
    const index_t room = std::max<index_t>({slots, 2 * slots_, 1024});
    if (const Status s = host_.reserve(room); s != Status::ok) return s;
    cuda::DeviceArray<float> more(*memory_);
    const index_t tiles = (room + prim::RopeTable::tile - 1) / prim::RopeTable::tile;
    Status s = more.resize(tiles * host_.entry());
    if (s == Status::ok) s = cuda::settled(cudaMemcpyAsync(more.data(), host_.coarse(0), more.bytes().size(), cudaMemcpyHostToDevice, ctx.stream()));
    const Status done = ctx.wait();  // somebody may still read the smaller one
    if (s == Status::ok) s = done;
    if (s != Status::ok) return s;
    std::swap(coarse_, more);
    slots_ = room;
    return s;
  }
  prim::KeyTurn view() const { return {fine_.data(), coarse_.data(), host_.pairs(), host_.angles().pairing}; }

 private:
  MemoryResource<Cuda>* memory_;
  prim::RopeTable host_;
  cuda::DeviceArray<float> fine_, coarse_;
  index_t slots_ = 0;  ///< that there are entries for on the device
};

/// How the queries of a call meet raw keys. Without a rotation keys are as attention compares them.
struct QueryTurn {
  const CudaRotation* rotation = nullptr;
  std::span<const index_t> positions{};  ///< that queries were rotated to; empty: they come without
  index_t reach = 0;                     ///< keys that stand so far in front of a query or farther are read at this distance; 0: as far as they are

  bool turns() const { return rotation != nullptr; }
};

}  // namespace kvcondense::cache
