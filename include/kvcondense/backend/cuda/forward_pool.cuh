#pragma once

#include <cmath>

#include <kvcondense/backend/cuda/block.cuh>
#include <kvcondense/backend/cuda/context.cuh>
#include <kvcondense/backend/cuda/launch.cuh>
#include <kvcondense/core/status.hpp>
#include <kvcondense/core/view.hpp>
#include <kvcondense/prim/forward_pool.hpp>

namespace kvcondense::prim {
namespace cuda_kernels {

inline constexpr int forward_threads = 256;
inline constexpr index_t forward_blocks = 32;  ///< lengths are known to the device only, so blocks stride

struct ForwardShared {
  float sum[forward_threads + most_forward_pool];
};

/// A block a stretch of places: their sums and those of the places behind them once, then a window each. Rows that are not equally
/// long: NaN everywhere.
template <int Threads>
__global__ void __launch_bounds__(Threads) pool_forward(RaggedView<const float> x, index_t width, RaggedView<float> out) {
  ForwardShared& shared = cuda::shared_as<ForwardShared>();
  const index_t step = forward_blocks * Threads;
  bool equal = true;
  for (index_t h = 1; h < x.heads; ++h) equal = equal && x.length(h) == x.length(0);
  for (index_t h = 0; h < out.heads && !equal; ++h)
    for (index_t j = static_cast<index_t>(blockIdx.x) * Threads + threadIdx.x; j < out.length(h); j += step) out.row(h)[j] = NAN;
  const index_t n = equal && x.heads > 0 ? x.length(0) : 0;
  for (index_t first = static_cast<index_t>(blockIdx.x) * Threads; first < n; first += step) {
    __syncthreads();
    for (index_t i = threadIdx.x; i < Threads + width - 1; i += Threads) {
      float sum = 0.0f;
      for (index_t h = 0; h < x.heads && first + i < n; ++h) sum = __fadd_rn(sum, x.row(h)[first + i]);
      shared.sum[i] = first + i < n ? sum : -INFINITY;
    }
    __syncthreads();
    const index_t j = first + threadIdx.x;
    const float own = shared.sum[threadIdx.x];
    float most = own;
    for (index_t i = 1; i < width; ++i) {
      const float tap = shared.sum[threadIdx.x + i];
      if (own == own && tap > most) most = tap;
    }
    for (index_t h = 0; h < out.heads && j < n; ++h) out.row(h)[j] = __fadd_rn(out.row(h)[j], most);
  }
}

}  // namespace cuda_kernels

/// Bit for bit the CPU's. Whether rows are equally long is not known on the host: of others every number becomes NaN instead of a
/// Status. `out` is another array than `x`.
template <>
struct ForwardPool<Cuda> {
  static Status add(Context<Cuda>& ctx, RaggedView<const float> x, index_t width, RaggedView<float> out) {
    using namespace cuda_kernels;
    if (width < 1 || width > most_forward_pool) return Status::invalid_argument;
    return cuda::launch(ctx, pool_forward<forward_threads>, {out.heads > 0 ? forward_blocks : 0}, forward_threads, sizeof(ForwardShared), x, width, out);
  }
};

}  // namespace kvcondense::prim
