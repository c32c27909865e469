#pragma once

#include <cmath>
#include <cstdint>

#include <kvcondense/backend/cuda/block.cuh>
#include <kvcondense/backend/cuda/context.cuh>
#include <kvcondense/backend/cuda/launch.cuh>
#include <kvcondense/backend/cuda/page_rows.cuh>
#include <kvcondense/backend/cuda/row_cutoff.cuh>
#include <kvcondense/backend/cuda/unit_index.cuh>
#include <kvcondense/core/shape.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/core/view.hpp>
#include <kvcondense/prim/rank_bits.hpp>

// What queries think of units of slots, by an index alone.

namespace kvcondense::prim {

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

inline constexpr int score_tile = 32;  ///< units that a block scores
inline constexpr int score_rows = 8;   ///< query rows at a time

/// Query rows in the basis of their heads, `per_head` to a KV head, products and sums in the CPU's order. A block a row.
template <int Threads>
__global__ void __launch_bounds__(Threads) query_coordinates(UnitPlanes planes, const float* queries, index_t per_head, int dim, float* out) {
  const index_t row = blockIdx.x;
  for (int c = static_cast<int>(threadIdx.x); c < planes.width; c += Threads) {
    const float* e = planes.basis + row / per_head * dim * planes.columns + planes.column(row / per_head, c);
    float sum = 0.0f;
    for (int d = 0; d < dim; ++d) sum = __fadd_rn(sum, __fmul_rn(queries[row * dim + d], e[d * planes.columns]));
    out[row * planes.width + c] = sum;
  }
}

struct ScoreShared {
  float up[score_rows][max_head_dim];    ///< what meets the first plane
  float down[score_rows][max_head_dim];  ///< what meets the second
};

/// Scores of candidates: a warp a unit, all query rows of a KV head against what is read of it once. Grid: tiles of candidates, heads.
/// `floats`: of a query row; twice a head's where it says itself what meets which bound.
template <IndexRule Rule>
__global__ void __launch_bounds__(index_threads, 4) score_units(UnitPlanes planes, UnitScores scores, const float* queries, index_t floats) {
  ScoreShared& shared = cuda::shared_as<ScoreShared>();
  const index_t head = blockIdx.y, first_row = head * scores.per_head, n = scores.out.length(first_row);
  const index_t tile = static_cast<index_t>(blockIdx.x) * score_tile, last = tile + score_tile < n ? tile + score_tile : n;
  if (tile >= n) return;  // the same in all threads
  const int lane = cuda::lane_of_warp(), dim = planes.width;
  for (index_t r0 = 0; r0 < scores.per_head; r0 += score_rows) {
    const int rows = static_cast<int>(scores.per_head - r0 < score_rows ? scores.per_head - r0 : score_rows);
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
      float best[score_rows] = {};
      for (index_t p = begin; p < end; ++p) {
        float sum[score_rows] = {};
        const std::byte* const high = planes.row(0, head, p);
        const std::byte* const low = Rule == IndexRule::mean ? nullptr : planes.row(1, head, p);
        for (int c = lane; c < dim; c += cuda::warp_lanes) {
          const float a = read_number(planes.dtype, high, c);
          float b = 0.0f;
          if constexpr (Rule != IndexRule::mean) b = read_number(planes.dtype, low, c);
#pragma unroll
          for (int r = 0; r < score_rows; ++r) {
            if (r >= rows) continue;
            sum[r] += shared.up[r][c] * a;
            if constexpr (Rule != IndexRule::mean) sum[r] += shared.down[r][c] * b;
          }
        }
#pragma unroll
        for (int r = 0; r < score_rows; ++r) {
          if (r >= rows) continue;
          const float x = cuda::warp_sum(sum[r]);
          best[r] = p == begin || x > best[r] ? x : best[r];
        }
      }
#pragma unroll
      for (int r = 0; r < score_rows; ++r)
        if (r < rows && lane == 0) scores.out.row(first_row + r0 + r)[u] = best[r];
    }
  }
}

struct QueryShared {
  std::uint32_t size[max_head_dim];
  float sum[max_head_dim];
  std::int32_t best[max_head_dim];
};

/// best[rank] = the channel of that size; of equal ones the first is larger. All threads of a block, behind and before a barrier.
__device__ inline void rank_channels(QueryShared& shared, int dim) {
  for (int c = static_cast<int>(threadIdx.x); c < dim; c += index_threads) {  // a total order: every rank is taken once
    int rank = 0;
    for (int o = 0; o < dim; ++o) rank += shared.size[o] > shared.size[c] || (shared.size[o] == shared.size[c] && o < c);
    shared.best[rank] = c;
  }
  __syncthreads();
}

/// Query rows of one token. A block a row: KV heads times `rows`. Of equal channels the first one is larger; NaN is smaller than all numbers (the
/// CPU takes no channel that is NaN but the first one, and that always).
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
      shared.size[c] = rank_bits(size), shared.sum[c] = sum;
    }
    for (int c = thread; c < 2 * dim; c += index_threads) out[row * 2 * dim + c] = 0.0f;
    __syncthreads();
    rank_channels(shared, dim);  // places below `count` are taken
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

/// A block a KV head. Of equal spreads the first count.
template <int Threads>
__global__ void __launch_bounds__(Threads, 4) mark_outlier_units(UnitPlanes planes, UnitScores scores, index_t units, float as) {
  static_assert(Threads == winner_threads);
  WinnerShared& shared = cuda::shared_as<WinnerShared>();
  const index_t head = blockIdx.x, n = scores.out.length(head * scores.per_head), k = units < n ? units : n;
  if (k <= 0) return;  // the same in all threads
  const auto key_of = [&](index_t u) { return rank_bits(-*planes.spread(head, scores.first[head] + u)); };
  const BlockCutoff cut = block_cutoff<Threads>(
      k,
      [&](auto&& use) {
        for (index_t u = threadIdx.x; u < n; u += Threads) use(key_of(u), 1u);
      },
      shared.cutoff);
  const auto mark = [&](index_t u, std::uint32_t) {
    for (index_t r = 0; r < scores.per_head; ++r) scores.out.row(head * scores.per_head + r)[u] = as;
  };
  block_winners(n, key_of, cut, 0, [](index_t) { return false; }, mark, shared);
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

}  // namespace cuda_kernels

/// Scores of the candidates of all heads of a layer.
///
/// Needs    all pointers but those that shape a launch are the device's; `first`, `rows` and offsets may lie in steering memory.
/// Cost     reads the index of the candidates once for all query rows of a KV head.
/// Numbers  float32, sums in another order than the CPU's: two units whose scores are closer than rounding may change places.
struct UnitScoring {
  /// `most`: no head has more candidates. A rule scores as the mean does, but for bounds.
  template <IndexRule Rule>
  static Status score(Context<Cuda>& ctx, const UnitPlanes& planes, const UnitScores& scores, const float* queries, index_t floats, index_t most) {
    using namespace cuda_kernels;
    constexpr IndexRule rows = Rule == IndexRule::bounds ? Rule : IndexRule::mean;
    return cuda::launch(ctx, score_units<rows>, {cuda::covering(most, score_tile), scores.out.heads / scores.per_head}, index_threads, sizeof(ScoreShared), planes,
                        scores, queries, floats);
  }
  /// Query rows [rows, dim] in the basis of their heads: [rows, width].
  static Status coordinates(Context<Cuda>& ctx, const UnitPlanes& planes, const float* queries, index_t rows, index_t per_head, index_t dim, float* out) {
    using namespace cuda_kernels;
    return cuda::launch(ctx, query_coordinates<index_threads>, {rows}, index_threads, 0, planes, queries, per_head, static_cast<int>(dim), out);
  }
  /// IndexRule::spread: the scores of a KV head's `units` candidates whose keys point furthest away from their mean become `as`, in all of
  /// its query rows.
  static Status mark_outliers(Context<Cuda>& ctx, const UnitPlanes& planes, const UnitScores& scores, index_t units, float as) {
    using namespace cuda_kernels;
    return cuda::launch(ctx, mark_outlier_units<winner_threads>, {scores.out.heads / scores.per_head}, winner_threads, sizeof(WinnerShared), planes, scores, units, as);
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
};

}  // namespace kvcondense::prim
