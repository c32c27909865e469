#pragma once

#include <cmath>
#include <cstddef>

#include <kvcondense/backend/cuda/block.cuh>
#include <kvcondense/backend/cuda/context.cuh>
#include <kvcondense/backend/cuda/launch.cuh>
#include <kvcondense/core/status.hpp>
#include <kvcondense/core/workspace.hpp>
#include <kvcondense/prim/vertical_slash.hpp>

namespace kvcondense::prim {
namespace cuda_kernels {

inline constexpr int slash_threads = 128, slash_warps = slash_threads / cuda::warp_lanes;

/// The logits of a head's newest queries, and of each query the largest and the sum of weights beside it.
struct SlashRows {
  TensorView<const float, 3> queries, keys;
  float scale;
  float *top, *total;

  /// Of query r and key j, in every lane of a warp.
  __device__ float logit(index_t h, index_t r, index_t j) const {
    const index_t group = queries.extent[0] / keys.extent[0];
    float dot = 0.0f;
    for (index_t d = cuda::lane_of_warp(); d < queries.extent[2]; d += cuda::warp_lanes) dot += queries(h, r, d) * keys(h / group, j, d);
    return scale * cuda::warp_sum(dot);
  }
  /// Tokens before query r.
  __device__ index_t before(index_t r) const { return keys.extent[1] - queries.extent[1] + r; }
};

/// A warp a key. Grid: queries, heads.
template <int Threads>
__global__ void __launch_bounds__(Threads) slash_totals(SlashRows rows) {
  static_assert(Threads == slash_threads);
  auto& scratch = cuda::shared_as<cuda::BlockScratch<float, Threads>>();
  const index_t r = blockIdx.x, h = blockIdx.y, at = h * rows.queries.extent[1] + r;
  float own = -INFINITY, sum = 0.0f;
  for (index_t j = cuda::warp_of_block(); j <= rows.before(r); j += slash_warps) {
    const float l = rows.logit(h, r, j);
    if (l > own) sum *= expf(own - l), own = l;
    sum += expf(l - own);
  }
  const float top = cuda::block_reduce(own, [](float a, float b) { return a > b ? a : b; }, scratch);
  const float part = own > -INFINITY ? sum * expf(own - top) : sum;  // a warp of NaN passes them on
  const float total = cuda::block_sum<float, Threads>(cuda::lane_of_warp() == 0 ? part : 0.0f, scratch);
  if (threadIdx.x == 0) rows.top[at] = top, rows.total[at] = total;
}

/// A warp a column and the diagonal of the same number, query after query. Grid: places in parts, heads.
template <int Threads>
__global__ void __launch_bounds__(Threads) slash_sums(SlashRows rows, TensorView<float, 2> vertical, TensorView<float, 2> slash) {
  static_assert(Threads == slash_threads);
  const index_t place = static_cast<index_t>(blockIdx.x) * slash_warps + cuda::warp_of_block(), h = blockIdx.y;
  if (place >= rows.keys.extent[1]) return;
  float column = 0.0f, diagonal = 0.0f;
  for (index_t r = 0; r < rows.queries.extent[1]; ++r) {
    const index_t at = h * rows.queries.extent[1] + r, last = rows.before(r);
    if (place > last) continue;
    const float top = rows.top[at], total = rows.total[at];
    column += expf(rows.logit(h, r, place) - top) / total;
    diagonal += expf(rows.logit(h, r, last - place) - top) / total;
  }
  if (cuda::lane_of_warp() == 0) vertical(h, place) = column, slash(h, place) = diagonal;
}

}  // namespace cuda_kernels

/// Products in another order than the CPU's; a softmax's sum is float32.
template <>
struct VerticalSlash<Cuda> {
  static std::size_t workspace_bytes(index_t heads, index_t queries) { return 2 * Scratch::bytes_for<float>(heads * queries); }

  static Status run(Context<Cuda>& ctx, TensorView<const float, 3> queries, TensorView<const float, 3> keys, float scale,
                    TensorView<float, 2> vertical, TensorView<float, 2> slash, Scratch scratch) {
    using namespace cuda_kernels;
    if (!vertical_slash_fits(queries, keys, vertical, slash)) return Status::shape_mismatch;
    const index_t heads = queries.extent[0], m = queries.extent[1];
    if (scratch.left() < workspace_bytes(heads, m)) return Status::workspace_too_small;
    SlashRows rows{queries, keys, scale, nullptr, nullptr};
    rows.top = scratch.take<float>(heads * m), rows.total = scratch.take<float>(heads * m);
    const Status s = cuda::launch(ctx, slash_totals<slash_threads>, {m, heads}, slash_threads, sizeof(cuda::BlockScratch<float, slash_threads>), rows);
    if (s != Status::ok) return s;
    return cuda::launch(ctx, slash_sums<slash_threads>, {cuda::covering(keys.extent[1], slash_warps), heads}, slash_threads, 0, rows, vertical, slash);
  }
};

}  // namespace kvcondense::prim
