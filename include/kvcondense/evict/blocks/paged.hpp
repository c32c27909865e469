#pragma once

#include <algorithm>

#include <kvcondense/core/backend.hpp>
#include <kvcondense/core/shape.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/core/step_view.hpp>
#include <kvcondense/core/view.hpp>
#include <kvcondense/core/workspace.hpp>
#include <kvcondense/evict/pipeline.hpp>
#include <kvcondense/prim/forward_pool.hpp>
#include <kvcondense/prim/slot_exposure.hpp>
#include <kvcondense/prim/slot_numbers.hpp>

namespace kvcondense::evict {

/// Source: attention of all query heads together, spread to the slots in front of where it went, summed
/// over all steps; with `per_row` divided by the rows that saw the slot.
///
/// Needs    the attention mass of the step with the rows named in `rows`.
/// State    two lanes, of which the first head's numbers count, as all heads hold the same tokens: the sum, and a mark that says
///          how many rows saw the slot.
struct ForwardMass {
  AttentionNeed rows{};
  index_t width = 7;
  bool per_row = true;

  constexpr AttentionNeed attention() const { return rows; }
  constexpr index_t lanes() const { return 2; }
  constexpr bool one_set() const { return true; }
  constexpr Touches touches() const { return Touches::whole; }
  std::size_t workspace_bytes(const CacheShape&, index_t) const { return 0; }

  template <Backend B>
  Status observe(Context<B>& ctx, const StepView<B>& view, LaneViews lane) const {
    const AttentionView& seen = view.inputs.attention;
    const Status s = prim::ForwardPool<B>::add(ctx, seen.mass, width, first(lane[0]));
    return s == Status::ok ? prim::SlotExposure<B>::count(ctx, view.stepped, view.appended, seen.rows, first(lane[1])) : s;
  }
  template <Backend B>
  Status score(Context<B>& ctx, const StepView<B>& view, LaneViews lane, RaggedView<float> out, Scratch&) const {
    if (!per_row) return spread(ctx, first(lane[0]), out);
    const Status s = prim::SlotExposure<B>::mean(ctx, first(lane[0]), first(lane[1]), view.stepped, first(out));
    return s == Status::ok ? spread(ctx, first(out), out) : s;
  }

 private:
  static RaggedView<float> first(RaggedView<float> all) {
    all.heads = std::min<index_t>(all.heads, 1);
    return all;
  }
  /// The numbers of one head, for all.
  template <Backend B>
  static Status spread(Context<B>& ctx, RaggedView<const float> one, RaggedView<float> out) {
    return prim::SlotNumbers<B>::sum_heads(ctx, one, 1.0f, 0.0f, out);
  }
};

/// Protect: the first tokens, the newest, and the page that is not full yet.
struct PageEnds {
  index_t start = 32;
  index_t recent = 128;
  index_t page = 32;

  constexpr index_t most() const { return start + recent + page - 1; }

  template <Backend B>
  Protected of(const StepView<B>& view, index_t head) const {
    return {start, recent + (view.offset == nullptr ? 0 : view.slots(head) % page)};
  }
};

/// Allocate: whole pages for every head, beside the page that is not full yet.
struct PagedTokens {
  index_t tokens = 672;
  index_t page = 32;

  constexpr bool uses_scores() const { return false; }
  std::size_t workspace_bytes(const CacheShape&, index_t) const { return 0; }

  template <Backend B>
  index_t expects(const StepView<B>& view, index_t head, Protected) const {
    return tokens + view.slots(head) % page;
  }
  template <Backend B>
  Status run(Context<B>&, const StepView<B>& view, RaggedView<const float>, const Protected* shield,
             index_t* budget, Scratch&) const {
    for (index_t h = 0; h < view.heads(); ++h) budget[h] = expects(view, h, shield[h]);
    return Status::ok;
  }
};

}  // namespace kvcondense::evict
