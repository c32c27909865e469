#pragma once

#include <algorithm>

#include <kvcondense/core/backend.hpp>
#include <kvcondense/core/shape.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/core/step_view.hpp>
#include <kvcondense/core/view.hpp>
#include <kvcondense/core/workspace.hpp>
#include <kvcondense/evict/blocks/attention_mass.hpp>
#include <kvcondense/evict/pipeline.hpp>
#include <kvcondense/prim/attend_columns.hpp>
#include <kvcondense/prim/slot_numbers.hpp>

namespace kvcondense::evict {

/// Source: attention of the newest `window` queries, or that of all queries so far where it is larger once it is
/// brought to the same mean. Sums over rows and the group.
///
/// Needs    attention of every query row, and the queries.
struct GlobalLocalMass {
  index_t window = 32;

  constexpr AttentionNeed attention() const { return all_rows(); }
  constexpr AttentionNeed queries() const { return {AttentionNeed::Rows::last, window}; }
  constexpr index_t lanes() const { return 1; }
  constexpr bool one_set() const { return false; }
  std::size_t workspace_bytes(const CacheShape&, index_t) const { return 0; }

  template <Backend B>
  Status observe(Context<B>& ctx, const StepView<B>& view, LaneViews lane) const {
    return prim::SlotNumbers<B>::mix(ctx, view.inputs.attention.mass, 1.0f, 1.0f, lane[0]);
  }
  template <Backend B>
  Status score(Context<B>& ctx, const StepView<B>& view, LaneViews lane, RaggedView<float> out, Scratch&) const {
    if (view.columns == nullptr) return prim::SlotNumbers<B>::mix(ctx, lane[0], 1.0f, 0.0f, out);  // before a turn
    prim::ColumnRequest request;
    request.rows = std::min(window, view.columns->rows());
    request.group = prim::GroupReduce::sum, request.row = prim::RowReduce::sum;
    request.out = out;
    if (const Status s = view.columns->run(ctx, request); s != Status::ok) return s;
    return prim::SlotNumbers<B>::larger_brought(ctx, lane[0], out);
  }
};

}  // namespace kvcondense::evict
