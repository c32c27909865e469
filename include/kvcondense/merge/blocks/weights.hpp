#pragma once

#include <kvcondense/core/backend.hpp>
#include <kvcondense/core/shape.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/core/view.hpp>
#include <kvcondense/core/workspace.hpp>
#include <kvcondense/merge/pipeline.hpp>
#include <kvcondense/prim/merge_weights.hpp>
#include <kvcondense/prim/row_norm.hpp>
#include <kvcondense/prim/row_similarity.hpp>

namespace kvcondense::merge {

using prim::MergeKernel;
using prim::MergeNormaliser;

/// Weights: by likeness, score or size, as the kernel says.
struct Weighted {
  MergeKernel kernel = MergeKernel::uniform;
  MergeNormaliser normaliser = MergeNormaliser::sum;

  constexpr bool reads_scores() const { return kernel == MergeKernel::score; }
  constexpr bool reads_sizes() const { return kernel == MergeKernel::size; }

  template <Backend B>
  Status run(Context<B>& ctx, Scene<B>& scene, Mass, Scratch&) const {
    return prim::MergeWeights<B>::run(ctx, {kernel, normaliser, scene.scores, scene.sizes, scene.targets}, scene.links);
  }
};

/// Weights: a Gaussian of the distance to the target's key, whose own weight is 1.
struct Gaussian {
  float sigma = 0.0f;  ///< 0: as wide as the members of a set are apart

  template <Backend B>
  Status run(Context<B>& ctx, Scene<B>& scene, Mass, Scratch&) const {
    if (const Status s = prim::RowSimilarity<B>::gaussian(ctx, *scene.view->keys, sigma, scene.links); s != Status::ok) return s;
    return prim::MergeWeights<B>::run(ctx, {MergeKernel::likeness, MergeNormaliser::sum, {}, {}, scene.targets}, scene.links);
  }
};

/// Weights: by likeness, and by how long a value is beside the one it joins.
struct LengthShare {
  std::size_t workspace_bytes(const CacheShape&, index_t slots) const { return Scratch::bytes_for<float>(slots); }

  template <Backend B>
  Status run(Context<B>& ctx, Scene<B>& scene, Mass, Scratch& scratch) const {
    const RaggedView<float> length = scene.view->ragged(scratch.take<float>(scene.view->total()));
    if (length.data == nullptr) return Status::workspace_too_small;
    const Status s = prim::RowNorm<B>::run(ctx, *scene.view->values, most_slots, 1.0f, length);
    if (s != Status::ok) return s;
    return prim::MergeWeights<B>::run(ctx, {MergeKernel::length_share, MergeNormaliser::sum, length, {}, scene.targets},
                                      scene.links);
  }

 private:
  static constexpr index_t most_slots = index_t{1} << 40;  // all of them
};

}  // namespace kvcondense::merge
