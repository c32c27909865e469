#pragma once

#include <algorithm>
#include <cmath>

#include <kvcondense/core/backend.hpp>
#include <kvcondense/core/model_arrays.hpp>
#include <kvcondense/core/policy.hpp>
#include <kvcondense/core/shape.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/evict/blocks/weighted_share.hpp>
#include <kvcondense/evict/policy.hpp>

namespace kvcondense::budget {

/// exp(-number): what a softmax over all layers is made of.
struct Softmin {
  double part = 0.01;  ///< of all tokens: what any layer keeps

  double of(float number) const { return std::exp(-static_cast<double>(number)); }
  index_t least(index_t tokens) const {
    return static_cast<index_t>(std::ceil(part * static_cast<double>(tokens) - 1e-6));
  }
};

/// Gives layers that attend evenly more slots than layers that look at few tokens.
///
/// Idea     where the attention that tokens drew varies much, few of them matter; where it is even, each
///          token that leaves is missed.
/// Source   D2O, arXiv:2406.13035, its budgets for layers; `budget::attention_variance` makes the numbers
///          from attention.
/// Needs    `variance`, a number per layer; and what the policy needs.
/// Shapes   variance [layers].
/// Cost     a few passes over the table per layer and step; no allocation.
/// Numbers  layers share layers * budget in proportion to exp(-variance), protected slots included,
///          rounded by largest remainders: the total is exact. Every layer gets at least `least` of all
///          tokens and at most all of them; the others share the rest.
/// Differs  the authors measure every prompt anew, which no layer can use before the last one has run;
///          here the numbers are the model's. They cut what is out of bounds without giving it to others,
///          and keep the first two layers and the last whole: wrap this in skip_layers for that.
/// Errors   missing_input without the table; shape_mismatch when it is not of this model;
///          invalid_argument unless it holds numbers from 0 to 700 and 0 <= least <= 1.
template <class P>
struct Variance {
  static constexpr Descriptor about{"variance", Stage::evict, "arXiv:2406.13035"};
  static constexpr Inputs needs = P::needs;

  P policy{};
  double least = 0.01;
  LayerTable variance{};  ///< borrowed

  const char* missing() const { return variance.empty() ? "variance" : nullptr; }

  constexpr auto pipeline() const {
    const auto p = policy.pipeline();
    return p.with_allocate(evict::LayerShare<decltype(p.allocate), Softmin>{p.allocate, variance, {least}});
  }
  Status validate(const CacheShape& shape) const {
    if (!(least >= 0.0 && least <= 1.0)) return Status::invalid_argument;
    if (variance.empty()) return Status::missing_input;
    if (!variance.fits(shape)) return Status::shape_mismatch;
    return variance.within(0.0f, 700.0f) ? policy.validate(shape) : Status::invalid_argument;
  }
};

template <class P, class... Fields>
Variance(P, Fields...) -> Variance<P>;

}  // namespace kvcondense::budget
