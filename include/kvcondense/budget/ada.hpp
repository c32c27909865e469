#pragma once

#include <kvcondense/core/backend.hpp>
#include <kvcondense/core/policy.hpp>
#include <kvcondense/core/shape.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/evict/blocks/head_global_top.hpp>
#include <kvcondense/evict/policy.hpp>

namespace kvcondense::budget {

/// Lets the heads of a layer share their slots by their scores.
///
/// Idea     a head that looks everywhere needs more slots than one that looks at few; sharing lowers a
///          bound on the error of the layer's output at the same memory.
/// Source   Ada-KV, arXiv:2407.11550; the orientation of `floor` is that of the authors' code.
/// Needs    scores of all heads of a layer on one scale, as sums of probabilities are.
/// Shapes   scores [kv_heads, slots].
/// Cost     about ten passes over the scores of a layer; no allocation.
/// Numbers  a head gets floor of its own budget and (1 - floor) of the places its scores win in the
///          whole layer; largest remainders keep the layer's total exact. Ties: score, head, slot.
///          `form` chooses the roundings of the published codes, or the safeguard of kvpress.
/// Differs  scores are the policy's: snapkv's are the mean over a query group. The maximum, which the authors' code can take too,
///          is not here, since attention comes added up over the group.
/// Errors   invalid_argument unless 0 <= floor <= 1; incompatible over a policy that scores all heads
///          alike (positions, or one kept set per layer).
template <class P>
struct Ada {
  static constexpr Descriptor about{"ada", Stage::evict, "arXiv:2407.11550"};
  static constexpr Inputs needs = P::needs;

  P policy{};
  double floor = 0.2;
  evict::HeadShare form = evict::HeadShare::exact;

  constexpr auto pipeline() const {
    const auto p = policy.pipeline();
    return p.with_allocate(evict::HeadGlobalTop{p.allocate, floor, form});
  }
  Status validate(const CacheShape& shape) const {
    if (!(floor >= 0.0 && floor <= 1.0)) return Status::invalid_argument;
    if (policy.pipeline().source.one_set()) return Status::incompatible;
    return policy.validate(shape);
  }
};

template <class P, class... Fields>
Ada(P, Fields...) -> Ada<P>;

}  // namespace kvcondense::budget
