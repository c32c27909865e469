#pragma once

#include <algorithm>
#include <cmath>

#include <kvcondense/core/backend.hpp>
#include <kvcondense/core/model_arrays.hpp>
#include <kvcondense/core/shape.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/core/step_view.hpp>
#include <kvcondense/core/view.hpp>
#include <kvcondense/core/workspace.hpp>
#include <kvcondense/evict/pipeline.hpp>
#include <kvcondense/prim/lift_top.hpp>
#include <kvcondense/prim/projected_norm.hpp>

namespace kvcondense::evict {

/// Select: what `base` would keep if the best by score had places in advance, and the others were ranked by
/// score times the weight of their projected value.
template <class Base>
struct TwoStage {
  Base base{};
  LayerMatrices output{};  ///< output projections
  double first = 0.5;      ///< part of the budget, protected slots included, that scores alone fill
  float epsilon = 1e-4f;   ///< added to scores, so that values count where attention is nothing

  /// The same stages before another choice.
  template <class Other>
  constexpr TwoStage<Other> over(Other other) const {
    return {other, output, first, epsilon};
  }

  constexpr index_t kept(index_t n, index_t budget, Protected shield) const { return kept_slots(base, n, budget, shield); }
  std::size_t workspace_bytes(const CacheShape& shape, index_t slots) const {
    return Scratch::bytes_for<float>(slots) + Scratch::bytes_for<prim::Ends>(shape.kv_heads) +
           Scratch::bytes_for<index_t>(shape.kv_heads) + base.workspace_bytes(shape, slots);
  }

  template <Backend B>
  Status run(Context<B>& ctx, const StepView<B>& view, RaggedView<const float> scores, const Protected* shield,
             const KeepSet& keep, Scratch& scratch) const {
    if (view.values == nullptr) return Status::missing_input;
    const RaggedView<float> rank{scratch.take<float>(view.total()), scores.offset, scores.heads};
    auto* skip = scratch.take_steering<prim::Ends>(view.heads());
    auto* best = scratch.take_steering<index_t>(view.heads());
    if (rank.data == nullptr || skip == nullptr || best == nullptr) return Status::workspace_too_small;
    bool over = false;
    for (index_t h = 0; h < view.heads(); ++h) {
      const bool cut = keep.budget[h] < view.slots(h);
      over = over || cut;
      skip[h] = cut ? shield[h] : prim::Ends{view.slots(h), 0};
      best[h] = static_cast<index_t>(std::floor(static_cast<double>(keep.budget[h]) * first + 1e-6)) - shield[h].size();
    }
    Status s = Status::ok;
    if (over)
      s = prim::ProjectedNorm<B>::run(ctx, *view.values, skip, view.shape, output(view.layer), output.rows, rank);
    if (over && s == Status::ok) s = prim::LiftTop<B>::run(ctx, scores, rank, skip, best, epsilon, rank);
    return s == Status::ok ? base.run(ctx, view, rank, shield, keep, scratch) : s;
  }
};

template <class Base, class... Fields>
TwoStage(Base, Fields...) -> TwoStage<Base>;

}  // namespace kvcondense::evict
