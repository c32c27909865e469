#pragma once

#include <algorithm>
#include <cstddef>
#include <span>
#include <utility>

#include <kvcondense/backend/cuda/group_pages.cuh>
#include <kvcondense/backend/cuda/shared_rows.cuh>
#include <kvcondense/cache/cuda_column.cuh>

// A column whose codes cannot move alone, and one whose heads store rows together with others: whole pages of its oldest newest slots become pages that all of
// them hold.

namespace kvcondense::cache {

template <class Codec>
Status CudaColumn<Codec>::step_groups(Context<Cuda>& ctx, const prim::ColumnParts& column, const prim::KeptSlots& due, RaggedView<const float> scores, index_t* repaired) {
  using Device = prim::DeviceCodec<Codec>;
  prim::GroupWork work;
  Status s = groups_.commit(ctx, work);
  work.scores = scores, moved_ = true;
  if constexpr (prim::may_share_rows<Device>) {
    if (s == Status::ok && plan_.paired()) return prim::SharedRows::join(ctx, codec(), column, work);
  }
  if constexpr (prim::cuda_kernels::GroupCodec<Device>) {
    if (s == Status::ok) s = prim::GroupPages::code(ctx, codec(), plan_.exact, column, due, work, repaired);
    if (s == Status::ok) s = prim::GroupPages::join(ctx, codec(), column, work);
  }
  return s;
}

/// Room for `take_shared` of so many pages. On refusal nothing that counts changes.
template <class Codec>
Status CudaColumn<Codec>::reserve_shared(index_t head, index_t pages) {
  Status s = groups_.reserve_shared(head, pages);
  if (s == Status::ok) s = staging_.reserve(static_cast<std::size_t>(plan_.heads) * sizeof(prim::PartCounts));
  index_t newest = 0;
  for (const auto& list : pages_[2]) newest += list.size();
  return s == Status::ok ? spare_[2].reserve(spare_[2].size() + newest) : s;
}

/// The newest slots of a head in their `p`-th page are those of `page` from now on; none: of that page itself, exact as it is, which moves no more. Page after
/// page from the oldest on, and behind them, whatever happens, `leave_newest`. Cannot fail.
template <class Codec>
void CudaColumn<Codec>::take_shared(index_t head, index_t p, CudaPage* page) {
  CudaPage* const gone = pages_[2][head][p];
  groups_.add_shared(head, page == nullptr ? gone : page);
  if (page == nullptr) return;
  if (gone->shared()) CudaPage::drop(gone, *memory_);
  else spare_[2].append_reserved(gone);  // kernels of this stream may still read it
}
/// So many pages were taken: their slots are newest ones no more. What kernels read follows with `tell_shared`.
template <class Codec>
void CudaColumn<Codec>::leave_newest(index_t head, index_t pages) {
  auto& newest = pages_[2][head];
  std::copy(newest.begin() + pages, newest.end(), newest.begin());
  newest.shrink(newest.size() - pages);
  most_[head].coded += pages * plan_.slots_of(1), most_[head].newest -= pages * plan_.slots_of(1);
  moved_ = moved_ || pages > 0;
}

/// Behind `leave_newest` of any heads: the table has as many entries as before, so no memory is needed. Nobody waits.
template <class Codec>
Status CudaColumn<Codec>::tell_shared(Context<Cuda>& ctx) {
  for (index_t h = 0; h < plan_.heads; ++h) told_[static_cast<std::size_t>(h)] = {most_[h].first, most_[h].coded};
  fresh_ = 0, laid_ = false;
  std::span<std::byte> bytes;  // steps may write `told_` before this copy has read it
  Status s = staging_.next(bytes);
  if (s != Status::ok) return s;
  std::ranges::copy(std::as_bytes(told_), bytes.begin());
  s = staging_.send(ctx, counts_.data(), told_.size_bytes());
  return s == Status::ok ? settle(ctx) : s;
}

}  // namespace kvcondense::cache
