#pragma once

#include <kvcondense/core/backend.hpp>
#include <kvcondense/core/shape.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/core/step_view.hpp>
#include <kvcondense/core/view.hpp>
#include <kvcondense/core/workspace.hpp>
#include <kvcondense/evict/pipeline.hpp>

namespace kvcondense::evict {

/// Allocate: everything in the first layers, `base` in the others.
template <class Base>
struct FullFirstLayers {
  Base base{};
  index_t layers = 2;

  /// The same layers before another budget.
  template <class Other>
  constexpr FullFirstLayers<Other> over(Other other) const {
    return {other, layers};
  }

  constexpr bool uses_scores() const { return base.uses_scores(); }
  std::size_t workspace_bytes(const CacheShape& shape, index_t slots) const {
    return base.workspace_bytes(shape, slots);
  }

  template <Backend B>
  index_t expects(const StepView<B>& view, index_t head, Protected shield) const {
    return view.layer < layers ? view.slots(head) : expected_slots(base, view, head, shield);
  }
  template <Backend B>
  Status run(Context<B>& ctx, const StepView<B>& view, RaggedView<const float> scores,
             const Protected* shield, index_t* budget, Scratch& scratch) const {
    if (view.layer >= layers) return base.run(ctx, view, scores, shield, budget, scratch);
    for (index_t h = 0; h < view.heads(); ++h) budget[h] = view.slots(h);
    return Status::ok;
  }
};

template <class Base, class... Fields>
FullFirstLayers(Base, Fields...) -> FullFirstLayers<Base>;

}  // namespace kvcondense::evict
