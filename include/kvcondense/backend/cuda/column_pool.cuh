#pragma once

#include <cmath>

#include <kvcondense/backend/cuda/context.cuh>
#include <kvcondense/backend/cuda/launch.cuh>
#include <kvcondense/core/status.hpp>
#include <kvcondense/core/view.hpp>
#include <kvcondense/prim/column_pool.hpp>

namespace kvcondense::prim {
namespace cuda_kernels {

inline constexpr int pool_threads = 256;
inline constexpr index_t pool_blocks = 16;  ///< a head; lengths are known to the device only, so blocks stride

/// Grid: blocks, heads. Kernels are short: what a thread reads its neighbours have in the cache.
template <int Threads>
__global__ void __launch_bounds__(Threads) pool_columns(RaggedView<const float> in, const Ends* skip, Pool pool, index_t kernel, RaggedView<float> out) {
  const index_t head = blockIdx.y, half = kernel / 2;
  const Ends ends = skip == nullptr ? Ends{} : skip[head].within(in.length(head));
  const index_t n = in.length(head) - ends.size();
  const float* x = in.row(head) + ends.prefix;
  float* y = out.row(head) + ends.prefix;
  for (index_t j = static_cast<index_t>(blockIdx.x) * Threads + threadIdx.x; j < n; j += pool_blocks * Threads) {
    const index_t first = j - half > 0 ? j - half : 0, last = j + half + 1 < n ? j + half + 1 : n;
    float most = -INFINITY, sum = 0.0f;
    index_t taps = 0;
    for (index_t i = first; i < last; ++i) {
      const float tap = x[i];
      most = tap > most ? tap : most;
      if (tap == tap) sum += tap, ++taps;
    }
    const float mean = sum / static_cast<float>(pool == Pool::average ? kernel : taps);
    y[j] = x[j] != x[j] ? x[j] : pool == Pool::maximum ? most : mean;
  }
}

}  // namespace cuda_kernels

/// Bit for bit the CPU's.
template <>
struct ColumnPool<Cuda> {
  static Status run(Context<Cuda>& ctx, RaggedView<const float> in, const Ends* skip, Pool pool, index_t kernel, RaggedView<float> out) {
    using namespace cuda_kernels;
    if (kernel < 1 || kernel % 2 == 0) return Status::invalid_argument;
    return cuda::launch(ctx, pool_columns<pool_threads>, {pool_blocks, in.heads}, pool_threads, 0, in, skip, pool, kernel, out);
  }
};

}  // namespace kvcondense::prim
