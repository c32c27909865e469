#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>

#include <kvcondense/backend/cuda/block.cuh>
#include <kvcondense/backend/cuda/context.cuh>
#include <kvcondense/backend/cuda/launch.cuh>
#include <kvcondense/backend/cuda/page_rows.cuh>
#include <kvcondense/backend/cuda/slot_rows.cuh>
#include <kvcondense/core/shape.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/core/view.hpp>
#include <kvcondense/prim/unit_fold.hpp>

// What is known of units of slots, kept beside the pages of a cache, and what a query thinks of them.

namespace kvcondense::prim {

/// What a row of an index is.
enum class IndexRule : std::uint8_t {
  bounds,  ///< the largest and the smallest number of every channel, rounded outwards: a row in each plane
  mean,    ///< the mean key
};

/// The index of a layer on the device. Row u of a head is made of slots [origin + u * slots, origin + (u + 1) * slots).
struct UnitPlanes {
  std::byte* plane[2] = {nullptr, nullptr};  ///< [heads][room] bytes each
  index_t room[2] = {0, 0};
  DType dtype = DType::f16;  ///< of the numbers of a row
  index_t slots = 1, origin = 0;

  KVCONDENSE_HD std::byte* row(int which, index_t head, index_t u, int dim) const {
    return plane[which] + head * room[which] + u * dim * static_cast<index_t>(size_of(dtype));
  }
};

/// Which rows score, and where scores go.
struct UnitScores {
  RaggedView<float> out;            ///< a row per query row, of as many scores as there are candidates
  const index_t* first = nullptr;   ///< per KV head: the first candidate
  const index_t* rows = nullptr;    ///< per KV head: rows that its index has
  index_t per_head = 1;             ///< query rows of a KV head
  index_t parts = 1;                ///< rows of the index in a candidate, the best of which counts
};

/// How the query heads of a KV head become query rows.
enum class QueryRule : std::uint8_t {
  each,            ///< every one for itself
  mean,            ///< their mean
  group_channels,  ///< see retrieve::GroupChannels: two rows' width
};

namespace cuda_kernels {

inline constexpr int index_threads = 128, index_warps = index_threads / cuda::warp_lanes;
inline constexpr int index_tile = 32;       ///< units that a block scores
inline constexpr int index_rows = 8;        ///< query rows at a time
inline constexpr int index_columns = static_cast<int>(max_head_dim) / index_threads;

struct IndexShared {
  SlotRun run[index_tile];
};

/// Rows of units from the first one on whose slots have changed, `from` per head. A block a unit, threads its channels: slots follow one
/// another as on the CPU. Grid: units from `base` on, heads.
template <IndexRule Rule>
__global__ void __launch_bounds__(index_threads) index_units(SlotRows<Cuda> keys, UnitPlanes planes, const index_t* from, const index_t* known, index_t base) {
  IndexShared& shared = *reinterpret_cast<IndexShared*>(cuda::dyn_smem());
  const index_t head = blockIdx.y, u = base + blockIdx.x, begin = planes.origin + u * planes.slots;
  const index_t end = begin + planes.slots < known[head] ? begin + planes.slots : known[head], changed = from[head] - planes.origin;
  if (begin >= end || u < (changed > 0 ? changed : 0) / planes.slots) return;  // the same in all threads
  const int dim = static_cast<int>(keys.dim()), thread = static_cast<int>(threadIdx.x);
  float high[index_columns], low[index_columns];
#pragma unroll
  for (int k = 0; k < index_columns; ++k) high[k] = Rule == IndexRule::mean ? 0.0f : -INFINITY, low[k] = INFINITY;
  for (index_t at = begin; at < end; at += index_tile) {
    const int count = static_cast<int>(end - at < index_tile ? end - at : index_tile);
    __syncthreads();  // the tile before is done with its places
    if (thread < count) shared.run[thread] = keys.locate(head, at + thread);
    __syncthreads();
#pragma unroll
    for (int k = 0; k < index_columns; ++k) {
      const int c = thread + k * index_threads;
      if (c >= dim) continue;
      for (int i = 0; i < count; ++i) {
        const float x = keys.value(shared.run[i], c);
        if constexpr (Rule == IndexRule::mean) high[k] += x;
        else high[k] = x > high[k] ? x : high[k], low[k] = x < low[k] ? x : low[k];
      }
    }
  }
#pragma unroll
  for (int k = 0; k < index_columns; ++k) {
    const int c = thread + k * index_threads;
    if (c >= dim) continue;
    if constexpr (Rule == IndexRule::mean) {
      write_number(planes.dtype, planes.row(0, head, u, dim), c, high[k] / static_cast<float>(end - begin));
    } else {
      write_number(planes.dtype, planes.row(0, head, u, dim), c, stored_above(planes.dtype, high[k]));
      write_number(planes.dtype, planes.row(1, head, u, dim), c, stored_below(planes.dtype, low[k]));
    }
  }
}

struct ScoreShared {
  float up[index_rows][max_head_dim];    ///< what meets the first plane
  float down[index_rows][max_head_dim];  ///< what meets the second
};

/// Scores of candidates: a warp a unit, all query rows of a KV head against what is read of it once. Grid: tiles of candidates, heads.
/// `floats`: of a query row; twice a head's where it says itself what meets which bound.
template <IndexRule Rule>
__global__ void __launch_bounds__(index_threads) score_units(UnitPlanes planes, UnitScores scores, const float* queries, index_t floats, int dim) {
  ScoreShared& shared = cuda::shared_as<ScoreShared>();
  const index_t head = blockIdx.y, first_row = head * scores.per_head, n = scores.out.length(first_row);
  const index_t tile = static_cast<index_t>(blockIdx.x) * index_tile, last = tile + index_tile < n ? tile + index_tile : n;
  if (tile >= n) return;  // the same in all threads
  const int lane = cuda::lane_of_warp();
  for (index_t r0 = 0; r0 < scores.per_head; r0 += index_rows) {
    const int rows = static_cast<int>(scores.per_head - r0 < index_rows ? scores.per_head - r0 : index_rows);
    __syncthreads();  // the rows before have been read
    for (int i = static_cast<int>(threadIdx.x); i < rows * dim; i += index_threads) {
      const int r = i / dim, c = i % dim;
      const float* q = queries + (first_row + r0 + r) * floats;
      const float x = q[c];
      if constexpr (Rule == IndexRule::mean) shared.up[r][c] = x;
      else if (floats > dim) shared.up[r][c] = x, shared.down[r][c] = q[dim + c];
      else shared.up[r][c] = x > 0.0f ? x : 0.0f, shared.down[r][c] = x > 0.0f ? 0.0f : x;  // NaN stays
    }
    __syncthreads();
    for (index_t u = tile + cuda::warp_of_block(); u < last; u += index_warps) {
      const index_t begin = (scores.first[head] + u) * scores.parts, end = begin + scores.parts < scores.rows[head] ? begin + scores.parts : scores.rows[head];
      float best[index_rows] = {};
      for (index_t p = begin; p < end; ++p) {
        float sum[index_rows] = {};
        const std::byte* const high = planes.row(0, head, p, dim);
        const std::byte* const low = Rule == IndexRule::mean ? nullptr : planes.row(1, head, p, dim);
        for (int c = lane; c < dim; c += cuda::warp_lanes) {
          const float a = read_number(planes.dtype, high, c);
          float b = 0.0f;
          if constexpr (Rule != IndexRule::mean) b = read_number(planes.dtype, low, c);
#pragma unroll
          for (int r = 0; r < index_rows; ++r) {
            if (r >= rows) continue;
            sum[r] += shared.up[r][c] * a;
            if constexpr (Rule != IndexRule::mean) sum[r] += shared.down[r][c] * b;
          }
        }
#pragma unroll
        for (int r = 0; r < index_rows; ++r) {
          if (r >= rows) continue;
          const float x = cuda::warp_sum(sum[r]);
          best[r] = p == begin || x > best[r] ? x : best[r];
        }
      }
#pragma unroll
      for (int r = 0; r < index_rows; ++r)
        if (r < rows && lane == 0) scores.out.row(first_row + r0 + r)[u] = best[r];
    }
  }
}

struct QueryShared {
  float size[max_head_dim];
  float sum[max_head_dim];
  std::int32_t best[max_head_dim];
};

/// Query rows of one token. A block a row: KV heads times `rows`. Of equal channels the first one is larger.
template <QueryRule Rule>
__global__ void __launch_bounds__(index_threads) make_query_rows(TensorView<const float, 3> queries, index_t token, index_t group, index_t channels, float* out) {
  const int dim = static_cast<int>(queries.extent[2]), thread = static_cast<int>(threadIdx.x);
  const index_t row = blockIdx.x;
  if constexpr (Rule == QueryRule::each) {
    for (int c = thread; c < dim; c += index_threads) out[row * dim + c] = queries(row, token, c);
  } else if constexpr (Rule == QueryRule::mean) {
    for (int c = thread; c < dim; c += index_threads) {
      float sum = 0.0f;
      for (index_t g = 0; g < group; ++g) sum += queries(row * group + g, token, c);
      out[row * dim + c] = sum / static_cast<float>(group);
    }
  } else {
    QueryShared& shared = cuda::shared_as<QueryShared>();
    const index_t head = row / group, count = channels < dim ? channels : dim;
    for (int c = thread; c < dim; c += index_threads) {
      float size = 0.0f, sum = 0.0f;
      for (index_t g = 0; g < group; ++g) size += fabsf(queries(head * group + g, token, c)), sum += queries(head * group + g, token, c);
      shared.size[c] = size, shared.sum[c] = sum;
    }
    for (int c = thread; c < 2 * dim; c += index_threads) out[row * 2 * dim + c] = 0.0f;
    __syncthreads();
    for (int c = thread; c < dim; c += index_threads) {  // a channel's rank; places below `count` are taken
      int rank = 0;
      for (int o = 0; o < dim; ++o) rank += shared.size[o] > shared.size[c] || (shared.size[o] == shared.size[c] && o < c);
      shared.best[rank] = c;
    }
    __syncthreads();
    double kept = 0.0, all = 0.0;  // the same in all threads
    for (int c = 0; c < dim; ++c) all += static_cast<double>(fabsf(queries(row, token, c)));
    for (index_t i = 0; i < count; ++i) kept += static_cast<double>(fabsf(queries(row, token, shared.best[i])));
    const double temperature = all > 0.0 && kept > 0.0 ? sqrt(static_cast<double>(dim) * kept / all) : 1.0;
    for (int i = thread; i < static_cast<int>(count); i += index_threads) {
      const int c = shared.best[i];
      out[row * 2 * dim + (shared.sum[c] > 0.0f ? c : dim + c)] = static_cast<float>(static_cast<double>(queries(row, token, c)) / temperature);
    }
  }
}

/// How the scores of several query tokens become one. Grid: blocks, rows.
template <int Threads>
__global__ void __launch_bounds__(Threads) join_scores(RaggedView<const float> one, bool largest, float divide, RaggedView<float> all) {
  const index_t row = blockIdx.y, n = all.length(row);
  const float* x = one.row(row);
  float* to = all.row(row);
  for (index_t i = static_cast<index_t>(blockIdx.x) * Threads + threadIdx.x; i < n; i += static_cast<index_t>(gridDim.x) * Threads) {
    const float sum = largest ? (x[i] > to[i] ? x[i] : to[i]) : to[i] + x[i];
    to[i] = divide == 1.0f ? sum : sum / divide;
  }
}

/// The first slot of each head that is not where it was, among kept ones: what comes before it stays as it is. `from` holds a bound already. A block a head.
template <int Threads>
__global__ void __launch_bounds__(Threads) first_moved(RaggedView<const std::int32_t> keep, const index_t* count, index_t* from) {
  cuda::BlockScratch<index_t, Threads>& scratch = cuda::shared_as<cuda::BlockScratch<index_t, Threads>>();
  const index_t head = blockIdx.x, n = count[head];
  index_t first = n;
  for (index_t i = threadIdx.x; i < n; i += Threads)
    if (keep.row(head)[i] != i) {
      first = i;
      break;
    }
  first = cuda::block_reduce(first, [](index_t a, index_t b) { return a < b ? a : b; }, scratch);
  if (threadIdx.x == 0 && first < from[head]) from[head] = first;
}

}  // namespace cuda_kernels

/// The index of all heads of a layer: made of stored keys, bit for bit as on the CPU, and scored.
///
/// Needs    all pointers but those that shape a launch are the device's; `from`, `known`, `first`, `rows` and offsets may lie in steering memory.
/// Cost     build: reads the keys of the units from the first changed slot on. score: reads the index of the candidates once for all query rows of a KV head.
/// Numbers  scores in float32, sums in another order than the CPU's: two units whose scores are closer than rounding may change places.
struct UnitIndex {
  template <IndexRule Rule>
  static Status build(Context<Cuda>& ctx, const SlotRows<Cuda>& keys, const UnitPlanes& planes, const index_t* from, const index_t* known, index_t first, index_t last) {
    using namespace cuda_kernels;
    if (first >= last) return Status::ok;
    return cuda::launch(ctx, index_units<Rule>, {last - first, keys.heads()}, index_threads, sizeof(IndexShared), keys, planes, from, known, first);
  }
  /// `most`: no head has more candidates.
  template <IndexRule Rule>
  static Status score(Context<Cuda>& ctx, const UnitPlanes& planes, const UnitScores& scores, const float* queries, index_t floats, index_t dim, index_t most) {
    using namespace cuda_kernels;
    return cuda::launch(ctx, score_units<Rule>, {cuda::covering(most, index_tile), scores.out.heads / scores.per_head}, index_threads, sizeof(ScoreShared), planes,
                        scores, queries, floats, static_cast<int>(dim));
  }
  /// Rows of token `token`: for QueryRule::mean one per KV head, else one per query head. `channels`: that QueryRule::group_channels keeps.
  template <QueryRule Rule>
  static Status queries(Context<Cuda>& ctx, TensorView<const float, 3> queries, index_t token, index_t group, index_t channels, float* out) {
    using namespace cuda_kernels;
    const std::size_t shared = Rule == QueryRule::group_channels ? sizeof(QueryShared) : 0;
    const index_t rows = Rule == QueryRule::mean ? queries.extent[0] / group : queries.extent[0];
    return cuda::launch(ctx, make_query_rows<Rule>, {rows}, index_threads, shared, queries, token, group, channels, out);
  }
  /// all = all + one, or the larger; then all / divide.
  static Status join(Context<Cuda>& ctx, RaggedView<const float> one, bool largest, float divide, RaggedView<float> all) {
    return cuda::launch(ctx, cuda_kernels::join_scores<256>, {16, all.heads}, 256, 0, one, largest, divide, all);
  }
  /// from = min(from, the first slot that leaves or moves); `keep` as the cache keeps.
  static Status moved(Context<Cuda>& ctx, RaggedView<const std::int32_t> keep, const index_t* count, index_t* from) {
    return cuda::launch(ctx, cuda_kernels::first_moved<128>, {keep.heads}, 128, sizeof(cuda::BlockScratch<index_t, 128>), keep, count, from);
  }
};

}  // namespace kvcondense::prim
