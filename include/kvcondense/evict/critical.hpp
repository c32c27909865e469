#pragma once

#include <kvcondense/core/backend.hpp>
#include <kvcondense/core/model_arrays.hpp>
#include <kvcondense/core/policy.hpp>
#include <kvcondense/core/shape.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/evict/blocks/two_stage.hpp>
#include <kvcondense/evict/pipeline.hpp>
#include <kvcondense/evict/policy.hpp>

namespace kvcondense::evict {

/// Fills half of the budget by attention, the rest by attention times the weight of what a value adds to the layer's
/// output.
///
/// Idea     the error that eviction makes in a layer's output is bounded by attention times the length of projected
///          values; safe are first those that attention alone names.
/// Source   CriticalKV, arXiv:2502.03805; over `ada` it is CriticalAdaKV: critical(ada(snapkv, form=safeguard)).
/// Needs    what the policy needs, values, and the model's output projections, without their bias.
/// Shapes   output [hidden, q_heads * value_dim] per layer, as `o_proj.weight`; values [kv_heads, slots, value_dim].
/// Cost     slots * hidden * value_dim multiplications per query head whenever the policy chooses, in tiles; the
///          projection is never stored. Slots * 4 bytes of workspace; no state.
/// Numbers  floor(first * budget + 1e-6) places, protected slots included, go by the policy's scores, the others by
///          (score + epsilon) * the group's mean of sum |value * projection|; float32. Heads get what the policy
///          allocates. Ties keep the smaller slot.
/// Errors   missing_input without projections, shape_mismatch where they do not fit; invalid_argument unless
///          0 <= first <= 1 and 0 <= epsilon <= 1; incompatible over a policy whose scores are no shares of
///          attention, that does not keep single slots by score, or that keeps one set per layer.
template <class P>
struct Critical {
  static constexpr Descriptor about{"critical", Stage::evict, "arXiv:2502.03805"};
  static constexpr Inputs needs = P::needs;

  P policy{};
  LayerMatrices output{};
  double first = 0.5;
  float epsilon = 1e-4f;

  constexpr auto pipeline() const {
    const auto p = policy.pipeline();
    return p.with_select(TwoStage{p.select, output, first, epsilon});
  }
  constexpr const char* missing() const { return output.empty() ? "output" : nullptr; }
  Status validate(const CacheShape& shape) const {
    if (output.empty()) return Status::missing_input;
    const bool fits = output.layers == shape.layers && output.rows >= 1 && output.columns == shape.q_heads * shape.values();
    if (!fits) return Status::shape_mismatch;
    if (!(first >= 0.0 && first <= 1.0 && epsilon >= 0.0f && epsilon <= 1.0f)) return Status::invalid_argument;
    const auto p = policy.pipeline();
    if (!p.scores_are_shares() || !takes_best(p.select) || p.source.one_set()) return Status::incompatible;
    return policy.validate(shape);
  }
};

template <class P, class... Fields>
Critical(P, Fields...) -> Critical<P>;

}  // namespace kvcondense::evict
