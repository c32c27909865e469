#pragma once

#include <algorithm>
#include <cmath>

#include <kvcondense/core/backend.hpp>
#include <kvcondense/core/shape.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/core/step_view.hpp>
#include <kvcondense/core/view.hpp>
#include <kvcondense/core/workspace.hpp>
#include <kvcondense/evict/pipeline.hpp>
#include <kvcondense/prim/attend_columns.hpp>
#include <kvcondense/prim/head_policy.hpp>
#include <kvcondense/prim/slot_exposure.hpp>
#include <kvcondense/prim/slot_numbers.hpp>
#include <kvcondense/prim/token_numbers.hpp>

namespace kvcondense::evict {

/// Source: +inf for slots that the policy of their head keeps, for all others their attention so far; with
/// `per_row` divided by the rows that saw the slot.
/// Heads choose their policies in a prompt, from its newest `profile` query rows, and keep to them after it.
///
/// Needs    the queries of every step, the classes of its tokens.
/// State    four lanes: the head's policy, which every slot of the head carries, so that it lives where
///          slots live; the token's class; the sum of attention since the profile began; a mark that says how
///          many rows since then saw the slot.
struct HeadPolicyMass {
  double recovery = 0.95;
  double frequent = 0.3;  ///< part of all tokens so far
  double local = 0.3;     ///< part of all tokens so far
  index_t profile = 128;
  bool per_row = true;

  constexpr AttentionNeed attention() const { return {}; }
  constexpr AttentionNeed queries() const { return {AttentionNeed::Rows::last, profile}; }
  constexpr Inputs inputs() const { return Input::classes; }
  constexpr bool gives_shares() const { return false; }
  constexpr index_t lanes() const { return 4; }
  constexpr bool one_set() const { return false; }
  std::size_t workspace_bytes(const CacheShape&, index_t slots) const { return Scratch::bytes_for<float>(slots); }

  template <Backend B>
  Status observe(Context<B>& ctx, const StepView<B>& view, LaneViews lane) const {
    Status s = prim::TokenNumbers<B>::extend(ctx, view.appended, lane[head_policy]);
    if (s == Status::ok) s = prim::TokenNumbers<B>::write(ctx, view.inputs.classes, lane[token_class]);
    const index_t rows = view.phase == Phase::decode ? view.appended : 0;  // those of a prompt count when it is profiled
    if (s == Status::ok) s = prim::SlotExposure<B>::count(ctx, view.stepped, view.appended, rows, lane[mark]);
    return s == Status::ok && rows > 0 ? add_rows(ctx, view, rows, lane) : s;
  }
  template <Backend B>
  Status score(Context<B>& ctx, const StepView<B>& view, LaneViews lane, RaggedView<float> out,
               Scratch& scratch) const {
    const bool chooses = view.phase != Phase::decode;
    Status s = chooses ? begin_profile(ctx, view, lane) : Status::ok;
    if (s == Status::ok)
      s = per_row ? prim::SlotExposure<B>::mean(ctx, lane[sum], lane[mark], view.stepped, out)
                  : prim::SlotNumbers<B>::mix(ctx, lane[sum], 1.0f, 0.0f, out);
    const prim::HeadPolicySets sets{lane[token_class], part(frequent, view.seen), part(local, view.seen)};
    if (s == Status::ok && chooses) s = choose(ctx, view, sets, lane, out, scratch);
    return s == Status::ok ? prim::HeadPolicies<B>::mark(ctx, sets, lane[head_policy], out) : s;
  }

  /// ceil, but a product that lands just above an integer counts as that integer.
  static index_t part(double share, index_t tokens) {
    return static_cast<index_t>(std::ceil(share * static_cast<double>(tokens) - 1e-6));
  }

 private:
  enum Lane : std::size_t { head_policy, token_class, sum, mark };

  template <Backend B>
  index_t profile_rows(const StepView<B>& view) const {
    return std::min(profile, view.columns->rows());
  }

  /// Adds the attention of the newest rows, the mean of each query group.
  template <Backend B>
  Status add_rows(Context<B>& ctx, const StepView<B>& view, index_t rows, LaneViews lane) const {
    if (view.columns == nullptr) return Status::missing_input;
    prim::ColumnRequest request;
    request.rows = rows;
    request.add = true;
    request.out = lane[sum];
    return view.columns->run(ctx, request);
  }
  template <Backend B>
  Status begin_profile(Context<B>& ctx, const StepView<B>& view, LaneViews lane) const {
    if (view.columns == nullptr) return Status::missing_input;
    if (const Status s = prim::SlotNumbers<B>::fill(ctx, 0.0f, lane[sum]); s != Status::ok) return s;
    if (const Status s = prim::SlotExposure<B>::begin(ctx, view.stepped, profile_rows(view), lane[mark]); s != Status::ok) return s;
    return add_rows(ctx, view, profile_rows(view), lane);
  }
  template <Backend B>
  Status choose(Context<B>& ctx, const StepView<B>& view, const prim::HeadPolicySets& sets, LaneViews lane,
                RaggedView<const float> scores, Scratch& scratch) const {
    prim::ColumnRequest request;
    request.rows = sets.local > 0 ? profile_rows(view) : 0;
    request.band = sets.local;
    request.out = view.ragged(scratch.take<float>(view.total()));
    if (request.out.data == nullptr) return Status::workspace_too_small;
    const Status s = view.columns->run(ctx, request);
    if (s != Status::ok) return s;
    return prim::HeadPolicies<B>::choose(ctx, sets, lane[sum], request.out, scores, recovery, lane[head_policy]);
  }
};

}  // namespace kvcondense::evict
