#pragma once

#include <kvcondense/core/backend.hpp>
#include <kvcondense/core/shape.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/core/step_view.hpp>
#include <kvcondense/core/view.hpp>
#include <kvcondense/core/workspace.hpp>
#include <kvcondense/evict/pipeline.hpp>
#include <kvcondense/prim/row_direction.hpp>

namespace kvcondense::evict {

/// Source: minus the cosine between a key and the mean key of the slots that are there. Nothing is
/// kept between steps: the mean moves with every token that comes or leaves.
struct KeyDirection {
  prim::Anchor anchor = prim::Anchor::mean_direction;

  constexpr AttentionNeed attention() const { return {}; }
  constexpr index_t lanes() const { return 0; }
  constexpr bool one_set() const { return false; }
  std::size_t workspace_bytes(const CacheShape&, index_t) const { return 0; }

  template <Backend B>
  Status observe(Context<B>&, const StepView<B>&, LaneViews) const {
    return Status::ok;
  }
  template <Backend B>
  Status score(Context<B>& ctx, const StepView<B>& view, LaneViews, RaggedView<float> out,
               Scratch&) const {
    if (view.keys == nullptr) return Status::missing_input;
    return prim::RowDirection<B>::run(ctx, *view.keys, anchor, -1.0f, out);
  }
};

}  // namespace kvcondense::evict
