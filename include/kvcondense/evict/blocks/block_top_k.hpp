#pragma once

#include <algorithm>
#include <cmath>

#include <kvcondense/core/backend.hpp>
#include <kvcondense/core/shape.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/core/step_view.hpp>
#include <kvcondense/core/view.hpp>
#include <kvcondense/core/workspace.hpp>
#include <kvcondense/evict/pipeline.hpp>
#include <kvcondense/prim/block_top_k.hpp>
#include <kvcondense/prim/open_blocks.hpp>

namespace kvcondense::evict {

/// Allocate: a part of every block that is up for choice; all other slots stay. For sources that give
/// slots that are not up for choice a score of +inf.
struct BlockRatio {
  index_t block = 128;
  double keep = 0.5;

  constexpr bool uses_scores() const { return true; }
  std::size_t workspace_bytes(const CacheShape&, index_t) const { return 0; }

  /// Slots that `slots` of one block leave: floor, but a product just below an integer is that integer.
  index_t of(index_t slots) const {
    return static_cast<index_t>(std::floor(static_cast<double>(slots) * keep + 1e-6));
  }

  template <Backend B>
  Status run(Context<B>& ctx, const StepView<B>& view, RaggedView<const float> scores,
             const Protected* shield, index_t* budget, Scratch&) const {
    Status s = prim::OpenBlocks<B>::count(ctx, scores, shield, budget);
    if (s == Status::ok) s = ctx.wait();
    if (s != Status::ok) return s;
    for (index_t h = 0; h < view.heads(); ++h) {
      const index_t open = budget[h];
      budget[h] = view.slots(h) - open + open / block * of(block) + of(open % block);
    }
    return Status::ok;
  }
};

/// Select: the slots that are not up for choice, then the best of every block of the others; the
/// blocks share the places evenly. With `across` they compete for them.
struct BlockTopK {
  index_t block = 128;
  bool across = false;

  std::size_t workspace_bytes(const CacheShape&, index_t) const { return 0; }

  template <Backend B>
  Status run(Context<B>& ctx, const StepView<B>& view, RaggedView<const float> scores,
             const Protected* shield, const KeepSet& keep, Scratch&) const {
    const index_t together = across ? std::max<index_t>(1, view.total()) : block;
    return prim::BlockTopK<B>::run(ctx, scores, shield, together, keep.budget, keep.slots, keep.count,
                                   keep.nan);
  }
};

}  // namespace kvcondense::evict
