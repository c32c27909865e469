#pragma once

#include <kvcondense/core/backend.hpp>
#include <kvcondense/core/policy.hpp>
#include <kvcondense/core/shape.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/evict/blocks/full_first_layers.hpp>
#include <kvcondense/evict/policy.hpp>

namespace kvcondense::budget {

/// Keeps everything in the first layers.
///
/// Idea     the first layers attend broadly, and some scores (key norms) say little there.
/// Source   the authors' code of arXiv:2406.11430 has it; that two layers are best is unverified.
/// Needs    what the policy needs.
/// Shapes   none.
/// Cost     the memory of those layers is that of the full cache.
/// Numbers  none.
/// Errors   invalid_argument when layers is negative.
template <class P>
struct SkipLayers {
  static constexpr Descriptor about{"skip_layers", Stage::evict, "arXiv:2406.11430"};
  static constexpr Inputs needs = P::needs;

  P policy{};
  index_t layers = 2;

  constexpr auto pipeline() const {
    const auto p = policy.pipeline();
    return p.with_allocate(evict::FullFirstLayers{p.allocate, layers});
  }
  Status validate(const CacheShape& shape) const {
    return layers < 0 ? Status::invalid_argument : policy.validate(shape);
  }
};

template <class P, class... Fields>
SkipLayers(P, Fields...) -> SkipLayers<P>;

}  // namespace kvcondense::budget
