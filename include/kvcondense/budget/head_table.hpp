#pragma once

#include <kvcondense/core/backend.hpp>
#include <kvcondense/core/model_arrays.hpp>
#include <kvcondense/core/policy.hpp>
#include <kvcondense/core/shape.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/evict/blocks/weighted_share.hpp>
#include <kvcondense/evict/policy.hpp>

namespace kvcondense::budget {

/// Gives each head of the model a part of all slots that was measured beforehand.
///
/// Idea     which heads retrieve and reason is a property of the model; measure it once, and give those
///          heads the slots that the others can do without.
/// Source   HeadKV, arXiv:2410.19258; the published method is this over SnapKV with beta = 1.01.
/// Needs    `shares`, a number per (layer, KV head), the mean over its query heads, summing to 1; and what
///          the policy needs.
/// Shapes   shares [layers, kv_heads].
/// Cost     a few passes over the table per layer and step; no allocation.
/// Numbers  beside the protected slots every head is sure of budget - budget / beta, and the rest of all
///          heads' budgets is shared by the table, rounded by largest remainders: together they hold
///          heads * budget exactly. No head gets more than there are tokens; the others share the rest.
/// Differs  the authors round every head by itself, and their total drifts.
/// Errors   missing_input without shares; shape_mismatch when they are not of this model;
///          invalid_argument unless beta >= 1, no share is negative and they sum to 1 within 1e-3;
///          incompatible over a policy that keeps one set of tokens per layer.
template <class P>
struct HeadTableBudget {
  static constexpr Descriptor about{"head_table", Stage::evict, "arXiv:2410.19258"};
  static constexpr Inputs needs = P::needs;

  P policy{};
  double beta = 1.01;
  HeadTable shares{};  ///< borrowed

  const char* missing() const { return shares.empty() ? "shares" : nullptr; }

  constexpr auto pipeline() const {
    const auto p = policy.pipeline();
    return p.with_allocate(evict::HeadShares<decltype(p.allocate)>{p.allocate, shares, beta});
  }
  Status validate(const CacheShape& shape) const {
    if (!(beta >= 1.0 && beta <= 1e6)) return Status::invalid_argument;
    const auto p = policy.pipeline();
    const bool measured = p.inputs().has(Input::attention) || p.inputs().has(Input::queries);
    if (p.source.one_set() && measured) return Status::incompatible;
    if (shares.empty()) return Status::missing_input;
    if (!shares.fits(shape)) return Status::shape_mismatch;
    double sum = 0;
    for (index_t i = 0; i < shares.size(); ++i) {
      if (!(shares.data[i] >= 0.0f)) return Status::invalid_argument;
      sum += static_cast<double>(shares.data[i]);
    }
    return sum > 0.999 && sum < 1.001 ? policy.validate(shape) : Status::invalid_argument;
  }
};

template <class P, class... Fields>
HeadTableBudget(P, Fields...) -> HeadTableBudget<P>;

}  // namespace kvcondense::budget
