#pragma once

#include <kvcondense/core/backend.hpp>
#include <kvcondense/core/shape.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/core/step_view.hpp>
#include <kvcondense/core/view.hpp>
#include <kvcondense/core/workspace.hpp>
#include <kvcondense/evict/pipeline.hpp>
#include <kvcondense/prim/row_norm.hpp>
#include <kvcondense/prim/slot_numbers.hpp>

namespace kvcondense::evict {

/// Source: minus the length of the key. A key is read once, when it is new; its score waits in a lane.
struct KeyNorm {
  constexpr AttentionNeed attention() const { return {}; }
  constexpr index_t lanes() const { return 1; }
  constexpr bool one_set() const { return false; }
  std::size_t workspace_bytes(const CacheShape&, index_t) const { return 0; }

  template <Backend B>
  Status observe(Context<B>& ctx, const StepView<B>& view, LaneViews lane) const {
    if (view.keys == nullptr) return Status::missing_input;
    return prim::RowNorm<B>::run(ctx, *view.keys, view.appended, -1.0f, lane[0]);
  }
  template <Backend B>
  Status score(Context<B>& ctx, const StepView<B>&, LaneViews lane, RaggedView<float> out,
               Scratch&) const {
    return prim::SlotNumbers<B>::mix(ctx, lane[0], 1.0f, 0.0f, out);
  }
};

}  // namespace kvcondense::evict
