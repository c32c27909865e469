#pragma once

#include <algorithm>

#include <kvcondense/core/backend.hpp>
#include <kvcondense/core/model_arrays.hpp>
#include <kvcondense/core/policy.hpp>
#include <kvcondense/core/shape.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/evict/blocks/weighted_share.hpp>
#include <kvcondense/evict/policy.hpp>

namespace kvcondense::budget {

/// What a layer keeps when it evicts this part of its tokens.
struct KeptPart {
  double of(float evicted) const { return std::max(0.0, 1.0 - static_cast<double>(evicted)); }
  index_t least(index_t) const { return 0; }
};

/// Gives each layer what holds the same part of its attention in all layers.
///
/// Idea     some layers attend to few tokens and others to many; at one level of attention kept, each
///          needs another number of tokens.
/// Source   PrefixKV, arXiv:2412.03409; `budget::find_prefix_mass` is its search for the level.
/// Needs    `evicted`, the part of its tokens that each layer gives up at the level, measured once on a
///          few samples; and what the policy needs.
/// Shapes   evicted [layers].
/// Cost     a few passes over the table per layer and step; no allocation.
/// Numbers  layers share layers * budget in proportion to 1 - evicted, protected slots included, rounded
///          by largest remainders: the total is exact. No layer gets more than there are tokens; the
///          others share the rest.
/// Differs  the paper keeps exactly what the table says; here the policy's own budget is the mean, and
///          the table says who gets more. With the budget it was measured at both are the same.
/// Errors   missing_input without the table; shape_mismatch when it is not of this model;
///          invalid_argument unless 0 <= evicted <= 1 and some layer keeps something.
template <class P>
struct PrefixMass {
  static constexpr Descriptor about{"prefix_mass", Stage::evict, "arXiv:2412.03409"};
  static constexpr Inputs needs = P::needs;

  P policy{};
  LayerTable evicted{};  ///< borrowed

  const char* missing() const { return evicted.empty() ? "evicted" : nullptr; }

  constexpr auto pipeline() const {
    const auto p = policy.pipeline();
    return p.with_allocate(evict::LayerShare<decltype(p.allocate), KeptPart>{p.allocate, evicted, {}});
  }
  Status validate(const CacheShape& shape) const {
    if (evicted.empty()) return Status::missing_input;
    if (!evicted.fits(shape)) return Status::shape_mismatch;
    return evicted.within(0.0f, 1.0f) && !evicted.within(1.0f, 1.0f) ? policy.validate(shape) : Status::invalid_argument;
  }
};

template <class P, class... Fields>
PrefixMass(P, Fields...) -> PrefixMass<P>;

}  // namespace kvcondense::budget
