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

/// Source: attention of the newest `window` queries, or of those of the step; each row counts by the part of all tokens
/// that came before it, and the mean is taken over rows and the group.
///
/// Needs    the queries of every step.
struct ExposedMass {
  index_t window = 32;  ///< 0: the queries of the step

  constexpr AttentionNeed attention() const { return {}; }
  constexpr AttentionNeed queries() const {
    return window > 0 ? AttentionNeed{AttentionNeed::Rows::last, window} : AttentionNeed{AttentionNeed::Rows::all, 0};
  }
  constexpr index_t lanes() const { return 0; }
  constexpr bool one_set() const { return false; }
  std::size_t workspace_bytes(const CacheShape&, index_t slots) const {
    return Scratch::bytes_for<float>(window > 0 ? window : slots);
  }

  template <Backend B>
  Status observe(Context<B>&, const StepView<B>&, LaneViews) const {
    return Status::ok;
  }
  template <Backend B>
  Status score(Context<B>& ctx, const StepView<B>& view, LaneViews, RaggedView<float> out, Scratch& scratch) const {
    if (view.columns == nullptr) return Status::missing_input;
    prim::ColumnRequest request;
    request.rows = std::min(window > 0 ? window : view.appended, view.columns->rows());
    float* divide = scratch.take<float>(request.rows);
    if (divide == nullptr) return Status::workspace_too_small;
    if (const Status s = prim::SlotExposure<B>::row_divisors(ctx, view.seen, request.rows, divide); s != Status::ok) return s;
    request.row = prim::RowReduce::mean;
    request.divide = divide;
    request.out = out;
    return view.columns->run(ctx, request);
  }
};

/// Protect: the tokens whose queries score the others: the newest `window`, or those of the step.
struct Question {
  index_t window = 32;  ///< 0: the tokens of the step

  constexpr index_t most() const { return std::max<index_t>(1, window); }

  template <Backend B>
  Protected of(const StepView<B>& view, index_t) const {
    return {0, window > 0 ? window : view.appended};
  }
};

}  // namespace kvcondense::evict
