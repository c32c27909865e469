#pragma once

#include <algorithm>
#include <atomic>

#include <kvcondense/cache/cuda_column.cuh>

namespace kvcondense::cache {

template <class Codec>
Status CudaColumn<Codec>::fork(const Context<Cuda>& ctx, CudaColumn& out) {
  shares_ = out.shares_ = true;
  for (int p = 0; p < parts; ++p)
    for (index_t h = 0; h < plan_.heads; ++h) {
      if (const Status s = out.pages_[p][h].copy_from(pages_[p][h]); s != Status::ok) return s;
      for (CudaPage* page : pages_[p][h]) page->owners.fetch_add(1, std::memory_order_relaxed);
    }
  if (const Status s = groups_.fork(out.groups_); s != Status::ok) return s;
  out.moved_ = true;
  std::copy_n(most_.data(), plan_.heads, out.most_.data());
  std::copy(told_.begin(), told_.end(), out.told_.begin());
  out.fresh_ = fresh_;
  Status s = out.counts_.copy_from(ctx, counts_);
  if (s == Status::ok) s = codec_.fork(ctx, out.codec_);
  return s == Status::ok ? out.reserve_table(ctx) : s;
}

template <class Codec>
Status CudaColumn<Codec>::own_all(const Context<Cuda>& ctx) {
  for (int p = 0; p < parts; ++p)
    for (index_t h = 0; h < plan_.heads; ++h)
      if (const Status s = own(ctx, p, h, 0); s != Status::ok) return s;
  shares_ = false;
  return Status::ok;
}

template <class Codec>
Status CudaColumn<Codec>::clear(const Context<Cuda>& ctx) {
  give_pages();
  std::fill(most_.begin(), most_.end(), Most{}), std::fill(told_.begin(), told_.end(), prim::PartCounts{});
  const Status told = tell_device(ctx);  // it may have counted what a step that was refused in part would have coded
  return told == Status::ok ? codec_.clear(ctx) : told;
}

}  // namespace kvcondense::cache
