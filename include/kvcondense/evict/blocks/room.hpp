#pragma once

#include <algorithm>

#include <kvcondense/core/backend.hpp>
#include <kvcondense/core/shape.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/core/step_view.hpp>
#include <kvcondense/core/view.hpp>
#include <kvcondense/core/workspace.hpp>
#include <kvcondense/evict/pipeline.hpp>
#include <kvcondense/prim/top_then_newest.hpp>

namespace kvcondense::evict {

/// Trigger: before a turn, to make room for the tokens that are coming.
struct BeforeTurn {
  template <Backend B>
  bool fires(const StepView<B>& view) const {
    return view.phase == Phase::turn;
  }
};

/// Trigger: every step, and before a turn.
struct EveryStepAndTurn {
  template <Backend B>
  bool fires(const StepView<B>&) const {
    return true;
  }
};

/// Protect: the newest token, but not against what is coming.
struct Newest {
  constexpr index_t most() const { return 1; }

  template <Backend B>
  Protected of(const StepView<B>& view, index_t) const {
    return {0, view.phase == Phase::turn ? 0 : 1};
  }
};

/// Allocate: what `tokens` leaves when the coming tokens are in.
struct RoomFor {
  index_t tokens = 1024;

  constexpr bool uses_scores() const { return false; }
  std::size_t workspace_bytes(const CacheShape&, index_t) const { return 0; }

  template <Backend B>
  Status run(Context<B>&, const StepView<B>& view, RaggedView<const float>, const Protected*, index_t* budget,
             Scratch&) const {
    std::fill_n(budget, view.heads(), std::max<index_t>(0, tokens - view.inputs.incoming));
    return Status::ok;
  }
};

/// Select: the first slots, the best of all slots, and the newest until the budget is full. What is
/// coming takes places of the best.
struct TopThenNewest {
  index_t first = 4;
  index_t best = 1020;

  std::size_t workspace_bytes(const CacheShape&, index_t) const { return 0; }

  template <Backend B>
  Status run(Context<B>& ctx, const StepView<B>& view, RaggedView<const float> scores, const Protected*,
             const KeepSet& keep, Scratch&) const {
    const index_t top = std::max<index_t>(0, best - view.inputs.incoming);
    return prim::TopThenNewest<B>::run(ctx, scores, first, top, keep.budget, keep.slots, keep.count, keep.nan);
  }
};

}  // namespace kvcondense::evict
