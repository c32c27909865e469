#pragma once

#include <cstddef>
#include <cstdint>

#include <kvcondense/backend/cuda/block.cuh>
#include <kvcondense/backend/cuda/code_scores.cuh>
#include <kvcondense/backend/cuda/context.cuh>
#include <kvcondense/backend/cuda/k_means.cuh>
#include <kvcondense/backend/cuda/launch.cuh>
#include <kvcondense/backend/cuda/row_tile.cuh>
#include <kvcondense/backend/cuda/slot_rows.cuh>
#include <kvcondense/backend/cuda/unit_index.cuh>
#include <kvcondense/backend/cuda/unit_scores.cuh>
#include <kvcondense/core/status.hpp>
#include <kvcondense/core/view.hpp>

// An index of codes: every slot names the centroids nearest to parts of its key.

namespace kvcondense::prim {

/// The codebooks of all heads, and the form of codes in the first plane: `parts` of `bytes` bytes for every slot.
struct SlotCodebooks {
  const float* found = nullptr;  ///< [heads][room]: parts one behind the other, centroids [entries, head_dim / parts] each
  index_t room = 0;
  index_t parts = 1, bytes = 2;
  index_t entries = 0;      ///< of a part; in a table of scores too
  bool directions = false;  ///< see ClusterHead: of rows of length 1, as many as that says

  KVCONDENSE_HD const float* head(index_t h) const { return found + h * room; }
};

/// Clusters as they lie on the device: two thresholds, how many clusters and coarse clusters there are, then as retrieve::FoundClusters has them.
struct ClusterHead {
  static constexpr index_t lead = 4;
  float* at = nullptr;
  index_t fine = 0, coarse = 0, dim = 0;

  ClusterHead() = default;
  KVCONDENSE_HD ClusterHead(const float* row, index_t channels)
      : at(const_cast<float*>(row)), fine(static_cast<index_t>(row[2])), coarse(static_cast<index_t>(row[3])), dim(channels) {}
  KVCONDENSE_HD ClusterHead(float* row, index_t clusters, index_t coarse_clusters, index_t channels)
      : at(row), fine(clusters), coarse(coarse_clusters), dim(channels) {}

  KVCONDENSE_HD float* threshold() const { return at; }
  KVCONDENSE_HD float* directions() const { return at + lead; }
  KVCONDENSE_HD float* means() const { return directions() + fine * dim; }
  KVCONDENSE_HD float* counts() const { return means() + fine * dim; }
  KVCONDENSE_HD float* coarse_directions() const { return counts() + fine; }
  KVCONDENSE_HD float* coarse_means() const { return coarse_directions() + coarse * dim; }
  KVCONDENSE_HD float* parent() const { return coarse_means() + coarse * dim; }
};

namespace cuda_kernels {

/// A row becomes one of length 1, as retrieve::KeyClusters::normalise makes it: by one thread.
__device__ inline void make_direction(float* row, int dim) {
  float sum = 0.0f;
  for (int c = 0; c < dim; ++c) sum = __fadd_rn(sum, __fmul_rn(row[c], row[c]));
  const float inverse = sum > 0.0f ? 1.0f / sqrtf(sum) : 0.0f;
  for (int c = 0; c < dim; ++c) row[c] *= inverse;
}

/// Codes of slots from the first changed one on. A block a tile of slots. Grid: tiles from slot `base` on, heads.
template <int Threads>
__global__ void __launch_bounds__(Threads, 2) index_codes(SlotRows<Cuda> keys, UnitPlanes planes, SlotCodebooks books, const index_t* from, const index_t* known,
                                                          index_t base) {
  static_assert(Threads == tile_threads);
  auto* const rows = reinterpret_cast<float*>(cuda::dyn_smem());
  const index_t head = blockIdx.y, dim = keys.dim(), tile = base + static_cast<index_t>(blockIdx.x) * tile_rows;
  const index_t begin = tile > from[head] ? tile : from[head], end = tile + tile_rows < known[head] ? tile + tile_rows : known[head];
  if (begin >= end) return;  // the same in all threads
  const int stride = tile_stride(dim), row = static_cast<int>(threadIdx.x) / tile_lanes;
  load_rows(keys, head, [&](int r) { return tile + r < begin || tile + r >= end ? index_t{-1} : tile + r; }, tile_rows, tile_rows, rows);
  __syncthreads();
  const ClusterHead clusters = books.directions ? ClusterHead(books.head(head), dim) : ClusterHead();
  if (books.directions && threadIdx.x < tile_rows) make_direction(rows + static_cast<int>(threadIdx.x) * stride, static_cast<int>(dim));
  __syncthreads();
  const index_t entries = books.directions ? clusters.fine : books.entries, part = dim / books.parts, slot = tile + row;
  std::byte* const code = planes.plane[0] + head * planes.room[0] + slot * books.parts * books.bytes;
  for (index_t p = 0; p < books.parts; ++p) {
    const float* book = books.directions ? clusters.directions() : books.head(head) + p * entries * part;
    const std::int32_t label = nearest_of_tile(rows + p * part, stride, rows + tile_rows * stride, part, book, entries);
    if (threadIdx.x % tile_lanes != 0 || slot < begin || slot >= end) continue;
    code[p * books.bytes] = static_cast<std::byte>(label & 0xff);
    if (books.bytes == 2) code[p * 2 + 1] = static_cast<std::byte>(label >> 8 & 0xff);
  }
}

/// Rows of slots [0, n) of a head as floats, of length 1 where `directions`. A block a tile. Grid: tiles.
template <int Threads>
__global__ void __launch_bounds__(Threads, 2) list_rows(SlotRows<Cuda> from, index_t head, index_t n, bool directions, float* out) {
  static_assert(Threads == tile_threads);
  auto* const rows = reinterpret_cast<float*>(cuda::dyn_smem());
  const int dim = static_cast<int>(from.dim()), stride = tile_stride(dim);
  const index_t first = static_cast<index_t>(blockIdx.x) * tile_rows;
  const int count = static_cast<int>(n - first < tile_rows ? n - first : tile_rows);
  load_rows(from, head, [&](int r) { return first + r; }, count, count, rows);
  __syncthreads();
  if (directions && static_cast<int>(threadIdx.x) < count) make_direction(rows + static_cast<int>(threadIdx.x) * stride, dim);
  __syncthreads();
  for (int i = static_cast<int>(threadIdx.x); i < count * dim; i += Threads) out[first * dim + i] = rows[i / dim * stride + i % dim];
}

/// Products of a query's parts with their centroids, products and sums in the CPU's order. A block a query row.
template <int Threads>
__global__ void __launch_bounds__(Threads) make_code_tables(SlotCodebooks books, const float* queries, index_t per_head, int dim, float* tables) {
  auto* const query = reinterpret_cast<float*>(cuda::dyn_smem());
  const index_t row = blockIdx.x, entries = books.entries;
  const int part = dim / static_cast<int>(books.parts);
  for (int c = static_cast<int>(threadIdx.x); c < dim; c += Threads) query[c] = queries[row * dim + c];
  __syncthreads();
  for (index_t i = threadIdx.x; i < books.parts * entries; i += Threads) {
    const float* q = query + i / entries * part;
    const float* centroid = books.head(row / per_head) + i * part;
    float sum = 0.0f;
    for (int d = 0; d < part; ++d) sum = __fadd_rn(sum, __fmul_rn(q[d], centroid[d]));
    tables[row * books.parts * entries + i] = sum;
  }
}

/// A thread a candidate. Grid: tiles of candidates, query rows.
template <int Threads>
__global__ void __launch_bounds__(Threads) score_code_heads(UnitPlanes planes, SlotCodebooks books, UnitScores scores, const float* tables) {
  const index_t row = blockIdx.y, head = row / scores.per_head, i = static_cast<index_t>(blockIdx.x) * Threads + threadIdx.x;
  if (i >= scores.out.length(row)) return;
  const std::byte* at = planes.plane[0] + head * planes.room[0] + (scores.first[head] + i) * books.parts * books.bytes;
  scores.out.row(row)[i] = score_of_codes<false>(at, books.bytes, books.parts, books.entries, tables + row * books.parts * books.entries);
}

}  // namespace cuda_kernels

/// Codes of all heads of a layer, and the rows that codebooks are found from.
///
/// Needs    all pointers are the device's; `from` and `known` may lie in steering memory. Rows of at most 256 numbers.
/// Cost     a changed slot is compared with all centroids; a query row reads the codes of all candidates.
/// Numbers  bit for bit the CPU's where its compiler leaves products and sums apart (-ffp-contract=off).
struct SlotCodes {
  /// Codes of slots [first, last) that have changed.
  static Status build(Context<Cuda>& ctx, const SlotRows<Cuda>& keys, const UnitPlanes& planes, const SlotCodebooks& books, const index_t* from, const index_t* known,
                      index_t first, index_t last) {
    using namespace cuda_kernels;
    if (first >= last) return Status::ok;
    return cuda::launch(ctx, index_codes<tile_threads>, {cuda::covering(last - first, tile_rows), keys.heads()}, tile_threads, tile_bytes(tile_rows + tile_others, keys.dim()),
                        keys, planes, books, from, known, first);
  }
  /// out [n, dim]: the first rows of a head.
  static Status rows(Context<Cuda>& ctx, const SlotRows<Cuda>& from, index_t head, index_t n, bool directions, float* out) {
    using namespace cuda_kernels;
    return cuda::launch(ctx, list_rows<tile_threads>, {cuda::covering(n, tile_rows)}, tile_threads, tile_bytes(tile_rows, from.dim()), from, head, n, directions, out);
  }
  /// tables [rows, parts * entries] of query rows [rows, dim].
  static Status tables(Context<Cuda>& ctx, const SlotCodebooks& books, const float* queries, index_t rows, index_t per_head, index_t dim, float* out) {
    using namespace cuda_kernels;
    constexpr int threads = 256;
    return cuda::launch(ctx, make_code_tables<threads>, {rows}, threads, static_cast<std::size_t>(dim) * sizeof(float), books, queries, per_head, static_cast<int>(dim), out);
  }
  /// `most`: no head has more candidates.
  static Status score(Context<Cuda>& ctx, const UnitPlanes& planes, const SlotCodebooks& books, const UnitScores& scores, const float* tables, index_t most) {
    using namespace cuda_kernels;
    constexpr int threads = 256;
    return cuda::launch(ctx, score_code_heads<threads>, {cuda::covering(most, threads), scores.out.heads}, threads, 0, planes, books, scores, tables);
  }
};

}  // namespace kvcondense::prim
