#pragma once

#include <cstdint>

#include <kvcondense/backend/cuda/context.cuh>
#include <kvcondense/backend/cuda/launch.cuh>
#include <kvcondense/backend/cuda/row_cutoff.cuh>
#include <kvcondense/core/status.hpp>
#include <kvcondense/core/view.hpp>
#include <kvcondense/prim/chunk_top_k.hpp>
#include <kvcondense/prim/ends.hpp>

namespace kvcondense::prim {
namespace cuda_kernels {

/// A block a row. A thread a chunk finds its key, which the cache still has when it is asked for again. Chunks that stay are all
/// whole but for the last one, so a chunk's place is `chunk` times the number of those before it.
template <int Threads>
__global__ void __launch_bounds__(Threads, 2) chunk_top_k_row(RaggedView<const float> scores, const Ends* always, index_t chunk, const index_t* total,
                                                        RaggedView<std::int32_t> slots, index_t* count, index_t* nan) {
  static_assert(Threads == winner_threads);
  WinnerShared& shared = cuda::shared_as<WinnerShared>();
  const OpenRow row = open_row(scores, always, total, slots, count);
  if (row.middle < 0) return;  // the same in all threads
  const index_t h = blockIdx.x, middle = row.middle, chunks = (middle + chunk - 1) / chunk;
  const Ends ends = row.ends;
  const float* s = row.scores;
  std::int32_t* out = slots.row(h);
  const auto end_of = [&](index_t c) { return (c + 1) * chunk < middle ? (c + 1) * chunk : middle; };
  const auto key_of = [&](index_t c) {
    std::uint32_t best = 0;
    for (index_t i = c * chunk; i < end_of(c); ++i) {
      const std::uint32_t key = rank_bits(s[i]);
      best = key > best ? key : best;
    }
    return best;
  };
  const BlockCutoff cut = block_cutoff<Threads>(
      row.wanted / chunk,
      [&](auto&& use) {
        for (index_t c = threadIdx.x; c < chunks; c += Threads) use(key_of(c), 1u);
      },
      shared.cutoff);
  write_places(out, ends.prefix, 0);
  std::int32_t* kept_at = out + ends.prefix;
  bool last_stays = false;
  const std::uint32_t kept = block_winners(
      chunks, key_of, cut, 0, [](index_t) { return false; },
      [&](index_t c, std::uint32_t place) {
        for (index_t i = c * chunk; i < end_of(c); ++i) kept_at[place * chunk + i - c * chunk] = static_cast<std::int32_t>(ends.prefix + i);
        last_stays = last_stays || c == chunks - 1;
      },
      shared);
  const bool shorter = cuda::block_sum<std::uint32_t, Threads>(static_cast<std::uint32_t>(last_stays), shared.sums) > 0;
  const index_t taken = kept * chunk - (shorter ? chunks * chunk - middle : 0);
  write_places(kept_at + taken, ends.suffix, ends.prefix + middle);
  count_nan(s, middle, nan, shared);
  if (threadIdx.x == 0) count[h] = ends.size() + taken;
}

}  // namespace cuda_kernels

template <>
struct ChunkTopK<Cuda> {
  static Status run(Context<Cuda>& ctx, RaggedView<const float> scores, const Ends* always, index_t chunk, const index_t* total,
                    RaggedView<std::int32_t> slots, index_t* count, index_t* nan = nullptr) {
    using namespace cuda_kernels;
    if (chunk < 1) return Status::invalid_argument;
    return cuda::launch(ctx, chunk_top_k_row<winner_threads>, {scores.heads}, winner_threads, sizeof(WinnerShared), scores, always, chunk, total, slots,
                        count, nan);
  }
};

}  // namespace kvcondense::prim
