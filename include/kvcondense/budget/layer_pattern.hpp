#pragma once

#include <kvcondense/core/backend.hpp>
#include <kvcondense/core/policy.hpp>
#include <kvcondense/core/shape.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/evict/blocks/full_middle_layers.hpp>
#include <kvcondense/evict/policy.hpp>

namespace kvcondense::budget {

/// Keeps everything in the layers of the middle.
///
/// Idea     layers in the middle gather from the whole text; those at both ends do with less.
/// Source   LongGen, arXiv:2410.01485: this over sink_window or strided_blocks, in models trained for it.
/// Needs    what the policy needs.
/// Shapes   none.
/// Cost     the memory of those layers is that of the full cache.
/// Numbers  with full = 1/3, layers floor(L / 3) to floor(2 L / 3) - 1 of L are full; other parts lie
///          around the same middle.
/// Errors   invalid_argument unless 0 <= full <= 1.
template <class P>
struct LayerPattern {
  static constexpr Descriptor about{"layer_pattern", Stage::evict, "arXiv:2410.01485"};
  static constexpr Inputs needs = P::needs;

  P policy{};
  double full = 1.0 / 3.0;

  constexpr auto pipeline() const {
    const auto p = policy.pipeline();
    return p.with_allocate(evict::FullMiddleLayers{p.allocate, full});
  }
  Status validate(const CacheShape& shape) const {
    return full >= 0.0 && full <= 1.0 ? policy.validate(shape) : Status::invalid_argument;
  }
};

template <class P, class... Fields>
LayerPattern(P, Fields...) -> LayerPattern<P>;

}  // namespace kvcondense::budget
