#pragma once

#include <kvcondense/core/backend.hpp>
#include <kvcondense/core/config.hpp>
#include <kvcondense/core/view.hpp>

namespace kvcondense::prim {

/// What the newest queries of a prompt say of columns and diagonals: vertical[h, j] = sum of their attention to key j, slash[h, o] = sum
/// of that to keys o tokens before them.
///
///   run(ctx, TensorView<const float, 3> queries, TensorView<const float, 3> keys, float softmax_scale,
///       TensorView<float, 2> vertical, TensorView<float, 2> slash, Scratch) -> Status
///   workspace_bytes(heads, queries)
///
/// Shapes   queries [q_heads, m, dim], the last m tokens of a prompt with keys [kv_heads, n, dim]; vertical and slash [q_heads, n].
/// Numbers  float32 sums over queries in their order; a softmax's sum is double on the CPU. NaN in a logit makes all weights of its query NaN.
/// Cost     q_heads * m * n dot products, twice on the CPU, three times on CUDA, instead of room for them.
/// Errors   shape_mismatch; workspace_too_small, nothing is written.
template <Backend B>
struct VerticalSlash {
  static_assert(detail::always_false<B>, "kvcondense: include kvcondense/cpu.hpp or kvcondense/cuda.cuh first.");
};

/// Whether a call of it has views that agree.
inline bool vertical_slash_fits(const TensorView<const float, 3>& queries, const TensorView<const float, 3>& keys, const TensorView<float, 2>& vertical,
                                const TensorView<float, 2>& slash) {
  const index_t heads = queries.extent[0], kv = keys.extent[0], n = keys.extent[1];
  return kv > 0 && heads % kv == 0 && queries.extent[1] <= n && queries.extent[2] == keys.extent[2] && vertical.extent[0] == heads &&
         slash.extent[0] == heads && vertical.extent[1] == n && slash.extent[1] == n;
}

}  // namespace kvcondense::prim
