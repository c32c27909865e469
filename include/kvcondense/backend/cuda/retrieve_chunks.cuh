#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>

#include <kvcondense/backend/cuda/block.cuh>
#include <kvcondense/backend/cuda/context.cuh>
#include <kvcondense/backend/cuda/launch.cuh>
#include <kvcondense/backend/cuda/row_cutoff.cuh>
#include <kvcondense/core/status.hpp>
#include <kvcondense/core/view.hpp>
#include <kvcondense/core/workspace.hpp>
#include <kvcondense/prim/chunk_memory.hpp>

namespace kvcondense::prim {
namespace cuda_kernels {

inline constexpr int chunk_threads = winner_threads, chunk_warps = chunk_threads / cuda::warp_lanes;
inline constexpr index_t chunk_tile = 64;  ///< chunks that a block scores

/// Of every query row: the score of each chunk, the chosen chunks, a weight per slot of those.
struct ChunkRoom {
  float *scores, *weights;
  std::int32_t* picked;
};

/// A thread a channel. Grid: chunks, heads.
template <int Threads>
__global__ void __launch_bounds__(Threads) chunk_means(TensorView<const float, 3> keys, index_t chunk, TensorView<float, 3> out) {
  const index_t c = blockIdx.x, h = blockIdx.y;
  const float part = 1.0f / static_cast<float>(chunk);
  for (index_t d = threadIdx.x; d < keys.extent[2]; d += Threads) {
    float sum = 0.0f;
    for (index_t i = 0; i < chunk; ++i) sum += keys(h, c * chunk + i, d);
    out(h, c, d) = sum * part;
  }
}

/// A query row (query head, token) of a block.
struct QueryRow {
  TensorView<const float, 3> queries;
  index_t group;

  __device__ index_t head() const { return blockIdx.x / queries.extent[1]; }
  __device__ index_t token() const { return blockIdx.x % queries.extent[1]; }
  __device__ index_t kv_head() const { return head() / group; }
  /// The product with row r of x, in every lane of a warp.
  __device__ float dot(const TensorView<const float, 3>& x, index_t r) const {
    float sum = 0.0f;
    for (index_t d = cuda::lane_of_warp(); d < queries.extent[2]; d += cuda::warp_lanes) sum += queries(head(), token(), d) * x(kv_head(), r, d);
    return cuda::warp_sum(sum);
  }
};

/// A warp a chunk. Grid: query rows, tiles of chunks.
template <int Threads>
__global__ void __launch_bounds__(Threads) score_chunks(ChunkMemory memory, QueryRow row, ChunkRoom room) {
  const index_t first = static_cast<index_t>(blockIdx.y) * chunk_tile, last = first + chunk_tile < memory.chunks ? first + chunk_tile : memory.chunks;
  for (index_t c = first + cuda::warp_of_block(); c < last; c += chunk_warps) {
    const float score = row.dot(memory.means, memory.place(c));
    if (cuda::lane_of_warp() == 0) room.scores[blockIdx.x * memory.chunks + c] = score;
  }
}

struct ChunkShared {
  WinnerShared winners;
  cuda::BlockScratch<float, chunk_threads> sums;
};

/// Chooses a row's chunks and attends to them: a warp a slot, then a thread a channel. Grid: query rows.
template <int Threads>
__global__ void __launch_bounds__(Threads, 2) attend_chunks(ChunkMemory memory, QueryRow row, index_t most, float scale, TensorView<float, 3> out,
                                                         TensorView<float, 2> lse, TensorView<std::int32_t, 3> chosen, ChunkRoom room) {
  static_assert(Threads == chunk_threads);
  ChunkShared& shared = cuda::shared_as<ChunkShared>();
  const index_t r = blockIdx.x, h = row.head(), t = row.token(), head = row.kv_head(), chunk = memory.chunk;
  const float* score = room.scores + r * memory.chunks;
  std::int32_t* picked = room.picked + r * most;
  float* weight = room.weights + r * most * chunk;
  const auto key_of = [&](index_t c) { return rank_bits(score[c]); };  // 0: NaN, which is never chosen
  std::uint32_t good = 0;
  for (index_t c = threadIdx.x; c < memory.chunks; c += Threads) good += static_cast<std::uint32_t>(key_of(c) != 0);
  good = cuda::block_sum<std::uint32_t, Threads>(good, shared.winners.sums);
  const BlockCutoff cut = block_cutoff<Threads>(
      most < good ? most : good,
      [&](auto&& use) {
        for (index_t c = threadIdx.x; c < memory.chunks; c += Threads)
          if (key_of(c) != 0) use(key_of(c), 1u);
      },
      shared.winners.cutoff);
  const index_t n = block_winners(
      memory.chunks, key_of, cut, 0, [](index_t) { return false; }, [&](index_t c, std::uint32_t place) { picked[place] = static_cast<std::int32_t>(c); },
      shared.winners);
  __syncthreads();
  for (index_t i = threadIdx.x; i < most && chosen.data != nullptr; i += Threads) chosen(h, t, i) = i < n ? picked[i] : -1;

  const auto slot = [&](index_t i) { return memory.place(picked[i / chunk]) * chunk + i % chunk; };
  float top = -INFINITY, sum = 0.0f;
  for (index_t i = cuda::warp_of_block(); i < n * chunk; i += chunk_warps) {
    const float logit = row.dot(memory.keys, slot(i)) * scale;
    if (cuda::lane_of_warp() == 0) weight[i] = logit;
    top = logit > top ? logit : top;
  }
  top = cuda::block_reduce(top, [](float a, float b) { return a > b ? a : b; }, shared.sums);
  for (index_t i = threadIdx.x; i < n * chunk; i += Threads) sum += weight[i] = expf(weight[i] - top);
  sum = cuda::block_sum<float, Threads>(sum, shared.sums);
  for (index_t d = threadIdx.x; d < out.extent[2]; d += Threads) {
    float x = 0.0f;
    for (index_t i = 0; i < n * chunk; ++i) x += weight[i] / sum * memory.values(head, slot(i), d);
    out(h, t, d) = x;
  }
  if (threadIdx.x == 0 && lse.data != nullptr) lse(h, t) = n == 0 ? -INFINITY : top + logf(sum);
}

}  // namespace cuda_kernels

/// `means` bit for bit the CPU's. Products in another order: two chunks whose scores are closer than rounding may be taken for each other.
template <>
struct RetrieveChunks<Cuda> {
  /// rows: query heads times tokens.
  static std::size_t workspace_bytes(index_t rows, index_t chunks, index_t most, index_t chunk) {
    return Scratch::bytes_for<float>(rows * chunks) + Scratch::bytes_for<float>(rows * most * chunk) +
           Scratch::bytes_for<std::int32_t>(rows * most);
  }

  static Status means(Context<Cuda>& ctx, TensorView<const float, 3> keys, index_t chunk, TensorView<float, 3> out) {
    using namespace cuda_kernels;
    if (chunk < 1 || out.extent[0] != keys.extent[0] || out.extent[2] != keys.extent[2] || keys.extent[1] != out.extent[1] * chunk)
      return Status::shape_mismatch;
    return cuda::launch(ctx, chunk_means<128>, {out.extent[1], out.extent[0]}, 128, 0, keys, chunk, out);
  }

  static Status run(Context<Cuda>& ctx, const ChunkMemory& m, TensorView<const float, 3> queries, index_t most, float scale, TensorView<float, 3> out,
                    TensorView<float, 2> lse, TensorView<std::int32_t, 3> chosen, Scratch scratch) {
    using namespace cuda_kernels;
    if (!chunk_memory_fits(m, queries, most, out, lse, chosen)) return Status::shape_mismatch;
    const index_t rows = queries.extent[0] * queries.extent[1];
    if (scratch.left() < workspace_bytes(rows, m.chunks, most, m.chunk)) return Status::workspace_too_small;
    ChunkRoom room{};
    room.scores = scratch.take<float>(rows * m.chunks), room.weights = scratch.take<float>(rows * most * m.chunk);
    room.picked = scratch.take<std::int32_t>(rows * most);
    const QueryRow row{queries, queries.extent[0] / m.keys.extent[0]};
    const Status s = cuda::launch(ctx, score_chunks<chunk_threads>, {rows, cuda::covering(m.chunks, chunk_tile)}, chunk_threads, 0, m, row, room);
    if (s != Status::ok) return s;
    return cuda::launch(ctx, attend_chunks<chunk_threads>, {rows}, chunk_threads, sizeof(ChunkShared), m, row, most, scale, out, lse, chosen, room);
  }
};

}  // namespace kvcondense::prim
