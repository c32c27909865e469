#pragma once

#include <algorithm>
#include <cmath>
#include <numeric>

#include <kvcondense/cache/cache.hpp>

namespace kvcondense {

/// What the queries of a step give to slots, see retrieve::Watch: `sums` has [numbers, slots] for every KV head.
template <Backend B, class R>
Status Cache<B, R>::watch(Context<B>& ctx, const StepView<B>& view, float* sums) const {
  constexpr index_t at_once = 256;  // rows whose windows are nearly the same
  const retrieve::Watch watched = retrieval_.watch();
  if (watched.anew()) {
    prim::ColumnRequest request;
    request.rows = watched.rows(view.seen, view.columns->rows());
    request.group = prim::GroupReduce::sum;
    request.out = {sums, view.offset, view.heads()};
    return view.columns->run(ctx, request);
  }
  std::int32_t chosen[at_once];
  std::iota(chosen, chosen + at_once, 0);
  std::fill_n(sums, view.total() * plan_.drawn, 0.0f);
  for (index_t rows = view.appended; rows > 0; rows -= at_once) {
    index_t first = view.seen;  // the oldest token of the first row's window in any head
    for (const auto& head : layers_[view.layer].heads)
      if (head.slots() > 0) first = std::min(first, head.ids[std::clamp<index_t>(head.slots() - rows + 1 - watched.window, 0, head.slots() - 1)]);
    prim::ColumnRequest request;
    request.rows = rows, request.chosen = {chosen, static_cast<std::size_t>(std::min(rows, at_once))};
    request.group = prim::GroupReduce::none, request.add = true, request.band = watched.window;
    request.part = {watched.sinks, first, view.seen};
    request.out = {sums, view.offset, view.heads()};
    if (const Status s = view.columns->run(ctx, request); s != Status::ok) return s;
  }
  return Status::ok;
}

/// Adds these sums, if there are any, or puts them in the place of the old ones, for the slots that stay. After `reserve_index`: cannot fail.
template <Backend B, class R>
void Cache<B, R>::keep_drawn(Layer& l, const evict::KeepSet& keep, const float* sums) {
  const index_t group = plan_.drawn;
  const bool anew = retrieval_.watch().anew() && sums != nullptr;
  for (index_t h = 0; group > 0 && h < shape_.kv_heads; ++h) {
    auto& state = l.index[h];
    const index_t before = l.offset[h + 1] - l.offset[h], n = keep.count[h];
    const float* more = sums == nullptr ? nullptr : sums + l.offset[h] * group;
    (void)state.drawn.resize(before * group);
    for (index_t j = 0; more != nullptr && j < before; ++j)
      for (index_t g = 0; g < group; ++g) {  // what is no number gives nothing
        const float x = more[g * before + j], old = anew ? 0.0f : state.drawn[j * group + g];
        state.drawn[j * group + g] = std::isfinite(x) ? old + x : old;
      }
    if (n < before) state.keep(cache::kept_of(keep, h));
  }
}

}  // namespace kvcondense
