#pragma once

#include <kvcondense/backend/cuda/block.cuh>
#include <kvcondense/backend/cuda/context.cuh>
#include <kvcondense/backend/cuda/launch.cuh>
#include <kvcondense/core/status.hpp>
#include <kvcondense/prim/k_means.hpp>

namespace kvcondense::prim {
namespace cuda_kernels {

inline constexpr int metric_threads = 128;

/// A block a row, a thread columns of the metric. Grid: rows.
template <int Threads>
__global__ void __launch_bounds__(Threads) metric_lengths(RowBlock<const float> rows, index_t dim, const float* l, float* out) {
  auto& scratch = cuda::shared_as<cuda::BlockScratch<float, Threads>>();
  const float* row = rows.data + blockIdx.x * rows.step;
  float sum = 0.0f;
  for (index_t c = threadIdx.x; c < dim; c += Threads) {
    float x = l == nullptr ? row[c] : 0.0f;
    for (index_t d = 0; l != nullptr && d < dim; ++d) x += row[d] * l[d * dim + c];
    sum += x * x;
  }
  sum = cuda::block_sum<float, Threads>(sum, scratch);
  if (threadIdx.x == 0) out[blockIdx.x] = sum;
}

}  // namespace cuda_kernels

/// Many rows in a call: out[i] = |row i times l|^2. Squares are added in another order than the CPU's.
template <>
struct MetricLength<Cuda> {
  static Status squared(Context<Cuda>& ctx, RowBlock<const float> rows, index_t dim, const float* l, float* out) {
    using namespace cuda_kernels;
    return cuda::launch(ctx, metric_lengths<metric_threads>, {rows.rows}, metric_threads, sizeof(cuda::BlockScratch<float, metric_threads>), rows, dim, l, out);
  }
};

}  // namespace kvcondense::prim
