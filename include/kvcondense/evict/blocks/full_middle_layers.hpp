#pragma once

#include <cmath>

#include <kvcondense/core/backend.hpp>
#include <kvcondense/core/shape.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/core/step_view.hpp>
#include <kvcondense/core/view.hpp>
#include <kvcondense/core/workspace.hpp>
#include <kvcondense/evict/pipeline.hpp>

namespace kvcondense::evict {

/// Allocate: everything in the middle part of the layers, `base` in the others.
template <class Base>
struct FullMiddleLayers {
  Base base{};
  double part = 1.0 / 3.0;

  /// The same layers before another budget.
  template <class Other>
  constexpr FullMiddleLayers<Other> over(Other other) const {
    return {other, part};
  }

  constexpr bool uses_scores() const { return base.uses_scores(); }
  std::size_t workspace_bytes(const CacheShape& shape, index_t slots) const {
    return base.workspace_bytes(shape, slots);
  }

  /// With a third: layers from floor(layers / 3) to floor(2 * layers / 3), that one not.
  bool full(index_t layer, index_t layers) const {
    const double n = static_cast<double>(layers);
    const double first = std::floor(n * (1.0 - part) / 2.0 + 1e-6), end = std::floor(n * (1.0 + part) / 2.0 + 1e-6);
    return static_cast<double>(layer) >= first && static_cast<double>(layer) < end;
  }

  template <Backend B>
  index_t expects(const StepView<B>& view, index_t head, Protected shield) const {
    return full(view.layer, view.shape.layers) ? view.slots(head) : expected_slots(base, view, head, shield);
  }
  template <Backend B>
  Status run(Context<B>& ctx, const StepView<B>& view, RaggedView<const float> scores,
             const Protected* shield, index_t* budget, Scratch& scratch) const {
    if (!full(view.layer, view.shape.layers)) return base.run(ctx, view, scores, shield, budget, scratch);
    for (index_t h = 0; h < view.heads(); ++h) budget[h] = view.slots(h);
    return Status::ok;
  }
};

template <class Base, class... Fields>
FullMiddleLayers(Base, Fields...) -> FullMiddleLayers<Base>;

}  // namespace kvcondense::evict
