#pragma once

#include <kvcondense/core/backend.hpp>
#include <kvcondense/core/policy.hpp>
#include <kvcondense/core/shape.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/evict/blocks/allocate.hpp>
#include <kvcondense/evict/policy.hpp>

namespace kvcondense::budget {

/// Gives every head a part of the tokens seen so far.
///
/// Idea     one setting for prompts of any length; sweeps compare policies by what they keep.
/// Source   kvpress calls it compression ratio: 1 - keep.
/// Needs    what the policy needs.
/// Shapes   none.
/// Cost     none.
/// Numbers  floor(tokens * keep + 1e-6), at least min_keep, protected slots included. Tokens are those
///          ever seen, so that a policy that fires at every step does not shrink what it shrank.
/// Errors   invalid_argument unless 0 < keep <= 1 and min_keep >= 1.
template <class P>
struct Ratio {
  static constexpr Descriptor about{"ratio", Stage::evict, "kvpress"};
  static constexpr Inputs needs = P::needs;

  P policy{};
  double keep = 0.5;
  index_t min_keep = 1;

  constexpr auto pipeline() const {
    return policy.pipeline().with_allocate(evict::Ratio{keep, min_keep});
  }
  Status validate(const CacheShape& shape) const {
    const bool good = keep > 0.0 && keep <= 1.0 && min_keep >= 1;
    return good ? policy.validate(shape) : Status::invalid_argument;
  }
};

template <class P, class... Fields>
Ratio(P, Fields...) -> Ratio<P>;

}  // namespace kvcondense::budget
