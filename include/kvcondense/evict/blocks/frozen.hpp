#pragma once

#include <span>

#include <kvcondense/core/backend.hpp>
#include <kvcondense/core/model_arrays.hpp>
#include <kvcondense/core/shape.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/core/step_view.hpp>
#include <kvcondense/core/view.hpp>
#include <kvcondense/core/workspace.hpp>
#include <kvcondense/evict/pipeline.hpp>
#include <kvcondense/prim/retaining_head.hpp>
#include <kvcondense/prim/slot_numbers.hpp>
#include <kvcondense/prim/token_numbers.hpp>

namespace kvcondense::evict {

/// Source: a score per token that is written when the token comes, and never again. `From` writes it:
///   inputs() -> Inputs; one_set() -> bool; write(ctx, view, RaggedView<float> lane) -> Status
///   touches() -> Touches (may be left out)   newest where it writes numbers of the step's own tokens alone
///   rotated_keys() -> bool (may be left out)   reads keys rotated, never raw
template <class From>
struct Frozen {
  From from{};
  float decay = 1.0f;  ///< what a turn multiplies all scores with

  constexpr AttentionNeed attention() const { return {}; }
  constexpr Inputs inputs() const { return from.inputs(); }
  constexpr index_t lanes() const { return 1; }
  constexpr index_t score_lane() const { return 0; }
  constexpr bool one_set() const { return from.one_set(); }
  constexpr bool rotated_keys() const { return reads_rotated_keys(from); }
  constexpr Touches touches() const { return evict::touches(from); }
  std::size_t workspace_bytes(const CacheShape&, index_t) const { return 0; }

  template <Backend B>
  Status observe(Context<B>& ctx, const StepView<B>& view, LaneViews lane) const {
    return from.write(ctx, view, lane[0]);
  }
  template <Backend B>
  Status observe_turn(Context<B>& ctx, const StepView<B>&, LaneViews lane) const {
    if (decay == 1.0f) return Status::ok;
    return prim::SlotNumbers<B>::mix(ctx, lane[0], decay, 0.0f, lane[0]);
  }
  template <Backend B>
  Status score(Context<B>& ctx, const StepView<B>&, LaneViews lane, RaggedView<float> out, Scratch&) const {
    return prim::SlotNumbers<B>::mix(ctx, lane[0], 1.0f, 0.0f, out);
  }
};

/// How surprising a token was, -log p; where no logits came before it, as the most surprising one that
/// came with it. One number for all heads.
struct Surprise {
  constexpr Inputs inputs() const { return Input::surprise; }
  constexpr Touches touches() const { return Touches::newest; }
  constexpr bool one_set() const { return true; }

  template <Backend B>
  Status write(Context<B>& ctx, const StepView<B>& view, RaggedView<float> lane) const {
    const std::span<const float> s = view.inputs.surprise;
    return prim::TokenNumbers<B>::write(ctx, dense_view(s.data(), 1, s.size()), 1.0f, 0, prim::MissingNumber::largest, lane);
  }
};

/// `scale` times the number that the engine's trained gate gives per (kv head, token), for the token itself
/// or for one before it.
struct Gate {
  index_t back = 0;
  float scale = 1.0f;

  constexpr Inputs inputs() const { return Input::gates; }
  constexpr Touches touches() const { return back == 0 ? Touches::newest : Touches::any; }
  constexpr bool one_set() const { return false; }

  template <Backend B>
  Status write(Context<B>& ctx, const StepView<B>& view, RaggedView<float> lane) const {
    return prim::TokenNumbers<B>::write(ctx, view.inputs.gates, scale, back, prim::MissingNumber::stays, lane);
  }
};

/// What a trained network makes of a token's projections, per KV head.
struct RetainingScore {
  LayerMatrices weights_in{};   ///< [inputs, hidden] of every layer
  LayerMatrices weights_out{};  ///< [hidden, kv_heads]
  prim::Activation activation = prim::Activation::silu;

  constexpr Inputs inputs() const { return Input::projections; }
  constexpr Touches touches() const { return Touches::newest; }
  constexpr bool one_set() const { return false; }

  template <Backend B>
  Status write(Context<B>& ctx, const StepView<B>& view, RaggedView<float> lane) const {
    const prim::RetainingWeights w{weights_in(view.layer), weights_out(view.layer), weights_in.rows, weights_in.columns};
    const StepInputs& in = view.inputs;
    return prim::RetainingHead<B>::write(ctx, w, activation, in.raw_queries, in.raw_keys, in.values, lane);
  }
};

}  // namespace kvcondense::evict
