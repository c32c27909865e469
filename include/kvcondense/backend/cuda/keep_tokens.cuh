#pragma once

#include <cstdint>

#include <kvcondense/backend/cuda/block.cuh>
#include <kvcondense/backend/cuda/context.cuh>
#include <kvcondense/backend/cuda/launch.cuh>
#include <kvcondense/core/status.hpp>
#include <kvcondense/core/view.hpp>
#include <kvcondense/prim/keep_tokens.hpp>

namespace kvcondense::prim {
namespace cuda_kernels {

/// A block a head, a thread a slot: it looks for its token by halving, and its place is the number of those before it that stay.
template <int Threads>
__global__ void __launch_bounds__(Threads) keep_token_row(RaggedView<const std::int32_t> tokens, RaggedView<const std::int32_t> wanted, const index_t* total,
                                                          RaggedView<std::int32_t> slots, index_t* count) {
  auto& sums = cuda::shared_as<cuda::BlockScratch<std::uint32_t, Threads>>();
  const index_t h = blockIdx.x, n = tokens.length(h), m = wanted.length(h);
  const bool all = total[h] >= n;
  const std::int32_t *have = tokens.row(h), *want = wanted.row(h);
  std::int32_t* out = slots.row(h);
  index_t kept = 0;
  for (index_t first = 0; first < n; first += Threads) {
    const index_t i = first + threadIdx.x;
    bool stays = i < n;
    if (stays && !all) {
      index_t low = 0, high = m;
      while (low < high) {
        const index_t middle = low + (high - low) / 2;
        if (want[middle] < have[i]) low = middle + 1;
        else high = middle;
      }
      stays = low < m && want[low] == have[i];
    }
    const auto place = cuda::block_running<std::uint32_t, Threads>(stays ? 1u : 0u, sums);
    if (stays) out[kept + place.before] = static_cast<std::int32_t>(i);
    kept += place.all;
  }
  if (threadIdx.x == 0) count[h] = kept;
}

}  // namespace cuda_kernels

/// `total` and `count` as TopK<Cuda>: where both sides read them.
template <>
struct KeepTokens<Cuda> {
  static Status run(Context<Cuda>& ctx, RaggedView<const std::int32_t> tokens, RaggedView<const std::int32_t> wanted, const index_t* total,
                    RaggedView<std::int32_t> slots, index_t* count) {
    constexpr int threads = 256;
    return cuda::launch(ctx, cuda_kernels::keep_token_row<threads>, {tokens.heads}, threads, sizeof(cuda::BlockScratch<std::uint32_t, threads>), tokens, wanted,
                        total, slots, count);
  }
};

}  // namespace kvcondense::prim
