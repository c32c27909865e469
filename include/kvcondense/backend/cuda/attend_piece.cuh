#pragma once

#include <cmath>

#include <kvcondense/backend/cuda/attend_plan.cuh>
#include <kvcondense/backend/cuda/block.cuh>
#include <kvcondense/backend/cuda/mapped_rows.cuh>
#include <kvcondense/backend/cuda/row_codec.cuh>
#include <kvcondense/core/shape.hpp>
#include <kvcondense/prim/rope.hpp>
#include <kvcondense/prim/slot_runs.hpp>

// One piece of a head for one block of query rows, in float32, for any codec and any size of a head.

namespace kvcondense::prim::cuda_kernels {

inline constexpr int piece_blocks = 4;  ///< of a multiprocessor
/// Of a kernel of attention: what a table says of a codec takes the registers of a fourth.
template <class KeyCodec, class ValueCodec>
inline constexpr int attend_blocks = piece_blocks;
template <class C, class ValueCodec>
inline constexpr int attend_blocks<Tabled<C>, ValueCodec> = piece_blocks - 1;
inline constexpr int piece_threads = 128, piece_warps = piece_threads / cuda::warp_lanes;
inline constexpr int piece_tile = 32;  ///< slots at a time, a lane each
inline constexpr int piece_rows = static_cast<int>(row_block);
static_assert(piece_rows % piece_warps == 0);

struct PieceShared {
  float query[piece_rows][max_head_dim];
  float weight[piece_rows][piece_tile];
  float top[piece_rows], total[piece_rows], shrink[piece_rows];
  float bias[piece_tile], value_scale[piece_tile];
  SlotRun key_run[piece_tile], value_run[piece_tile];  ///< `place` is the slot's own here
};
/// Numbers of a tile: rows of dim + 1, so that lanes that read a column meet no bank twice.
KVCONDENSE_HD constexpr index_t tile_floats(index_t dim) { return piece_tile * (dim + 1); }
/// What keys are before they turn, and the queries that meet them so; there where some are out of reach.
inline std::size_t far_shared(const KeyTurn& turn, index_t dim) {
  return turn.reach > 0 ? static_cast<std::size_t>(tile_floats(dim) + piece_rows * max_head_dim) * sizeof(float) : 0;
}
/// Behind PieceShared the tile, and what is far.
inline std::size_t piece_shared(const KeyTurn& turn, index_t dim, index_t value_dim) {
  return sizeof(PieceShared) + static_cast<std::size_t>(tile_floats(dim > value_dim ? dim : value_dim)) * sizeof(float) + far_shared(turn, dim);
}
/// Where these lie, behind `tile`.
struct FarTile {
  float *keys = nullptr, *queries = nullptr;

  __device__ FarTile(const KeyTurn& turn, index_t dim, float* behind) {
    if (turn.reach > 0) keys = behind, queries = behind + tile_floats(dim);
  }
  __device__ bool there() const { return keys != nullptr; }
  __device__ float* query(int row) const { return queries + row * static_cast<int>(max_head_dim); }
};

__device__ inline float minus_infinity() { return -INFINITY; }

/// Numbers of a tile's slots into shared memory: a warp a slot. Codes are unpacked here, once for all query rows.
template <class Codec>
__device__ inline void load_tile(const Codec& codec, const ExactRows& exact, int page_slots, const SlotRun* runs, int count,
                                 int dim, float* tile) {
  for (int i = cuda::warp_of_block(); i < count; i += piece_warps) {
    const SlotRun run = runs[i];
    float* row = tile + i * (dim + 1);
    if (run.coded) {
      const RowPage<Codec> page(codec, run.page, page_slots, dim);
      load_row(page, run.place, row);
    } else {
      const RowPage<ExactRows> page(exact, run.page, 0, dim);
      for (int c = cuda::lane_of_warp(); c < dim; c += cuda::warp_lanes) row[c] = page.value(run.place, c);
    }
  }
}

/// Raw keys of slots [at, at + count) in a tile turn to their places: a warp a slot, the one that loaded it. `raw`: where they stay as they are, or null.
__device__ inline void turn_tile(const KeyTurn& turn, index_t head, index_t at, int count, int dim, float* tile, float* raw) {
  const bool halves = turn.pairing == RopePairing::half_split;
  const int pairs = static_cast<int>(turn.pairs);
  __syncwarp();  // other lanes loaded numbers of its pairs
  for (int i = cuda::warp_of_block(); i < count; i += piece_warps) {
    const index_t place = turn.place(head, at + i);
    const float* const fine = turn.fine + place % RopeTable::tile * 2 * turn.pairs;
    const float* const coarse = turn.coarse + place / RopeTable::tile * 2 * turn.pairs;
    float* const row = tile + i * (dim + 1);
    for (int c = cuda::lane_of_warp(); raw != nullptr && c < dim; c += cuda::warp_lanes) raw[i * (dim + 1) + c] = row[c];
    __syncwarp();
    for (int p = cuda::lane_of_warp(); p < pairs; p += cuda::warp_lanes) {
      const float cosine = coarse[p] * fine[p] - coarse[p + pairs] * fine[p + pairs], sine = coarse[p + pairs] * fine[p] + coarse[p] * fine[p + pairs];
      float &near = row[halves ? p : 2 * p], &far = row[halves ? p + pairs : 2 * p + 1];
      const float x = near, y = far;
      near = x * cosine - y * sine, far = y * cosine + x * sine;
    }
  }
}

/// Where a slot is: its run, with the slot's own place.
__device__ inline SlotRun locate(const ColumnRuns& column, index_t head, index_t slot) {
  SlotRun run = run_of(column, head, static_cast<std::int32_t>(slot));
  run.place += static_cast<std::int32_t>(slot) - run.begin;
  return run;
}

/// Queries of a block of rows, scaled, in shared memory, and no slot seen yet. All threads; a barrier follows before anybody reads.
template <class Heads>
__device__ inline void begin_piece(PieceShared& shared, const FarTile& far, const Heads& heads, const AttendPlan& plan, index_t head, index_t first_row, int rows) {
  const int dim = static_cast<int>(plan.dim), thread = static_cast<int>(threadIdx.x);
  for (int i = thread; i < rows * dim; i += piece_threads) {
    const index_t row = first_row + i / dim, q_head = head * plan.group + row % plan.group;
    shared.query[i / dim][i % dim] = plan.request.queries(q_head, row / plan.group, i % dim) * plan.request.softmax_scale;
    if (far.there()) far.query(i / dim)[i % dim] = heads.turn.far(q_head, row / plan.group, i % dim) * plan.request.softmax_scale;
  }
  if (thread < piece_rows) shared.top[thread] = minus_infinity(), shared.total[thread] = 0.0f;
}
/// Where the slots of a tile lie, and their numbers. A warp a column or a number; no barrier.
template <class Heads>
__device__ inline void locate_tile(PieceShared& shared, const Heads& heads, index_t head, index_t at, int count, index_t slots) {
  const int lane = cuda::lane_of_warp(), warp = cuda::warp_of_block();
  if (warp == 0 && lane < count) shared.key_run[lane] = locate(heads.keys, head, at + lane);
  if (warp == 1 && lane < count) shared.value_run[lane] = locate(heads.values, head, at + lane);
  if (warp == 2 && lane < count) shared.bias[lane] = heads.scalars.bias_of(head, at + lane, slots);
  if (warp == 3 && lane < count) shared.value_scale[lane] = heads.scalars.value_scale_of(head, at + lane, slots);
}
/// The logit of a lane's slot, which the row sees, from its product with the query; kept where mass is asked for.
template <class Heads>
__device__ inline float finish_logit(const PieceShared& shared, const Heads& heads, const AttendPlan& plan, index_t head, index_t row, index_t slot, index_t slots, float product) {
  float logit = product + shared.bias[cuda::lane_of_warp()];
  if (heads.passed.hides(head, slot, slots, plan.visible(slots, row))) logit = minus_infinity();
  if (plan.request.mass.data != nullptr && row >= plan.first_mass_row) plan.logit_row(head, row)[slot] = logit;
  return logit;
}
/// The softmax of row r moves on by the logits of a tile, a lane a slot where it is `visible`: its top, its total and the weights of values. Returns the lane's
/// weight. A warp.
__device__ inline float weigh_tile(PieceShared& shared, int r, bool visible, float logit) {
  const int lane = cuda::lane_of_warp();
  const bool bad = logit != logit;  // NaN never is the largest
  const float before = shared.top[r], largest = cuda::warp_max(bad ? minus_infinity() : logit);
  const float top = largest > before ? largest : before;
  const bool any = top > minus_infinity();
  const float weight = !visible ? 0.0f : any ? expf(logit - top) : bad ? logit : 0.0f;
  const float scaled = visible ? weight * shared.value_scale[lane] : 0.0f;
  const float total = cuda::warp_sum(weight);
  __syncwarp();  // all lanes have read what lane 0 writes
  shared.weight[r][lane] = scaled;
  if (lane == 0) {
    const float shrink = any && before < top ? expf(before - top) : 1.0f;
    shared.top[r] = top;
    shared.shrink[r] = shrink;
    shared.total[r] = shared.total[r] * shrink + total;
  }
  return scaled;
}

/// The sum of the block's rows over a piece's slots.
template <class KeyCodec, class ValueCodec>
__device__ inline void sum_piece(const PagedHeads<KeyCodec, ValueCodec>& heads, const AttendPlan& plan, index_t head, index_t piece) {
  PieceShared& shared = *reinterpret_cast<PieceShared*>(cuda::dyn_smem());
  float* tile = reinterpret_cast<float*>(cuda::dyn_smem() + sizeof(PieceShared));
  const index_t first_row = static_cast<index_t>(blockIdx.x) * row_block, slots = heads.slots[head], size = plan.cut.piece_slots(slots);
  const int rows = static_cast<int>(plan.rows - first_row < row_block ? plan.rows - first_row : row_block);
  const int dim = static_cast<int>(plan.dim), value_dim = static_cast<int>(plan.value_dim);
  const int lane = cuda::lane_of_warp(), warp = cuda::warp_of_block(), thread = static_cast<int>(threadIdx.x);
  const FarTile far(heads.turn, dim, tile + tile_floats(dim > value_dim ? dim : value_dim));

  begin_piece(shared, far, heads, plan, head, first_row, rows);
  constexpr int columns = static_cast<int>(max_head_dim) / piece_threads;
  float sum[columns][piece_rows] = {};

  // No row of the block sees more than its last one.
  const index_t seen = plan.visible(slots, first_row + rows - 1);
  const index_t end = (piece + 1) * size < seen ? (piece + 1) * size : seen;
  for (index_t at = piece * size; at < end; at += piece_tile) {
    const int count = static_cast<int>(end - at < piece_tile ? end - at : piece_tile);
    __syncthreads();  // the tile before is done with everything shared
    locate_tile(shared, heads, head, at, count, slots);
    __syncthreads();
    load_tile(of_head(heads.key_codec, head), heads.exact, static_cast<int>(heads.keys.page_slots), shared.key_run, count, dim, tile);
    if (heads.turn.fine != nullptr) turn_tile(heads.turn, head, at, count, dim, tile, far.keys);
    __syncthreads();

    for (int r = warp; r < rows; r += piece_warps) {  // a warp a row, a lane a slot
      const index_t row = first_row + r;
      const bool visible = lane < count && at + lane < plan.visible(slots, row);
      float logit = minus_infinity();
      if (visible) {
        logit = 0.0f;
        const bool out_of_reach = far.there() && heads.turn.out_of_reach(head, plan.visible(slots, row) - 1, at + lane);
        const float* const key = (out_of_reach ? far.keys : tile) + lane * (dim + 1);
        const float* const query = out_of_reach ? far.query(r) : shared.query[r];
        for (int c = 0; c < dim; ++c) logit += query[c] * key[c];
        logit = finish_logit(shared, heads, plan, head, row, at + lane, slots, logit);
      }
      static_cast<void>(weigh_tile(shared, r, visible, logit));
    }
    __syncthreads();
    load_tile(of_head(heads.value_codec, head), heads.exact, static_cast<int>(heads.values.page_slots), shared.value_run, count, value_dim, tile);
    __syncthreads();
#pragma unroll
    for (int k = 0; k < columns; ++k) {
      const int c = thread + k * piece_threads;
      if (c >= value_dim) continue;
#pragma unroll
      for (int r = 0; r < piece_rows; ++r) sum[k][r] *= r < rows ? shared.shrink[r] : 1.0f;
      for (int i = 0; i < count; ++i) {
        const float v = tile[i * (value_dim + 1) + c];
#pragma unroll
        for (int r = 0; r < piece_rows; ++r)
          if (r < rows) sum[k][r] += shared.weight[r][i] * v;
      }
    }
  }

  __syncthreads();
#pragma unroll
  for (int r = 0; r < piece_rows; ++r) {
    if (r >= rows) continue;
    const index_t part = plan.at_piece(head, piece, first_row + r);
#pragma unroll
    for (int k = 0; k < columns; ++k)
      if (thread + k * piece_threads < value_dim) plan.sums[part * value_dim + thread + k * piece_threads] = sum[k][r];
    if (thread == 0) plan.top[part] = shared.top[r], plan.total[part] = shared.total[r];
  }
}
/// Grid: `walk_grid`.
template <class KeyCodec, class ValueCodec>
__global__ void __launch_bounds__(piece_threads, attend_blocks<KeyCodec, ValueCodec>) attend_piece(PagedHeads<KeyCodec, ValueCodec> heads, AttendPlan plan) {
  for (PieceWalk<piece_threads> walk(heads.slots, heads.kv_heads, plan.cut); walk.any(); walk.next()) sum_piece(heads, plan, walk.head(), walk.piece());
}

inline constexpr int join_threads = 256, join_warps = join_threads / cuda::warp_lanes;

struct PieceSums {
  float sums[join_warps][max_head_dim];
};

/// Joins the pieces of a row in an order that their number tells: a warp takes every eighth, then warps follow each other, behind the head's summary slot
/// where it has one. Grid: rows, heads.
template <int Threads>
__global__ void __launch_bounds__(Threads) join_pieces(const index_t* slots, PagedSummaries summaries, AttendPlan plan) {
  static_assert(Threads == join_threads);
  auto& shared = cuda::shared_as<PieceSums>();
  const int lane = cuda::lane_of_warp(), warp = cuda::warp_of_block(), value_dim = static_cast<int>(plan.value_dim);
  const index_t row = blockIdx.x, head = blockIdx.y, left = summaries.count(head);
  const int n = static_cast<int>(plan.cut.pieces(slots[head]));
  const unsigned group = static_cast<unsigned>(plan.group);
  const index_t q_head = head * plan.group + blockIdx.x % group, token = blockIdx.x / group;
  const index_t seen = plan.visible(slots[head], row);
  const bool sees = seen > 0 || left > 0;
  const float* const mean = summaries.means + head * summaries.width;
  float own = minus_infinity();  // logit of the summary slot; every warp works it out, as what follows
  if (left > 0) {
    float sum = 0.0f;
    for (index_t c = lane; c < plan.dim; c += cuda::warp_lanes) sum += plan.request.queries(q_head, token, c) * plan.request.softmax_scale * mean[c];
    own = cuda::warp_sum(sum) + logf(static_cast<float>(left));
  }
  float top = own == own ? own : minus_infinity();
  const auto top_of = [&](int p) { return plan.top[plan.at_piece(head, p, row)]; };
  for (int p = lane; p < n; p += cuda::warp_lanes) top = top_of(p) > top ? top_of(p) : top;
  top = cuda::warp_max(top);
  const auto share = [&](int p) {
    const float t = top_of(p);
    return t > minus_infinity() ? expf(t - top) : 1.0f;  // a piece of NaN passes them on
  };
  const float part = left > 0 ? expf(own - top) : 0.0f;
  float total = 0.0f;
  for (int p = lane; p < n; p += cuda::warp_lanes) total += plan.total[plan.at_piece(head, p, row)] * share(p);
  total = cuda::warp_sum(total) + part;
  const float scale = total == 0.0f ? 0.0f : 1.0f / total;

  constexpr int columns = static_cast<int>(max_head_dim) / cuda::warp_lanes;
  float sum[columns] = {};
#pragma unroll 2
  for (int p = warp; p < n; p += join_warps) {
    const float* const from = plan.sums + plan.at_piece(head, p, row) * value_dim;
    const float weight = share(p);
#pragma unroll
    for (int k = 0; k < columns; ++k)
      if (lane + k * cuda::warp_lanes < value_dim) sum[k] += from[lane + k * cuda::warp_lanes] * weight;
  }
#pragma unroll
  for (int k = 0; k < columns; ++k) shared.sums[warp][lane + k * cuda::warp_lanes] = sum[k];
  __syncthreads();
  for (int c = static_cast<int>(threadIdx.x); c < value_dim; c += Threads) {
    float all = left > 0 ? part * mean[plan.dim + c] : 0.0f;
    for (int w = 0; w < join_warps && w < n; ++w) all += shared.sums[w][c];
    plan.request.out(q_head, token, static_cast<index_t>(c)) = sees ? all * scale : 0.0f;
  }
  if (threadIdx.x != 0) return;
  if (plan.request.lse.data != nullptr) plan.request.lse(q_head, token) = sees ? top + logf(total) : minus_infinity();
  plan.final_top[head * plan.rows + row] = top;
  plan.final_scale[head * plan.rows + row] = scale;
}

/// Probabilities of the counted rows, added per slot in the order of rows, to those of earlier turns. Grid: blocks of slots, heads.
template <int Threads>
__global__ void __launch_bounds__(Threads) add_mass(const index_t* slots, AttendPlan plan) {
  const index_t head = blockIdx.y, slot = static_cast<index_t>(blockIdx.x) * Threads + threadIdx.x;
  if (slot >= slots[head]) return;
  float mass = plan.adds_mass ? plan.request.mass.row(head)[slot] : 0.0f;
  for (index_t row = plan.first_mass_row; row < plan.rows; ++row) {
    if (slot >= plan.visible(slots[head], row)) continue;
    const float probability = expf(plan.logit_row(head, row)[slot] - plan.final_top[head * plan.rows + row]);
    mass += probability * plan.final_scale[head * plan.rows + row];
  }
  plan.request.mass.row(head)[slot] = mass;
}

}  // namespace kvcondense::prim::cuda_kernels
