#pragma once

#include <cstdint>

#include <kvcondense/core/backend.hpp>
#include <kvcondense/core/shape.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/core/step_view.hpp>
#include <kvcondense/core/view.hpp>
#include <kvcondense/core/workspace.hpp>
#include <kvcondense/evict/pipeline.hpp>
#include <kvcondense/prim/slot_numbers.hpp>

namespace kvcondense::evict {

enum class Reduce : std::uint8_t { sum, mean };

/// Which query rows of a step count.
constexpr AttentionNeed all_rows() { return {AttentionNeed::Rows::all, 0}; }
constexpr AttentionNeed last_rows(index_t count) { return {AttentionNeed::Rows::last, count}; }

/// Group block: one score per kv head, over its query heads.
struct PerHead {
  Reduce reduce = Reduce::mean;

  constexpr bool one_set() const { return false; }

  /// out = keep * out + scale * (this step's attention, reduced).
  template <Backend B>
  Status add(Context<B>& ctx, const StepView<B>& view, float scale, float keep,
             RaggedView<float> out) const {
    return prim::SlotNumbers<B>::mix(ctx, view.inputs.attention.mass, own_scale(view.shape, scale), keep, out);
  }
  /// What a head's attention is multiplied by, slot by slot, before it is added.
  constexpr float own_scale(const CacheShape& shape, float scale) const {
    return reduce == Reduce::mean ? scale / static_cast<float>(shape.group()) : scale;
  }
};

/// Group block: one score for the whole layer, over all query heads. Every kv head gets the same, so
/// all heads keep the same slots. `not_supported` once heads hold different numbers of slots.
struct AllHeads {
  Reduce reduce = Reduce::mean;

  constexpr bool one_set() const { return true; }

  template <Backend B>
  Status add(Context<B>& ctx, const StepView<B>& view, float scale, float keep,
             RaggedView<float> out) const {
    if (reduce == Reduce::mean) scale /= static_cast<float>(view.shape.q_heads);
    return prim::SlotNumbers<B>::sum_heads(ctx, view.inputs.attention.mass, scale, keep, out);
  }
};

/// Accumulate block: only this step's attention counts; no state.
struct Latest {
  constexpr index_t lanes() const { return 0; }
  constexpr index_t score_lane() const { return -1; }

  template <Backend B, class Group>
  Status observe(Context<B>&, const StepView<B>&, const Group&, float, LaneViews) const {
    return Status::ok;
  }
  template <Backend B, class Group>
  Status score(Context<B>& ctx, const StepView<B>& view, const Group& group, float scale, LaneViews,
               RaggedView<float> out) const {
    return group.add(ctx, view, scale, 0.0f, out);
  }
};

/// Accumulate block: attention of all steps so far, in one float32 lane.
struct RunningSum {
  constexpr index_t lanes() const { return 1; }
  constexpr index_t score_lane() const { return 0; }
  constexpr index_t counted_lane() const { return 0; }
  constexpr Touches touches() const { return Touches::whole; }

  template <Backend B, class Group>
  Status observe(Context<B>& ctx, const StepView<B>& view, const Group& group, float scale,
                 LaneViews lane) const {
    return group.add(ctx, view, scale, 1.0f, lane[0]);
  }
  template <Backend B, class Group>
  Status score(Context<B>& ctx, const StepView<B>&, const Group&, float, LaneViews lane,
               RaggedView<float> out) const {
    return prim::SlotNumbers<B>::mix(ctx, lane[0], 1.0f, 0.0f, out);
  }
};

/// Source: attention probabilities, rows reduced, then heads, then steps. A group block is anything with `one_set()` and
/// `add(ctx, view, scale, keep, out)`; where that is nothing but `mix` of the mass, it says by `own_scale(shape, scale)` with
/// what, and an accumulate block by `counted_lane()` where it adds that up, so that attention is counted where it is
/// computed. `RunningSum` says of it that where it is refused it has changed nothing (Touches::whole), so
/// one that may be refused midway needs an accumulate block that does not say so.
///
/// Needs    the attention mass of the step with the rows named in `rows`.
template <class Group, class Accumulate>
struct AttentionMass {
  AttentionNeed rows{};
  Reduce row_reduce = Reduce::sum;
  Group group{};
  Accumulate accumulate{};

  constexpr AttentionNeed attention() const { return rows; }
  constexpr index_t lanes() const { return accumulate.lanes(); }
  constexpr index_t score_lane() const { return evict::score_lane(accumulate); }
  constexpr bool one_set() const { return group.one_set(); }
  constexpr Touches touches() const { return evict::touches(accumulate); }
  constexpr Counting counting(const CacheShape& shape, index_t seen) const {
    if constexpr (requires { accumulate.counted_lane(), group.own_scale(shape, 1.0f); })
      return {accumulate.counted_lane(), group.own_scale(shape, scale(seen))};
    else return {};
  }
  std::size_t workspace_bytes(const CacheShape&, index_t) const { return 0; }

  template <Backend B>
  Status observe(Context<B>& ctx, const StepView<B>& view, LaneViews lane) const {
    return accumulate.observe(ctx, view, group, scale(view.inputs.attention.rows), lane);
  }
  template <Backend B>
  Status observe_counted(Context<B>& ctx, const StepView<B>& view, LaneViews lane) const {
    return evict::observe_counted(accumulate, ctx, view, lane);
  }
  template <Backend B>
  Status score(Context<B>& ctx, const StepView<B>& view, LaneViews lane, RaggedView<float> out,
               Scratch&) const {
    return accumulate.score(ctx, view, group, scale(view.inputs.attention.rows), lane, out);
  }

 private:
  constexpr float scale(index_t seen) const {
    return row_reduce == Reduce::mean && seen > 0 ? 1.0f / static_cast<float>(seen) : 1.0f;
  }
};

}  // namespace kvcondense::evict
