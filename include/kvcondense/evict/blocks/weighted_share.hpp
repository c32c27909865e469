#pragma once

#include <algorithm>
#include <cmath>

#include <kvcondense/core/apportion.hpp>
#include <kvcondense/core/backend.hpp>
#include <kvcondense/core/model_arrays.hpp>
#include <kvcondense/core/shape.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/core/step_view.hpp>
#include <kvcondense/core/view.hpp>
#include <kvcondense/core/workspace.hpp>
#include <kvcondense/evict/pipeline.hpp>

namespace kvcondense::evict {

/// Allocate: what `base` gives is the mean of the model's layers; a number per layer says who gets more.
/// Protected slots count. All layers together hold layers * mean, exactly.
///
/// Weight   double of(float number) const; index_t least(index_t tokens) const: what any layer gets
template <class Base, class Weight>
struct LayerShare {
  Base base{};
  LayerTable numbers{};
  Weight weight{};

  /// The same shares of another budget.
  template <class Other>
  constexpr LayerShare<Other, Weight> over(Other other) const {
    return {other, numbers, weight};
  }

  constexpr bool uses_scores() const { return base.uses_scores(); }
  std::size_t workspace_bytes(const CacheShape& shape, index_t slots) const {
    return std::max(base.workspace_bytes(shape, slots),
                    Scratch::bytes_for<index_t>(shape.layers) + apportion_bytes(shape.layers));
  }

  /// Within one slot.
  template <Backend B>
  index_t expects(const StepView<B>& view, index_t head, Protected shield) const {
    const index_t tokens = view.seen, mean = std::clamp(expected_slots(base, view, head, shield), index_t{0}, tokens);
    const index_t least = std::min(mean, std::max(weight.least(tokens), shield.size()));
    const auto positive = [&](index_t l) { return std::max(weight.of(numbers(l)), 1e-12); };
    const double scale = share_scale(
        numbers.layers, numbers.layers * mean, positive, [&](index_t) { return least; }, [&](index_t) { return tokens; });
    return std::clamp(static_cast<index_t>(positive(view.layer) * scale), least, tokens);
  }
  template <Backend B>
  Status run(Context<B>& ctx, const StepView<B>& view, RaggedView<const float> scores,
             const Protected* shield, index_t* budget, Scratch& scratch) const {
    Scratch s = scratch;
    if (const Status r = base.run(ctx, view, scores, shield, budget, s); r != Status::ok) return r;
    const index_t layers = numbers.layers, tokens = view.seen;
    auto* share = scratch.take_steering<index_t>(layers);
    if (share == nullptr) return Status::workspace_too_small;
    index_t mean = -1;
    for (index_t h = 0; h < view.heads(); ++h) {
      const index_t least = std::clamp(std::max(weight.least(tokens), shield[h].size()), index_t{0}, tokens);
      if (std::clamp(budget[h], index_t{0}, tokens) != mean) {  // heads of one budget have one answer
        mean = std::clamp(budget[h], index_t{0}, tokens);
        const Status r = apportion(
            layers, layers * mean, [&](index_t l) { return weight.of(numbers(l)); },
            [&](index_t) { return std::min(least, mean); }, [&](index_t) { return tokens; }, share, scratch.for_host());
        if (r != Status::ok) return r;
      }
      budget[h] = share[view.layer];
    }
    return Status::ok;
  }
};

/// Allocate: what `base` gives a layer's heads, beside the protected slots, is the mean of all heads of
/// the model. One part of it is everybody's own; the rest goes by a number per head. All heads together
/// hold heads * mean, exactly, where `base` gives every layer the same.
template <class Base>
struct HeadShares {
  Base base{};
  HeadTable numbers{};
  double beta = 1.0;  ///< 1 / beta of the mean is shared

  /// The same shares of another budget.
  template <class Other>
  constexpr HeadShares<Other> over(Other other) const {
    return {other, numbers, beta};
  }

  constexpr bool uses_scores() const { return base.uses_scores(); }
  std::size_t workspace_bytes(const CacheShape& shape, index_t slots) const {
    const index_t units = shape.layers * shape.kv_heads;
    return std::max(base.workspace_bytes(shape, slots), Scratch::bytes_for<index_t>(units) + apportion_bytes(units));
  }

  /// Within one slot where every head of the layer expects the same of `base`.
  template <Backend B>
  index_t expects(const StepView<B>& view, index_t head, Protected shield) const {
    const index_t units = numbers.size(), room = std::max<index_t>(0, view.seen - shield.size());
    const index_t mean = std::clamp<index_t>(expected_slots(base, view, head, shield) - shield.size(), 0, room);
    const index_t sure = own(mean);
    const auto positive = [&](index_t i) { return std::max(static_cast<double>(numbers.data[i]), 1e-12); };
    const auto most = [&](index_t) { return room - sure; };
    const double scale = share_scale(units, units * (mean - sure), positive, [](index_t) { return index_t{0}; }, most);
    const double part = positive(view.layer * view.heads() + head) * scale;
    return shield.size() + sure + std::min(static_cast<index_t>(part), room - sure);
  }
  template <Backend B>
  Status run(Context<B>& ctx, const StepView<B>& view, RaggedView<const float> scores,
             const Protected* shield, index_t* budget, Scratch& scratch) const {
    Scratch s = scratch;
    if (const Status r = base.run(ctx, view, scores, shield, budget, s); r != Status::ok) return r;
    const index_t units = numbers.size(), heads = view.heads();
    auto* share = scratch.take_steering<index_t>(units);
    if (share == nullptr) return Status::workspace_too_small;
    index_t guarded = 0, together = 0;
    for (index_t h = 0; h < heads; ++h) guarded = std::max(guarded, shield[h].size());
    const index_t room = std::max<index_t>(0, view.seen - guarded);
    for (index_t h = 0; h < heads; ++h) together += std::clamp<index_t>(budget[h] - guarded, 0, room);
    const index_t sure = own(together / heads);
    const Status r = apportion(
        units, numbers.layers * together - units * sure, [&](index_t i) { return numbers.data[i]; },
        [](index_t) { return index_t{0}; }, [&](index_t) { return room - sure; }, share, scratch.for_host());
    if (r != Status::ok) return r;
    for (index_t h = 0; h < heads; ++h) budget[h] = guarded + sure + share[view.layer * heads + h];
    return Status::ok;
  }

 private:
  /// What every head is sure of when the mean of all heads is this.
  index_t own(index_t mean) const {
    return mean - static_cast<index_t>(std::floor(static_cast<double>(mean) / beta + 1e-6));
  }
};

}  // namespace kvcondense::evict
