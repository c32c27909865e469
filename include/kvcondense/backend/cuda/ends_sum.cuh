#pragma once

#include <kvcondense/backend/cuda/block.cuh>
#include <kvcondense/backend/cuda/context.cuh>
#include <kvcondense/backend/cuda/launch.cuh>
#include <kvcondense/core/status.hpp>
#include <kvcondense/core/view.hpp>
#include <kvcondense/prim/ends_sum.hpp>

namespace kvcondense::prim {
namespace cuda_kernels {

inline constexpr int ends_threads = 256;

/// A block a row.
template <int Threads>
__global__ void __launch_bounds__(Threads) sum_ends(RaggedView<const float> x, const Ends* ends, float* sum) {
  auto& shared = cuda::shared_as<cuda::BlockScratch<float, Threads>>();
  const index_t h = blockIdx.x, n = x.length(h);
  const Ends e = ends[h].within(n);
  float all = 0.0f;
  for (index_t i = threadIdx.x; i < e.size(); i += Threads) all += x.row(h)[i < e.prefix ? i : n - e.size() + i];
  all = cuda::block_sum<float, Threads>(all, shared);
  if (threadIdx.x == 0) sum[h] = all;
}

}  // namespace cuda_kernels

template <>
struct EndsSum<Cuda> {
  static Status run(Context<Cuda>& ctx, RaggedView<const float> x, const Ends* ends, float* sum) {
    using namespace cuda_kernels;
    return cuda::launch(ctx, sum_ends<ends_threads>, {x.heads}, ends_threads, sizeof(cuda::BlockScratch<float, ends_threads>), x, ends, sum);
  }
};

}  // namespace kvcondense::prim
