#pragma once

#include <kvcondense/core/backend.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/core/workspace.hpp>
#include <kvcondense/merge/pipeline.hpp>
#include <kvcondense/prim/merge_weights.hpp>

namespace kvcondense::merge {

/// Weights: votes times score, which the source gives as a logarithm; keys stretched so that the sum weighs what its
/// members did.
struct Votes {
  bool scaled = true;

  constexpr bool reads_scores() const { return true; }
  constexpr bool reads_sizes() const { return true; }
  constexpr bool owns_mass() const { return true; }

  template <Backend B>
  Status run(Context<B>& ctx, Scene<B>& scene, Mass, Scratch&) const {
    return prim::MergeWeights<B>::votes(ctx, scene.scores, scaled, scene.sizes, scene.links);
  }
};

}  // namespace kvcondense::merge
