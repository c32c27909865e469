#pragma once

#include <kvcondense/core/backend.hpp>
#include <kvcondense/core/policy.hpp>
#include <kvcondense/core/shape.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/evict/blocks/pyramid.hpp>
#include <kvcondense/evict/policy.hpp>

namespace kvcondense::budget {

/// Gives lower layers more slots and upper layers fewer; the policy's own budget is the mean.
///
/// Idea     attention is broad in lower layers and narrow in upper ones.
/// Source   PyramidKV, arXiv:2406.02069; the published method is Pyramid over SnapKV.
/// Needs    what the policy needs.
/// Shapes   none.
/// Cost     a few operations per layer and head.
/// Numbers  with base = budget - protected slots, the last layer gets base / beta, the first
///          2 * base - base / beta, or all that exist. Layers together hold layers * base exactly,
///          rounded by largest remainders; `form` chooses the roundings of the published codes.
///          Prompts shorter than 2 * base get the mean in every layer.
/// Errors   invalid_argument when beta < 1.
template <class P>
struct Pyramid {
  static constexpr Descriptor about{"pyramid", Stage::evict, "arXiv:2406.02069"};
  static constexpr Inputs needs = P::needs;

  P policy{};
  double beta = 20.0;
  evict::PyramidForm form = evict::PyramidForm::exact;

  constexpr auto pipeline() const {
    const auto p = policy.pipeline();
    return p.with_allocate(evict::PyramidShare{p.allocate, beta, form});
  }
  Status validate(const CacheShape& shape) const {
    const bool good = beta >= 1.0 && beta <= 1e6;
    return good ? policy.validate(shape) : Status::invalid_argument;
  }
};

template <class P, class... Fields>
Pyramid(P, Fields...) -> Pyramid<P>;

}  // namespace kvcondense::budget
