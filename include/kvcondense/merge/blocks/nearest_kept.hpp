#pragma once

#include <kvcondense/core/backend.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/core/step_view.hpp>
#include <kvcondense/core/workspace.hpp>
#include <kvcondense/merge/pipeline.hpp>
#include <kvcondense/prim/merge_sets.hpp>
#include <kvcondense/prim/row_similarity.hpp>

namespace kvcondense::merge {

/// Finder: what leaves, to the slot whose key points where its own does.
struct NearestKept {
  bool values = false;      ///< keys and values, as the product of their cosines
  double per_target = -1.0;  ///< only so many of what leaves per slot that stays, the best by score; negative: all

  constexpr bool reads_scores() const { return per_target >= 0.0; }

  template <Backend B>
  Status run(Context<B>& ctx, Scene<B>& scene, Scratch&) const {
    if (reads_scores())
      if (const Status s = prim::MergeFilter<B>::best_scores(ctx, scene.scores, per_target, scene.links); s != Status::ok) return s;
    return prim::RowSimilarity<B>::nearest(ctx, *scene.view->keys, values ? scene.view->values : nullptr, scene.targets, 0,
                                           scene.links);
  }
};

/// Finder: what leaves, to the next slots behind it that stay, as many as the fan says.
struct NextKept {
  index_t fan = 1;

  template <Backend B>
  Status run(Context<B>& ctx, Scene<B>& scene, Scratch&) const {
    return prim::MergeSets<B>::next(ctx, scene.targets, scene.links);
  }
};

/// Finder: what leaves when a prompt ends, to the slot that stood nearest in the text. The first and the newest tokens
/// are no such anchors.
struct NearestAnchor {
  index_t sinks = 4;
  index_t newest = 1;

  template <Backend B>
  Status run(Context<B>& ctx, Scene<B>& scene, Scratch&) const {
    const Phase phase = scene.view->phase;
    if (phase != Phase::prefill_end && phase != Phase::prefill_chunk) return prim::MergeSets<B>::drop(ctx, scene.links);
    return prim::MergeSets<B>::nearest_token(ctx, scene.tokens, sinks, scene.view->seen - newest, scene.targets, scene.links);
  }
};

}  // namespace kvcondense::merge
