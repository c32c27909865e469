#pragma once

#include <kvcondense/core/backend.hpp>
#include <kvcondense/core/shape.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/core/step_view.hpp>
#include <kvcondense/core/view.hpp>
#include <kvcondense/core/workspace.hpp>
#include <kvcondense/evict/pipeline.hpp>
#include <kvcondense/prim/slot_numbers.hpp>

namespace kvcondense::evict {

/// Source: nothing but the order of the slots; a newer slot scores higher. Exact below 2^24 slots.
struct NoScore {
  constexpr AttentionNeed attention() const { return {}; }
  constexpr index_t lanes() const { return 0; }
  constexpr bool one_set() const { return true; }
  constexpr bool by_age() const { return true; }
  std::size_t workspace_bytes(const CacheShape&, index_t) const { return 0; }

  template <Backend B>
  Status observe(Context<B>&, const StepView<B>&, LaneViews) const {
    return Status::ok;
  }
  template <Backend B>
  Status score(Context<B>& ctx, const StepView<B>&, LaneViews, RaggedView<float> out, Scratch&) const {
    return prim::SlotNumbers<B>::index(ctx, out);
  }
};

}  // namespace kvcondense::evict
