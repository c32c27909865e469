#pragma once

#include <kvcondense/core/backend.hpp>
#include <kvcondense/core/config.hpp>
#include <kvcondense/prim/ends.hpp>

namespace kvcondense::prim {

/// Sets the best of every row above all others, and weighs those: out = +inf for the best first[h] places of row
/// h, (score + bias) * weight for the others.
///
///   run(ctx, RaggedView<const float> scores, RaggedView<const float> weights, const Ends* skip,
///       const index_t* first, float bias, RaggedView<float> out) -> Status
///
/// Shapes   all share offsets; out may be weights. The ends `skip[h]` (null: none) take no part and are neither
///          read nor written; first[h] may be anything, less than one lifts none.
/// Numbers  float32; the best as for `TopK`: equal scores keep the smaller place, NaN ranks below -inf, and is
///          NaN in `out` even among the best.
template <Backend B>
struct LiftTop {
  static_assert(detail::always_false<B>,
                "kvcondense: include kvcondense/cpu.hpp or kvcondense/cuda.cuh first.");
};

}  // namespace kvcondense::prim
