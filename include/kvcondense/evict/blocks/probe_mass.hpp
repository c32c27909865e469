#pragma once

#include <algorithm>

#include <kvcondense/core/backend.hpp>
#include <kvcondense/core/model_arrays.hpp>
#include <kvcondense/core/shape.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/core/step_view.hpp>
#include <kvcondense/core/view.hpp>
#include <kvcondense/core/workspace.hpp>
#include <kvcondense/evict/pipeline.hpp>
#include <kvcondense/prim/attend_columns.hpp>
#include <kvcondense/prim/projected_norm.hpp>
#include <kvcondense/prim/settle_probed.hpp>
#include <kvcondense/prim/slot_numbers.hpp>

namespace kvcondense::evict {

/// Source: the most attention that any row of a probe paid. A probe asks about some tokens and sees them, the
/// sinks and itself. With `weighted` a share counts as much as the slot's value behind the head's columns of `output` is long, over how
/// long the hidden state of the row's token was. Slots that no probe asked about, and those that were chosen from once, score +inf.
///
/// State    one lane: the largest share so far; 0 where nobody asked; +inf once a choice was made.
struct ProbeMass {
  index_t sinks = 4;
  bool weighted = false;
  LayerMatrices output{};  ///< output projections, with `weighted`

  constexpr AttentionNeed attention() const { return {}; }
  constexpr bool probes() const { return true; }
  constexpr index_t lanes() const { return 1; }
  constexpr bool one_set() const { return false; }
  constexpr Inputs inputs() const { return weighted ? Inputs(Input::hidden_norms) : Inputs{}; }
  std::size_t workspace_bytes(const CacheShape& shape, index_t slots) const {
    return Scratch::bytes_for<float>(slots) + (weighted ? Scratch::bytes_for<float>(slots * shape.group()) : 0);
  }

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
    request.group = weighted ? prim::GroupReduce::none : prim::GroupReduce::max, request.row = prim::RowReduce::max;
    request.part = {sinks, in.probe_first, in.probe_last};
    const RaggedView<float> shares = view.ragged(scratch.take<float>(view.total()));
    request.out = weighted ? view.ragged(scratch.take<float>(view.total() * view.shape.group())) : shares;
    if (shares.data == nullptr || request.out.data == nullptr) return Status::workspace_too_small;
    if (weighted && (view.values == nullptr || in.hidden_norms.empty())) return Status::missing_input;
    if (weighted) request.divide = in.hidden_norms.data() + (static_cast<index_t>(in.hidden_norms.size()) - request.rows);
    Status s = view.columns->run(ctx, request);
    if (weighted && s == Status::ok)
      s = prim::ProjectedNorm<B>::weigh(ctx, *view.values, view.shape, output(view.layer), output.rows, request.out, shares);
    return s == Status::ok ? prim::SlotNumbers<B>::larger(ctx, shares, lane[0]) : s;
  }
  template <Backend B>
  Status score(Context<B>& ctx, const StepView<B>&, LaneViews lane, RaggedView<float> out, Scratch&) const {
    return prim::SettleProbed<B>::run(ctx, lane[0], out);
  }
};

}  // namespace kvcondense::evict
