#pragma once

#include <kvcondense/core/backend.hpp>
#include <kvcondense/core/config.hpp>
#include <kvcondense/prim/page_codec.hpp>

namespace kvcondense::prim {

/// How far rows point away from another one.
///
///   smallest_cosine(RowBlock<const float> rows, dim, const float* direction, float least) -> float
///
/// Numbers  the smallest of `least` and the cosines; a row or a direction of zeros has cosine 0. Float32. NaN is left out.
template <Backend B>
struct UnitSpread {
  static_assert(detail::always_false<B>, "kvcondense: include kvcondense/cpu.hpp or kvcondense/cuda.cuh first.");
};

}  // namespace kvcondense::prim
