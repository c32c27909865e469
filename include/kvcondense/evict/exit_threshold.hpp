#pragma once

#include <cmath>

#include <kvcondense/core/policy.hpp>
#include <kvcondense/core/shape.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/evict/blocks/above.hpp>
#include <kvcondense/evict/blocks/select.hpp>
#include <kvcondense/evict/blocks/trigger.hpp>
#include <kvcondense/evict/pipeline.hpp>
#include <kvcondense/evict/policy.hpp>

namespace kvcondense::evict {

/// Judges every token once, when it leaves a window of the newest: below a threshold it goes.
///
/// Idea     no budget: text with little to keep costs little, and heads take what they need.
/// Source   the threshold form of DMS in kvpress (also KVzap, arXiv:2601.07891), over any scorer.
/// Needs    what the wrapped policy needs; of that policy only its scores are used.
/// Shapes   scores [kv_heads, slots].
/// Cost     that of the wrapped scores, at every step; a look at the slots that leave the window.
/// Numbers  a slot stays when its score is >= `least`; a NaN leaves. Scores are those of the step in
///          which the slot leaves the window; pooling sees only the slots that leave together.
/// Errors   those of the wrapped policy; invalid_argument when window < 1 or least is NaN; incompatible
///          over a policy that goes by age alone.
template <class P>
struct ExitThreshold {
  static constexpr Descriptor about{"exit_threshold", Stage::evict, "arXiv:2506.05345"};
  static constexpr Inputs needs = P::needs;

  P policy{};
  float least = 0.0f;
  index_t window = 128;

  constexpr auto pipeline() const {
    const auto p = policy.pipeline();
    return Pipeline{p.source, p.pool, NotLeaving{window}, Above{least}, TopK{}, EveryStep{}, p.residual, p.reuse};
  }
  Status validate(const CacheShape& shape) const {
    if (window < 1 || std::isnan(least)) return Status::invalid_argument;
    return scores_age(policy.pipeline().source) ? Status::incompatible : policy.validate(shape);
  }
};

template <class P, class... Fields>
ExitThreshold(P, Fields...) -> ExitThreshold<P>;

}  // namespace kvcondense::evict
