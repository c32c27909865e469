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
#include <kvcondense/prim/near_share.hpp>
#include <kvcondense/prim/slot_numbers.hpp>

namespace kvcondense::evict {

/// Of all tokens so far: those that left count too, so that choosing again does not shrink what was chosen.
using prim::NearShare;

/// Source: attention of as many of the newest queries as tokens are near, `history` at most, summed over
/// all query heads of the layer; computed when it is wanted.
///
/// Needs    the queries of every step.
struct NearQueryMass {
  NearShare near{};
  index_t history = 64;

  constexpr AttentionNeed attention() const { return {}; }
  constexpr AttentionNeed queries() const { return {AttentionNeed::Rows::last, history}; }
  constexpr index_t lanes() const { return 0; }
  constexpr bool one_set() const { return true; }
  std::size_t workspace_bytes(const CacheShape&, index_t slots) const { return Scratch::bytes_for<float>(slots); }

  template <Backend B>
  Status observe(Context<B>&, const StepView<B>&, LaneViews) const {
    return Status::ok;
  }
  template <Backend B>
  Status score(Context<B>& ctx, const StepView<B>& view, LaneViews, RaggedView<float> out, Scratch& scratch) const {
    if (view.columns == nullptr) return Status::missing_input;
    prim::ColumnRequest request;
    request.rows = std::min({near.of(view.seen), history, view.columns->rows()});
    request.group = prim::GroupReduce::sum;
    request.out = view.ragged(scratch.take<float>(view.total()));
    if (request.out.data == nullptr) return Status::workspace_too_small;
    const Status s = view.columns->run(ctx, request);
    return s == Status::ok ? prim::SlotNumbers<B>::sum_heads(ctx, request.out, 1.0f, 0.0f, out) : s;
  }
};

/// Protect: the newest tokens, those that are near.
struct Near {
  NearShare near{};

  constexpr index_t most() const { return 1; }

  template <Backend B>
  Protected of(const StepView<B>& view, index_t) const {
    return {0, near.of(view.seen)};
  }
};

/// Allocate: the near tokens, and as many others.
struct NearAndFar {
  NearShare near{};

  constexpr bool uses_scores() const { return false; }
  std::size_t workspace_bytes(const CacheShape&, index_t) const { return 0; }

  template <Backend B>
  index_t expects(const StepView<B>& view, index_t, Protected) const {
    return 2 * near.of(view.seen);
  }
  template <Backend B>
  Status run(Context<B>&, const StepView<B>& view, RaggedView<const float>, const Protected*, index_t* budget,
             Scratch&) const {
    std::fill_n(budget, view.heads(), 2 * near.of(view.seen));
    return Status::ok;
  }
};

}  // namespace kvcondense::evict
