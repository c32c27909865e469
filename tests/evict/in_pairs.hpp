#pragma once

#include <kvcondense/core/policy.hpp>
#include <kvcondense/core/shape.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/core/step_inputs.hpp>

namespace kvcondense::test {

/// Any policy, of which every second layer takes over what the one before it chose. No word makes one at run time.
template <class P>
struct InPairs {
  static constexpr Descriptor about{"in_pairs", Stage::evict, "a test"};
  static constexpr Inputs needs = P::needs;
  P policy{};
  constexpr auto pipeline() const {
    auto p = policy.pipeline();
    p.reuse = {2};
    return p;
  }
  Status validate(const CacheShape& s) const { return policy.validate(s); }
};
template <class P>
InPairs(P) -> InPairs<P>;

}  // namespace kvcondense::test
