#pragma once

#include <cmath>
#include <cstdint>

#include <kvcondense/backend/cuda/block.cuh>
#include <kvcondense/backend/cuda/context.cuh>
#include <kvcondense/backend/cuda/launch.cuh>
#include <kvcondense/core/random.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/core/view.hpp>
#include <kvcondense/prim/draw_ranks.hpp>

namespace kvcondense::prim {
namespace cuda_kernels {

inline constexpr int draw_rank_threads = 256;
inline constexpr index_t draw_rank_blocks = 16;  ///< a head; lengths are known to the device only, so blocks stride

/// Grid: blocks, heads.
template <int Threads>
__global__ void __launch_bounds__(Threads) draw_ranks(float scale, std::uint64_t seed, RaggedView<float> out) {
  const index_t head = blockIdx.y, n = out.length(head);
  const std::uint64_t key = random_bits(seed, static_cast<std::uint64_t>(head));
  float* row = out.row(head);
  for (index_t j = static_cast<index_t>(blockIdx.x) * Threads + threadIdx.x; j < n; j += draw_rank_blocks * Threads) {
    const float u = random_uniform(key, static_cast<std::uint64_t>(j)) + 0x1p-25f;  // never 0 or 1
    row[j] = __fadd_rn(__fmul_rn(scale, row[j]), -logf(-logf(u)));
  }
}

}  // namespace cuda_kernels

template <>
struct DrawRanks<Cuda> {
  static Status run(Context<Cuda>& ctx, float scale, std::uint64_t seed, RaggedView<float> out) {
    using namespace cuda_kernels;
    return cuda::launch(ctx, draw_ranks<draw_rank_threads>, {draw_rank_blocks, out.heads}, draw_rank_threads, 0, scale, seed, out);
  }
};

}  // namespace kvcondense::prim
