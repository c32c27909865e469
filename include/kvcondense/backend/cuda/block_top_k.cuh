#pragma once

#include <cstdint>

#include <kvcondense/backend/cuda/context.cuh>
#include <kvcondense/backend/cuda/launch.cuh>
#include <kvcondense/backend/cuda/open_blocks.cuh>
#include <kvcondense/backend/cuda/row_cutoff.cuh>
#include <kvcondense/core/status.hpp>
#include <kvcondense/core/view.hpp>
#include <kvcondense/prim/block_top_k.hpp>
#include <kvcondense/prim/ends.hpp>

namespace kvcondense::prim {
namespace cuda_kernels {

inline constexpr index_t cut_blocks = 16;  ///< a row; lengths are known to the device only, so blocks stride

struct BlockTopKShared {
  WinnerShared winners;
  cuda::BlockScratch<index_t, winner_threads> run;
};

/// What a block of slots gets, and where its list begins, follows from its number alone. Grid: blocks, rows.
template <int Threads>
__global__ void __launch_bounds__(Threads, 2) block_top_k_row(RaggedView<const float> scores, const Ends* always, index_t block, const index_t* total,
                                                        RaggedView<std::int32_t> slots, index_t* count, index_t* nan) {
  static_assert(Threads == winner_threads);
  BlockTopKShared& shared = cuda::shared_as<BlockTopKShared>();
  const index_t h = blockIdx.y, n = scores.length(h);
  const Ends ends = always == nullptr ? Ends{} : always[h].within(n);
  const float* s = scores.row(h);
  std::int32_t* out = slots.row(h);
  const bool first_block = blockIdx.x == 0;
  if (total[h] >= n) {
    if (first_block) write_places(out, n, 0);
    if (first_block && threadIdx.x == 0) count[h] = n;
    return;
  }
  const Competing run = competing<Threads>(s, n, ends, shared.run);
  const index_t wanted = total[h] - (n - run.size());
  const index_t places = wanted < 0 ? 0 : wanted < run.size() ? wanted : run.size();
  if (first_block) {
    write_places(out, run.first, 0);
    write_places(out + run.first + places, n - run.last, run.last);
    if (threadIdx.x == 0) count[h] = run.first + places + n - run.last;
  }
  const BlockShares shares{run.size(), block, places};
  for (index_t b = blockIdx.x; b * block < run.size(); b += gridDim.x) {
    const index_t first = run.first + b * block, left = run.last - first, m = left < block ? left : block;
    const BlockCutoff cut = block_cutoff<Threads>(s + first, m, shares.of(b), shared.winners.cutoff);
    std::int32_t* to = out + run.first + shares.before(b);
    block_winners(
        m, [&](index_t i) { return rank_bits(s[first + i]); }, cut, 0, [](index_t) { return false; },
        [&](index_t i, std::uint32_t place) { to[place] = static_cast<std::int32_t>(first + i); }, shared.winners);
    count_nan(s + first, m, nan, shared.winners);
  }
}

}  // namespace cuda_kernels

template <>
struct BlockTopK<Cuda> {
  static Status run(Context<Cuda>& ctx, RaggedView<const float> scores, const Ends* always, index_t block, const index_t* total,
                    RaggedView<std::int32_t> slots, index_t* count, index_t* nan = nullptr) {
    using namespace cuda_kernels;
    if (block < 1) return Status::invalid_argument;
    return cuda::launch(ctx, block_top_k_row<winner_threads>, {cut_blocks, scores.heads}, winner_threads, sizeof(BlockTopKShared), scores, always, block,
                        total, slots, count, nan);
  }
};

}  // namespace kvcondense::prim
