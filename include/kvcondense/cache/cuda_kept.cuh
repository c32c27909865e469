#pragma once

#include <cstdint>

#include <kvcondense/backend/cuda/context.cuh>
#include <kvcondense/cache/kept.hpp>
#include <kvcondense/core/buffer.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/evict/pipeline.hpp>

namespace kvcondense::cache {

/// What the host knows of the slots of a layer that stay: how many of each head, and which where it was told.
class CudaKept {
 public:
  CudaKept() : heads_(heap_memory()), list_(heap_memory()) {}

  /// `slots(head)`: all of them stay.
  template <class Slots>
  Status make(index_t heads, Slots&& slots) {
    const Status s = heads_.resize(heads);
    for (index_t h = 0; h < heads && s == Status::ok; ++h) heads_[h] = {slots(h), slots(h), {-1, 0}, 0};
    return s;
  }
  index_t size(index_t head) const { return heads_[head].kept; }
  void set_size(index_t head, index_t kept) { heads_[head].kept = kept; }
  void set_ends(index_t head, prim::Ends ends) { heads_[head].ends = ends, heads_[head].kept = ends.size(); }

  /// Which they are: where `keep` names no ends, its lists come from the device, and the stream is waited for. Behind `set_size`.
  Status tell(const Context<Cuda>& ctx, const evict::KeepSet& keep) {
    index_t total = 0;
    bool listed = false;
    for (index_t h = 0; h < heads_.size(); ++h) {
      heads_[h].ends = keep.ends[h], heads_[h].first = total, total += heads_[h].slots;
      listed = listed || (keep.ends[h].prefix < 0 && heads_[h].kept < heads_[h].slots);
    }
    if (!listed) return Status::ok;
    if (const Status s = list_.resize(total); s != Status::ok) return s;
    const cudaError_t e = cudaMemcpyAsync(list_.data(), keep.slots.data, static_cast<std::size_t>(total) * sizeof(std::int32_t), cudaMemcpyDeviceToHost, ctx.stream());
    const Status s = cuda::settled(e), waited = ctx.wait();
    return s == Status::ok ? waited : s;
  }
  /// Behind `tell`, `set_ends`, or where all stay.
  Kept of(index_t head) const {
    const Head& h = heads_[head];
    if (h.kept == h.slots) return Kept::all(h.slots);
    return h.ends.prefix >= 0 ? Kept::ends(h.ends, h.slots) : Kept::listed(list_.data() + h.first, h.kept);
  }

 private:
  struct Head {
    index_t slots = 0, kept = 0;
    prim::Ends ends{-1, 0};  ///< prefix -1: see the list
    index_t first = 0;       ///< in the list
  };
  Buffer<Head> heads_;
  Buffer<std::int32_t> list_;
};

}  // namespace kvcondense::cache
