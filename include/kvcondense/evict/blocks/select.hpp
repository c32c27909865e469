#pragma once

#include <algorithm>

#include <kvcondense/core/backend.hpp>
#include <kvcondense/core/shape.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/core/step_view.hpp>
#include <kvcondense/core/view.hpp>
#include <kvcondense/core/workspace.hpp>
#include <kvcondense/evict/pipeline.hpp>
#include <kvcondense/prim/top_k.hpp>

namespace kvcondense::evict {

/// Select: the protected slots, then the best of the others until the budget is full.
struct TopK {
  prim::Ties ties = prim::Ties::first;

  constexpr bool takes_best() const { return true; }
  constexpr bool asks_for_room_alone() const { return true; }
  constexpr index_t kept(index_t n, index_t budget, Protected shield) const { return filled_budget(n, budget, shield); }
  std::size_t workspace_bytes(const CacheShape&, index_t) const { return 0; }

  template <Backend B>
  Status run(Context<B>& ctx, const StepView<B>&, RaggedView<const float> scores,
             const Protected* shield, const KeepSet& keep, Scratch&) const {
    return prim::TopK<B>::run(ctx, scores, shield, keep.budget, keep.slots, keep.count, keep.nan, ties, keep.ends);
  }
};

/// Select: only ends of a head's slots. A head beyond its budget keeps its protected slots and, with
/// `fill`, the newest of the others until the budget is full.
struct Fixed {
  bool fill = false;

  constexpr bool reads_scores() const { return false; }
  std::size_t workspace_bytes(const CacheShape& shape, index_t) const {
    return Scratch::bytes_for<prim::Ends>(shape.kv_heads);
  }

  template <Backend B>
  Status run(Context<B>& ctx, const StepView<B>& view, RaggedView<const float>,
             const Protected* shield, const KeepSet& keep, Scratch& scratch) const {
    auto* ends = keep.ends != nullptr ? keep.ends : scratch.take_steering<prim::Ends>(view.heads());
    if (ends == nullptr) return Status::workspace_too_small;
    for (index_t h = 0; h < view.heads(); ++h) {
      const index_t n = view.slots(h);
      ends[h] = keep.budget[h] >= n ? prim::Ends{n, 0} : shield[h];
      if (fill) ends[h].suffix = std::max(ends[h].suffix, keep.budget[h] - ends[h].prefix);
      ends[h] = ends[h].within(n);
      keep.count[h] = ends[h].size();
    }
    return keep.ends != nullptr ? Status::ok : prim::KeepEnds<B>::run(ctx, ends, keep.slots, keep.count);
  }
};

}  // namespace kvcondense::evict
