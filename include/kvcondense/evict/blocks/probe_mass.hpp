#pragma once

#include <algorithm>

#include <kvcondense/core/backend.hpp>
#include <kvcondense/core/shape.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/core/step_view.hpp>
#include <kvcondense/core/view.hpp>
#include <kvcondense/core/workspace.hpp>
#include <kvcondense/evict/pipeline.hpp>
#include <kvcondense/prim/attend_columns.hpp>
#include <kvcondense/prim/settle_probed.hpp>
#include <kvcondense/prim/slot_numbers.hpp>

namespace kvcondense::evict {

/// Source: the most attention that any row of a probe paid. A probe asks about some tokens and sees them, the
/// sinks and itself. Slots that no probe asked about, and those that were chosen from once, score +inf.
///
/// State    one lane: the largest share so far; 0 where nobody asked; +inf once a choice was made.
struct ProbeMass {
  index_t sinks = 4;

  constexpr AttentionNeed attention() const { return {}; }
  constexpr bool probes() const { return true; }
  constexpr index_t lanes() const { return 1; }
  constexpr bool one_set() const { return false; }
  std::size_t workspace_bytes(const CacheShape&, index_t slots) const { return Scratch::bytes_for<float>(slots); }

  template <Backend B>
  Status observe(Context<B>&, const StepView<B>&, LaneViews) const {
    return Status::ok;
  }
  template <Backend B>
  Status observe_probe(Context<B>& ctx, const StepView<B>& view, LaneViews lane, Scratch& scratch) const {
    if (view.columns == nullptr) return Status::missing_input;
    const StepInputs& in = view.inputs;
    if (in.probe_first < 0 || in.probe_last <= in.probe_first || in.probe_last > view.seen - view.appended)
      return Status::out_of_range;
    prim::ColumnRequest request;
    request.rows = std::min(view.appended, view.columns->rows());  // earlier ones may be kept for others
    request.group = prim::GroupReduce::max, request.row = prim::RowReduce::max;
    request.part = {sinks, in.probe_first, in.probe_last};
    request.out = view.ragged(scratch.take<float>(view.total()));
    if (request.out.data == nullptr) return Status::workspace_too_small;
    const Status s = view.columns->run(ctx, request);
    return s == Status::ok ? prim::SlotNumbers<B>::larger(ctx, request.out, lane[0]) : s;
  }
  template <Backend B>
  Status score(Context<B>& ctx, const StepView<B>&, LaneViews lane, RaggedView<float> out, Scratch&) const {
    return prim::SettleProbed<B>::run(ctx, lane[0], out);
  }
};

}  // namespace kvcondense::evict
