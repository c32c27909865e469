#pragma once

#include <kvcondense/core/backend.hpp>
#include <kvcondense/core/config.hpp>

namespace kvcondense::prim {

/// Mean and covariance of query vectors, kept up to date while tokens come.
///
///   add(ctx, TensorView<const float, 3> queries, index_t counted, TensorView<float, 2> mean,
///       TensorView<float, 3> covariance) -> Status
///
/// Shapes   queries [q_heads, tokens, head_dim], mean [q_heads, head_dim], covariance [q_heads, head_dim,
///          head_dim]; both are of `counted` vectors before the call, and of counted + tokens after it.
///          With counted = 0 they are not read.
/// Numbers  float32, one vector after another (Welford), divided by the number of vectors.
/// Cost     head_dim^2 per vector; heads are shared among threads; no workspace.
/// Errors   shape_mismatch; invalid_argument when counted is negative.
template <Backend B>
struct QueryMoments {
  static_assert(detail::always_false<B>, "kvcondense: include kvcondense/cpu.hpp or kvcondense/cuda.cuh first.");
};

}  // namespace kvcondense::prim
