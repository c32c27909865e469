#pragma once

#include <algorithm>
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
  const Status s = groups_.reserve_shared(head, pages);
  index_t newest = 0;
  for (const auto& list : pages_[2]) newest += list.size();
  return s == Status::ok ? spare_[2].reserve(spare_[2].size() + newest) : s;
}

/// The oldest newest slots of a head, a page of them, are those of `page` from now on. Cannot fail; what kernels read follows with `tell_shared`.
template <class Codec>
void CudaColumn<Codec>::take_shared(index_t head, CudaPage* page) {
  CudaPage* gone = pages_[2][head][0];
  take_newest(head, page);
  if (gone->shared()) CudaPage::drop(gone, *memory_);
  else spare_[2].append_reserved(gone);  // kernels of this stream may still read it
}
/// The oldest page of newest slots of a head, exact as it is, is one that moves no more.
template <class Codec>
void CudaColumn<Codec>::take_newest(index_t head, CudaPage* page) {
  auto& newest = pages_[2][head];
  groups_.add_shared(head, page == nullptr ? newest[0] : page);
  std::copy(newest.begin() + 1, newest.end(), newest.begin());
  newest.shrink(newest.size() - 1);
  most_[head].coded += plan_.slots_of(1), most_[head].newest -= plan_.slots_of(1);
  moved_ = true;
}

/// Behind `take_shared` of any heads: the table has as many entries as before, so no memory is needed.
template <class Codec>
Status CudaColumn<Codec>::tell_shared(Context<Cuda>& ctx) {
  for (index_t h = 0; h < plan_.heads; ++h) told_[static_cast<std::size_t>(h)] = {most_[h].first, most_[h].coded};
  const Status s = tell_device(ctx);
  return s == Status::ok ? settle(ctx) : s;
}

}  // namespace kvcondense::cache
