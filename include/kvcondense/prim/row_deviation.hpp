#pragma once

#include <kvcondense/core/backend.hpp>
#include <kvcondense/core/config.hpp>

namespace kvcondense::prim {

/// How far rows of tokens have moved: out[t] += sum over heads and channels of (a[h, t, d] - b[h, t, d])^2.
///
///   run(ctx, TensorView<const float, 3> a, TensorView<const float, 3> b, float* out) -> Status
///
/// Shapes   a and b [heads, tokens, dim], out [tokens].
/// Numbers  float32, heads in order. NaN anywhere gives NaN.
/// Cost     one read of both.
/// Errors   shape_mismatch.
template <Backend B>
struct RowDeviation {
  static_assert(detail::always_false<B>, "kvcondense: include kvcondense/cpu.hpp or kvcondense/cuda.cuh first.");
};

}  // namespace kvcondense::prim
