#pragma once

#include <cstdint>

#include <kvcondense/backend/cuda/block.cuh>
#include <kvcondense/backend/cuda/context.cuh>
#include <kvcondense/backend/cuda/launch.cuh>
#include <kvcondense/core/status.hpp>
#include <kvcondense/core/view.hpp>
#include <kvcondense/prim/count_above.hpp>

namespace kvcondense::prim {
namespace cuda_kernels {

inline constexpr int count_threads = 256;

/// A block a row.
template <int Threads>
__global__ void __launch_bounds__(Threads) count_above(RaggedView<const float> scores, const Ends* skip, float least, index_t* count) {
  auto& shared = cuda::shared_as<cuda::BlockScratch<std::uint32_t, Threads>>();
  const index_t h = blockIdx.x, n = scores.length(h);
  const Ends ends = skip == nullptr ? Ends{} : skip[h].within(n);
  std::uint32_t above = 0;
  for (index_t i = ends.prefix + threadIdx.x; i < n - ends.suffix; i += Threads) above += static_cast<std::uint32_t>(scores.row(h)[i] >= least);
  above = cuda::block_sum<std::uint32_t, Threads>(above, shared);
  if (threadIdx.x == 0) count[h] = above;
}

}  // namespace cuda_kernels

template <>
struct CountAbove<Cuda> {
  static Status run(Context<Cuda>& ctx, RaggedView<const float> scores, const Ends* skip, float least, index_t* count) {
    using namespace cuda_kernels;
    return cuda::launch(ctx, cuda_kernels::count_above<count_threads>, {scores.heads}, count_threads, sizeof(cuda::BlockScratch<std::uint32_t, count_threads>), scores,
                        skip, least, count);
  }
};

}  // namespace kvcondense::prim
