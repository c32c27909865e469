#pragma once

#include <kvcondense/core/backend.hpp>
#include <kvcondense/core/policy.hpp>
#include <kvcondense/core/shape.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/evict/blocks/allocate.hpp>
#include <kvcondense/evict/policy.hpp>

namespace kvcondense::budget {

/// Gives every head of every layer the same number of slots, whatever the policy's own fields say.
///
/// Idea     compare policies at one budget.
/// Source   none.
/// Needs    what the policy needs.
/// Shapes   none.
/// Cost     none.
/// Numbers  protected slots count; where more are protected than the budget, all of them stay.
/// Errors   invalid_argument when tokens is not positive or less than the policy protects.
template <class P>
struct Uniform {
  static constexpr Descriptor about{"uniform", Stage::evict, "none"};
  static constexpr Inputs needs = P::needs;

  P policy{};
  index_t tokens = 1024;

  constexpr auto pipeline() const {
    return policy.pipeline().with_allocate(evict::Absolute{tokens});
  }
  Status validate(const CacheShape& shape) const {
    if (tokens < 1 || tokens < policy.pipeline().protect.most()) return Status::invalid_argument;
    return policy.validate(shape);
  }
};

template <class P, class... Fields>
Uniform(P, Fields...) -> Uniform<P>;

}  // namespace kvcondense::budget
