#pragma once

#include <kvcondense/backend/cuda/block.cuh>
#include <kvcondense/backend/cuda/context.cuh>
#include <kvcondense/backend/cuda/launch.cuh>
#include <kvcondense/core/status.hpp>
#include <kvcondense/core/view.hpp>
#include <kvcondense/prim/row_deviation.hpp>

namespace kvcondense::prim {
namespace cuda_kernels {

inline constexpr int deviation_threads = 128;

/// A block a token; threads walk channels of one head after the other.
template <int Threads>
__global__ void __launch_bounds__(Threads) row_deviation(TensorView<const float, 3> a, TensorView<const float, 3> b, float* out) {
  auto& scratch = cuda::shared_as<cuda::BlockScratch<float, Threads>>();
  const index_t t = blockIdx.x, dim = a.extent[2], n = a.extent[0] * dim;
  float sum = 0.0f;
  for (index_t i = threadIdx.x; i < n; i += Threads) {
    const float x = a(i / dim, t, i % dim) - b(i / dim, t, i % dim);
    sum += x * x;
  }
  sum = cuda::block_sum<float, Threads>(sum, scratch);
  if (threadIdx.x == 0) out[t] += sum;
}

}  // namespace cuda_kernels

/// Sums of a token in another order than the CPU's, always the same one.
template <>
struct RowDeviation<Cuda> {
  static Status run(Context<Cuda>& ctx, TensorView<const float, 3> a, TensorView<const float, 3> b, float* out) {
    using namespace cuda_kernels;
    for (int i = 0; i < 3; ++i)
      if (a.extent[i] != b.extent[i]) return Status::shape_mismatch;
    return cuda::launch(ctx, row_deviation<deviation_threads>, {a.extent[1]}, deviation_threads, sizeof(cuda::BlockScratch<float, deviation_threads>), a, b, out);
  }
};

}  // namespace kvcondense::prim
