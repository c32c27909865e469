#pragma once

#include <cmath>

#include <kvcondense/backend/cuda/block.cuh>
#include <kvcondense/backend/cuda/context.cuh>
#include <kvcondense/backend/cuda/launch.cuh>
#include <kvcondense/core/status.hpp>
#include <kvcondense/core/view.hpp>
#include <kvcondense/prim/softmax_rows.hpp>

namespace kvcondense::prim {
namespace cuda_kernels {

inline constexpr int softmax_threads = 256, fold_threads = 256;
inline constexpr index_t fold_blocks = 16;  ///< a row; lengths are known to the device only, so blocks stride

struct SoftmaxShared {
  float top[softmax_threads / cuda::warp_lanes];
  double sum[softmax_threads / cuda::warp_lanes];
};

/// A block a row.
template <int Threads>
__global__ void __launch_bounds__(Threads) softmax_row(float scale, RaggedView<float> rows) {
  SoftmaxShared& shared = cuda::shared_as<SoftmaxShared>();
  const index_t row = blockIdx.x, n = rows.length(row);
  float* x = rows.row(row);
  const int lane = cuda::lane_of_warp(), warp = cuda::warp_of_block();
  float top = -INFINITY;
  for (index_t i = threadIdx.x; i < n; i += Threads) top = x[i] > top ? x[i] : top;
  top = cuda::warp_max(top);
  if (lane == 0) shared.top[warp] = top;
  __syncthreads();
  for (int w = 0; w < Threads / cuda::warp_lanes; ++w) top = shared.top[w] > top ? shared.top[w] : top;
  if (top == -INFINITY) {
    for (index_t i = threadIdx.x; i < n; i += Threads) x[i] = x[i] == x[i] ? 0.0f : x[i];
    return;
  }
  double sum = 0.0;
  for (index_t i = threadIdx.x; i < n; i += Threads) {
    x[i] = x[i] == top ? 1.0f : expf(scale * (x[i] - top));
    if (x[i] == x[i]) sum += static_cast<double>(x[i]);
  }
  sum = cuda::warp_sum(sum);
  if (lane == 0) shared.sum[warp] = sum;
  __syncthreads();
  sum = 0.0;
  for (int w = 0; w < Threads / cuda::warp_lanes; ++w) sum += shared.sum[w];
  const float inverse = static_cast<float>(1.0 / sum);
  for (index_t i = threadIdx.x; i < n; i += Threads) x[i] *= inverse;
}

/// Grid: blocks, rows of out.
template <int Threads>
__global__ void __launch_bounds__(Threads) fold_row(RaggedView<const float> rows, index_t group, RowFold how, RaggedView<float> out) {
  const index_t row = blockIdx.y, n = out.length(row);
  for (index_t i = static_cast<index_t>(blockIdx.x) * Threads + threadIdx.x; i < n; i += fold_blocks * Threads) {
    float to = rows.row(row * group)[i];
    for (index_t g = 1; g < group; ++g) {
      const float x = rows.row(row * group + g)[i];
      to = how != RowFold::largest ? to + x : x > to || to != to ? x : to;
    }
    out.row(row)[i] = how == RowFold::mean && group > 1 ? to / static_cast<float>(group) : to;
  }
}

}  // namespace cuda_kernels

/// Sums in another order than the CPU's, in double too.
template <>
struct SoftmaxRows<Cuda> {
  static Status run(Context<Cuda>& ctx, float scale, RaggedView<float> rows) {
    using namespace cuda_kernels;
    return cuda::launch(ctx, softmax_row<softmax_threads>, {rows.heads}, softmax_threads, sizeof(SoftmaxShared), scale, rows);
  }
};

/// Bit for bit the CPU's.
template <>
struct FoldRows<Cuda> {
  static Status run(Context<Cuda>& ctx, RaggedView<const float> rows, index_t group, RowFold how, RaggedView<float> out) {
    using namespace cuda_kernels;
    if (group < 1) return Status::invalid_argument;
    return cuda::launch(ctx, fold_row<fold_threads>, {fold_blocks, out.heads}, fold_threads, 0, rows, group, how, out);
  }
};

}  // namespace kvcondense::prim
