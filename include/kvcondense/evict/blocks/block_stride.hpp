#pragma once

#include <algorithm>

#include <kvcondense/core/backend.hpp>
#include <kvcondense/core/shape.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/core/step_view.hpp>
#include <kvcondense/core/view.hpp>
#include <kvcondense/core/workspace.hpp>
#include <kvcondense/evict/pipeline.hpp>
#include <kvcondense/prim/block_stride.hpp>
#include <kvcondense/prim/slot_numbers.hpp>

namespace kvcondense::evict {

/// Source: 1 for tokens of every `every`-th block, 0 for the others. With `shift` heads start at
/// different blocks.
///
/// State    one lane, written when a token comes: a slot stays what it is whatever leaves around it.
struct StridedTokens {
  index_t block = 64;
  index_t every = 64;
  bool shift = true;

  constexpr AttentionNeed attention() const { return {}; }
  constexpr index_t lanes() const { return 1; }
  constexpr bool one_set() const { return !shift; }
  std::size_t workspace_bytes(const CacheShape&, index_t) const { return 0; }

  template <Backend B>
  Status observe(Context<B>& ctx, const StepView<B>& view, LaneViews lane) const {
    const index_t step = shift ? std::max<index_t>(1, every / view.heads()) : 0;
    return prim::BlockStride<B>::mark(ctx, {block, every, step}, view.seen - view.appended, view.appended, lane[0]);
  }
  template <Backend B>
  Status score(Context<B>& ctx, const StepView<B>&, LaneViews lane, RaggedView<float> out, Scratch&) const {
    return prim::SlotNumbers<B>::mix(ctx, lane[0], 1.0f, 0.0f, out);
  }
};

/// Protect: the newest tokens, from the beginning of a block: what a query of the next token finds in
/// its own block and the `blocks` - 1 before it.
struct LocalBlocks {
  index_t block = 64;
  index_t blocks = 16;

  constexpr index_t most() const { return block * blocks - 1; }

  template <Backend B>
  Protected of(const StepView<B>& view, index_t) const {
    return {0, view.seen % block + (blocks - 1) * block};
  }
};

/// Allocate: as many slots as have a positive score, beside the protected ones.
struct Positive {
  constexpr bool uses_scores() const { return true; }
  std::size_t workspace_bytes(const CacheShape&, index_t) const { return 0; }

  template <Backend B>
  Status run(Context<B>& ctx, const StepView<B>& view, RaggedView<const float> scores,
             const Protected* shield, index_t* budget, Scratch&) const {
    const Status s = prim::BlockStride<B>::count(ctx, scores, shield, budget);
    for (index_t h = 0; h < view.heads(); ++h) budget[h] += shield[h].size();
    return s;
  }
};

}  // namespace kvcondense::evict
