#pragma once

#include <cstdint>

#include <kvcondense/backend/cuda/block.cuh>
#include <kvcondense/backend/cuda/context.cuh>
#include <kvcondense/backend/cuda/launch.cuh>
#include <kvcondense/core/status.hpp>
#include <kvcondense/core/view.hpp>
#include <kvcondense/prim/rank_bits.hpp>

// Lists of chosen units, ascending, a row each: in the order of their scores, or of several rows together.

namespace kvcondense::prim {
namespace cuda_kernels {

inline constexpr int list_threads = 256;

struct RankShared {
  std::uint32_t key[list_threads];
};

/// rank[i] = how many units of the row stand before its i-th one in the order of scores; of equal ones the first. A block a row.
template <int Threads>
__global__ void __launch_bounds__(Threads) rank_units(RaggedView<const float> scores, RaggedView<const std::int32_t> units, const index_t* count, std::int32_t* rank) {
  RankShared& shared = cuda::shared_as<RankShared>();
  const index_t row = blockIdx.x, n = count[row];
  const float* const x = scores.row(row);
  const std::int32_t* const list = units.row(row);
  const auto key_of = [&](index_t i) { return rank_bits(x[list[i]]); };
  for (index_t base = 0; base < n; base += Threads) {
    const index_t i = base + threadIdx.x;
    const std::uint32_t key = i < n ? key_of(i) : 0;
    std::int32_t before = 0;
    for (index_t tile = 0; tile < n; tile += Threads) {
      __syncthreads();  // the keys before have been read
      if (tile + static_cast<index_t>(threadIdx.x) < n) shared.key[threadIdx.x] = key_of(tile + threadIdx.x);
      __syncthreads();
      const int keys = static_cast<int>(n - tile < Threads ? n - tile : Threads);
      for (int j = 0; j < keys; ++j) before += shared.key[j] > key || (shared.key[j] == key && tile + j < i);
    }
    if (i < n) rank[units.offset[row] + i] = before;
  }
}

/// The units below `n` that are `chosen`, in order; returns how many. All threads of a block, which all ask about other units.
template <int Threads, class Chosen>
__device__ inline std::int32_t list_where(index_t n, Chosen&& chosen, std::int32_t* out, cuda::BlockScratch<std::int32_t, Threads>& scratch) {
  std::int32_t at = 0;
  for (index_t base = 0; base < n; base += Threads) {
    const index_t u = base + threadIdx.x;
    const bool mine = u < n && chosen(u);
    const cuda::Running<std::int32_t> place = cuda::block_running<std::int32_t, Threads>(mine ? 1 : 0, scratch);
    if (mine) out[at + place.before] = static_cast<std::int32_t>(u);
    at += place.all;
  }
  return at;
}

/// What any of a head's rows lists. A block a head, threads its candidates.
template <int Threads>
__global__ void __launch_bounds__(Threads) unite_units(RaggedView<const std::int32_t> rows, const index_t* row_count, RaggedView<std::int32_t> out, index_t* count) {
  auto& scratch = cuda::shared_as<cuda::BlockScratch<std::int32_t, Threads>>();
  const index_t head = blockIdx.x, group = rows.heads / out.heads;
  const auto listed = [&](index_t u) {
    for (index_t row = head * group; row < (head + 1) * group; ++row) {
      index_t low = 0, high = row_count[row];
      while (low < high) {
        const index_t middle = low + (high - low) / 2;
        if (rows.row(row)[middle] < u) low = middle + 1;
        else high = middle;
      }
      if (low < row_count[row] && rows.row(row)[low] == u) return true;
    }
    return false;
  };
  const std::int32_t all = list_where(out.length(head), listed, out.row(head), scratch);
  if (threadIdx.x == 0) count[head] = all;
}

}  // namespace cuda_kernels

/// Lists and counts lie on the device, offsets may lie in steering memory.
struct UnitOrder {
  /// The places of listed units in the order of their scores, as long as the lists. Compares every unit of a row with every other.
  static Status ranks(Context<Cuda>& ctx, RaggedView<const float> scores, RaggedView<const std::int32_t> units, const index_t* count, std::int32_t* rank) {
    using namespace cuda_kernels;
    return cuda::launch(ctx, rank_units<list_threads>, {units.heads}, list_threads, sizeof(RankShared), scores, units, count, rank);
  }
  /// The lists of rows, one behind the other per head, become one of the head, which has room for every candidate.
  static Status unite(Context<Cuda>& ctx, RaggedView<const std::int32_t> rows, const index_t* row_count, RaggedView<std::int32_t> out, index_t* count) {
    using namespace cuda_kernels;
    return cuda::launch(ctx, unite_units<list_threads>, {out.heads}, list_threads, sizeof(cuda::BlockScratch<std::int32_t, list_threads>), rows, row_count, out, count);
  }
};

}  // namespace kvcondense::prim
