#pragma once

#include <algorithm>
#include <cstdint>

#include <kvcondense/core/backend.hpp>
#include <kvcondense/core/shape.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/core/step_view.hpp>
#include <kvcondense/core/view.hpp>
#include <kvcondense/core/workspace.hpp>
#include <kvcondense/evict/pipeline.hpp>
#include <kvcondense/prim/attend_columns.hpp>

namespace kvcondense::evict {

/// Source: attention of the newest `window` queries, reduced as asked, computed when it is wanted. The
/// queries of earlier steps count too, so a window works while tokens come one by one.
///
/// Needs    the queries of every step.
struct QueryMass {
  index_t window = 8;
  prim::GroupReduce group = prim::GroupReduce::mean;
  prim::RowReduce row = prim::RowReduce::mean;
  bool past = false;  ///< the window's own slots take no part, and get 0

  constexpr AttentionNeed attention() const { return {}; }
  constexpr AttentionNeed queries() const { return {AttentionNeed::Rows::last, window}; }
  constexpr index_t lanes() const { return 0; }
  constexpr bool one_set() const { return false; }
  std::size_t workspace_bytes(const CacheShape&, index_t) const { return 0; }

  template <Backend B>
  Status observe(Context<B>&, const StepView<B>&, LaneViews) const {
    return Status::ok;
  }
  template <Backend B>
  Status score(Context<B>& ctx, const StepView<B>& view, LaneViews, RaggedView<float> out, Scratch&) const {
    if (view.columns == nullptr) return Status::missing_input;
    prim::ColumnRequest request;
    request.rows = std::min(window, view.columns->rows());
    request.group = group, request.row = row, request.past = past;
    request.out = out;
    return view.columns->run(ctx, request);
  }
};

}  // namespace kvcondense::evict
