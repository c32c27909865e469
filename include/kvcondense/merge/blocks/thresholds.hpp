#pragma once

#include <cstdint>

#include <kvcondense/core/backend.hpp>
#include <kvcondense/core/random.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/merge/pipeline.hpp>
#include <kvcondense/prim/merge_sets.hpp>

namespace kvcondense::merge {

/// Threshold: none, every link holds.
struct EveryLink {
  template <Backend B>
  Status run(Context<B>&, Scene<B>&) const {
    return Status::ok;
  }
};

/// Threshold: links at least so alike, and of these a part, the most alike ones.
struct Least {
  float likeness = 0.0f;
  double part = 1.0;

  template <Backend B>
  Status run(Context<B>& ctx, Scene<B>& scene) const {
    if (part < 1.0)  // the part is one of all links
      if (const Status s = prim::MergeFilter<B>::best_part(ctx, part, scene.links); s != Status::ok) return s;
    return prim::MergeFilter<B>::least(ctx, likeness, scene.links);
  }
};

/// Threshold: links at least as alike as those of a head in the mean; or all.
struct MeanLink {
  bool on = true;

  template <Backend B>
  Status run(Context<B>& ctx, Scene<B>& scene) const {
    return on ? prim::MergeFilter<B>::mean(ctx, scene.links) : Status::ok;
  }
};

/// Threshold: links at least as alike as a mean that moves from step to step.
struct MovingMean {
  float keep = 0.5f;
  float add = 0.5f;

  constexpr index_t state_floats() const { return 2; }

  template <Backend B>
  Status run(Context<B>& ctx, Scene<B>& scene) const {
    return prim::MergeFilter<B>::moving_mean(ctx, keep, add, scene.state, scene.links);
  }
};

/// Threshold: links hold by chance, the likelier the more attention a slot drew beside its targets.
struct Chance {
  std::uint64_t seed = 0;

  constexpr bool reads_scores() const { return true; }

  template <Backend B>
  Status run(Context<B>& ctx, Scene<B>& scene) const {
    const std::uint64_t own = random_bits(seed, static_cast<std::uint64_t>(scene.view->layer));
    return prim::MergeFilter<B>::chance(ctx, scene.scores, scene.targets, scene.tokens, own, scene.links);
  }
};

}  // namespace kvcondense::merge
