#pragma once

#include <kvcondense/core/backend.hpp>
#include <kvcondense/core/shape.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/core/step_view.hpp>
#include <kvcondense/core/view.hpp>
#include <kvcondense/core/workspace.hpp>
#include <kvcondense/evict/pipeline.hpp>
#include <kvcondense/prim/lag_spread.hpp>
#include <kvcondense/prim/open_blocks.hpp>

namespace kvcondense::evict {

/// Source: how much keys and values of a block vary on the scale of the next block. Only slots of
/// blocks that have a whole successor get a score; all others get +inf and are not up for choice.
///
/// State    one lane: 1 for slots that have been up for choice, and those before them. It is written
///          when slots are scored and goes where they go, so that forks, rollback and removed ranges
///          need nothing else: the next blocks begin behind the last settled slot.
struct LagStatistics {
  index_t sinks = 16;
  index_t lag = 128;
  float value_weight = 1.0f;

  constexpr AttentionNeed attention() const { return {}; }
  constexpr index_t lanes() const { return 1; }
  constexpr bool one_set() const { return false; }
  constexpr Touches touches() const { return Touches::none; }
  std::size_t workspace_bytes(const CacheShape&, index_t slots) const {
    return Scratch::bytes_for<float>(slots);
  }

  template <Backend B>
  Status observe(Context<B>&, const StepView<B>&, LaneViews) const {
    return Status::ok;
  }
  template <Backend B>
  Status score(Context<B>& ctx, const StepView<B>& view, LaneViews lane, RaggedView<float> out,
               Scratch& scratch) const {
    if (view.keys == nullptr || view.values == nullptr) return Status::missing_input;
    const RaggedView<float> spread{scratch.take<float>(view.total()), out.offset, out.heads};
    if (spread.data == nullptr) return Status::workspace_too_small;
    Status s = prim::OpenBlocks<B>::mark(ctx, lane[0], sinks, lag, out);
    if (s == Status::ok) s = prim::LagSpread<B>::add(ctx, *view.keys, lag, 1.0f, spread, out);
    if (s == Status::ok) s = prim::LagSpread<B>::add(ctx, *view.values, lag, value_weight, spread, out);
    return s == Status::ok ? prim::OpenBlocks<B>::settle(ctx, out, lane[0]) : s;
  }
};

}  // namespace kvcondense::evict
