#pragma once

#include <kvcondense/core/backend.hpp>
#include <kvcondense/core/shape.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/core/step_view.hpp>
#include <kvcondense/core/view.hpp>
#include <kvcondense/core/workspace.hpp>
#include <kvcondense/evict/pipeline.hpp>
#include <kvcondense/prim/expected_attention.hpp>
#include <kvcondense/prim/row_norm.hpp>
#include <kvcondense/prim/slot_numbers.hpp>

namespace kvcondense::evict {

/// Source: the attention that queries to come are expected to pay, from their mean and covariance.
struct ExpectedMass {
  prim::RopeConfig rope{};
  index_t horizon = 512;
  index_t sinks = 4;
  bool spread = true;

  constexpr AttentionNeed attention() const { return {}; }
  constexpr Inputs inputs() const { return Input::moments; }
  constexpr bool rotated_keys() const { return true; }
  constexpr bool gives_shares() const { return true; }
  constexpr index_t lanes() const { return 0; }
  constexpr bool one_set() const { return false; }
  std::size_t workspace_bytes(const CacheShape& shape, index_t slots) const {
    return Scratch::bytes_for<float>(shape.kv_heads * shape.head_dim * (shape.head_dim + 1)) +
           Scratch::bytes_for<float>(slots);
  }

  template <Backend B>
  Status observe(Context<B>&, const StepView<B>&, LaneViews) const {
    return Status::ok;
  }
  template <Backend B>
  Status score(Context<B>& ctx, const StepView<B>& view, LaneViews, RaggedView<float> out, Scratch& scratch) const {
    if (view.keys == nullptr) return Status::missing_input;
    prim::ExpectedQueries q;
    q.mean = view.inputs.query_mean, q.covariance = view.inputs.query_covariance;
    q.rope = rope, q.position = view.next_position, q.horizon = horizon;
    q.skip = sinks, q.spread = spread, q.scale = view.shape.softmax_scale;
    return prim::ExpectedAttention<B>::run(ctx, q, *view.keys, out, scratch);
  }
};

/// Transform: score + epsilon, times the length of the value.
struct TimesValueNorm {
  float epsilon = 0.0f;
  bool on = true;

  constexpr bool keeps_shares() const { return !on; }
  std::size_t workspace_bytes(const CacheShape&, index_t slots) const { return Scratch::bytes_for<float>(slots); }

  template <Backend B>
  Status run(Context<B>& ctx, const StepView<B>& view, const Protected*, RaggedView<float> scores,
             Scratch& scratch) const {
    if (!on) return Status::ok;
    if (view.values == nullptr) return Status::missing_input;
    const RaggedView<float> norm{scratch.take<float>(view.total()), scores.offset, scores.heads};
    if (norm.data == nullptr) return Status::workspace_too_small;
    const Status s = prim::RowNorm<B>::run(ctx, *view.values, view.total(), 1.0f, norm);
    return s == Status::ok ? prim::SlotNumbers<B>::times(ctx, norm, epsilon, scores) : s;
  }
};

}  // namespace kvcondense::evict
