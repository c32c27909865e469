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
#include <kvcondense/prim/slot_exposure.hpp>

namespace kvcondense::evict {

/// Source: the logarithm of exp(logit), its mean over the group, as a mean over rows that fades: of a step the newest
/// `window` rows count. Two lanes: the faded sum, and a mark that says how many rows are in it.
///
/// Needs    the queries of every step.
struct DecayedScore {
  float decay = 0.9f;
  index_t window = 32;

  constexpr AttentionNeed attention() const { return {}; }
  constexpr AttentionNeed queries() const { return {AttentionNeed::Rows::all, 0}; }
  constexpr index_t lanes() const { return 2; }
  constexpr bool one_set() const { return false; }
  constexpr bool gives_shares() const { return false; }
  std::size_t workspace_bytes(const CacheShape&, index_t) const { return 0; }

  template <Backend B>
  Status observe(Context<B>& ctx, const StepView<B>& view, LaneViews lane) const {
    if (view.columns == nullptr) return Status::missing_input;
    prim::ColumnRequest request;
    request.rows = std::min({window, view.appended, view.columns->rows()});
    request.row = prim::RowReduce::log_decay, request.decay = decay;
    request.add = true;
    request.out = lane[0];
    using Exposure = prim::SlotExposure<B>;
    if (const Status s = Exposure::count(ctx, view.stepped, view.appended, request.rows, lane[1]); s != Status::ok) return s;
    if (const Status s = Exposure::open_logs(ctx, view.appended, lane[0]); s != Status::ok) return s;
    return view.columns->run(ctx, request);
  }
  template <Backend B>
  Status score(Context<B>& ctx, const StepView<B>& view, LaneViews lane, RaggedView<float> out, Scratch&) const {
    return prim::SlotExposure<B>::decayed_mean(ctx, lane[0], lane[1], view.stepped, decay, out);
  }
};

}  // namespace kvcondense::evict
