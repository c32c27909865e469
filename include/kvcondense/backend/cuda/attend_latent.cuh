#pragma once

#include <cmath>

#include <kvcondense/backend/cuda/attend_piece.cuh>
#include <kvcondense/backend/cuda/attend_plan.cuh>
#include <kvcondense/backend/cuda/block.cuh>
#include <kvcondense/backend/cuda/latent_rows.cuh>
#include <kvcondense/core/shape.hpp>
#include <kvcondense/core/workspace.hpp>
#include <kvcondense/prim/slot_runs.hpp>

// Attention over coordinates of a low-rank stage: queries are mapped once a call and meet coordinates, sums of coordinates are mapped back once a
// call. Exact slots are read as ever, so queries and sums have both forms. Raw keys, which turn between coordinates and scores, are made again tile
// by tile in shared memory.

namespace kvcondense::prim::cuda_kernels {

/// What a call has beside an AttendPlan. Arrays of the workspace, with rows of `dim + 1` numbers:
///   queries [head][row]          that met `decode`: rank + 1 numbers, scaled
///   sums    [head][piece][row]   of coordinates of values, weighted by exp(logit - top), and of the weights
struct LatentPlan {
  float *queries = nullptr, *sums = nullptr;
};
inline std::size_t latent_workspace_of(const AttendPlan& p, const LatentSides& sides) {
  std::size_t n = 0;
  if (sides.keys) n += Scratch::bytes_for<float>(p.kv_heads * p.rows * (p.dim + 1));
  if (sides.values) n += Scratch::bytes_for<float>(p.kv_heads * p.partials * (p.value_dim + 1));
  return n;
}
inline bool place(LatentPlan& latent, const AttendPlan& p, const LatentSides& sides, Scratch& scratch) {
  if (sides.keys && (latent.queries = scratch.take<float>(p.kv_heads * p.rows * (p.dim + 1))) == nullptr) return false;
  return !sides.values || (latent.sums = scratch.take<float>(p.kv_heads * p.partials * (p.value_dim + 1))) != nullptr;
}

/// The map of a head's coordinates; of codecs without one none.
template <class Codec>
__device__ inline LatentMap map_of(const Codec&) {
  return {};
}
template <class C>
__device__ inline LatentMap map_of(const Latent<C>& codec) {
  return codec.map;
}

inline constexpr int latent_blocks = 3;  ///< of a multiprocessor
inline constexpr int latent_threads = 128, latent_warps = latent_threads / cuda::warp_lanes;

/// Queries meet the map of keys: a warp a coordinate. Grid: rows, heads.
template <class KeyCodec>
__global__ void __launch_bounds__(latent_threads) map_queries(KeyCodec codec, AttendPlan plan, LatentPlan latent) {
  const index_t row = blockIdx.x, head = blockIdx.y;
  const LatentMap map = map_of(of_head(codec, head));
  if (!map.maps()) return;
  float* const query = cuda::shared_as<float[max_head_dim]>();
  for (index_t c = threadIdx.x; c < plan.dim; c += latent_threads)
    query[c] = plan.request.queries(head * plan.group + row % plan.group, row / plan.group, c) * plan.request.softmax_scale;
  __syncthreads();
  float* const out = latent.queries + (head * plan.rows + row) * (plan.dim + 1);
  const float* const decode = map.decode();
  for (int j = cuda::warp_of_block(); j <= map.rank; j += latent_warps) {
    float sum = 0.0f;
    for (int c = cuda::lane_of_warp(); c < map.dim; c += cuda::warp_lanes) sum += entry_times(decode[j * map.dim + c], query[c]);
    sum = cuda::warp_sum(sum);
    if (cuda::lane_of_warp() == 0) out[j] = sum;
  }
}

struct LatentShared {
  float query[piece_rows][max_head_dim + 1];  ///< that met the map
  float weights[piece_rows];                  ///< of slots whose values are coordinates
};
inline std::size_t latent_shared(const KeyTurn& turn, index_t dim, index_t value_dim) { return sizeof(LatentShared) + piece_shared(turn, dim, value_dim); }

/// A tile as `load_tile` makes it, but that coordinates stay so, with a 1 behind them.
template <class C>
__device__ inline void load_coordinates(const Latent<C>& codec, const ExactRows& exact, int page_slots, const SlotRun* runs, int count, int dim, float* tile) {
  for (int i = cuda::warp_of_block(); i < count; i += piece_warps) {
    const SlotRun run = runs[i];
    float* row = tile + i * (dim + 1);
    if (run.coded) {
      const RowPage<Latent<C>> page(codec, run.page, page_slots, dim);
      load_row(page.coordinates(), run.place, row);
      if (cuda::lane_of_warp() == 0) row[codec.map.rank] = 1.0f;
    } else {
      const RowPage<ExactRows> page(exact, run.page, 0, dim);
      for (int c = cuda::lane_of_warp(); c < dim; c += cuda::warp_lanes) row[c] = page.value(run.place, c);
    }
  }
}
template <class Codec>
__device__ inline void load_either(const Codec& codec, [[maybe_unused]] bool coordinates, const ExactRows& exact, index_t page_slots, const SlotRun* runs, int count,
                                   int dim, float* tile) {
  if constexpr (is_latent<Codec>)
    if (coordinates) return load_coordinates(codec, exact, static_cast<int>(page_slots), runs, count, dim, tile);
  load_tile(codec, exact, static_cast<int>(page_slots), runs, count, dim, tile);
}

/// `sum_piece` over slots of which some are coordinates: a lane meets its slot with the form of the query that it understands, and sums of values
/// have two forms.
template <class KeyCodec, class ValueCodec>
__device__ inline void sum_latent_piece(const PagedHeads<KeyCodec, ValueCodec>& heads, const AttendPlan& plan, const LatentPlan& latent, index_t head, index_t piece) {
  PieceShared& shared = *reinterpret_cast<PieceShared*>(cuda::dyn_smem());
  LatentShared& mapped = *reinterpret_cast<LatentShared*>(cuda::dyn_smem() + sizeof(PieceShared));
  float* tile = reinterpret_cast<float*>(cuda::dyn_smem() + sizeof(PieceShared) + sizeof(LatentShared));
  const index_t first_row = static_cast<index_t>(blockIdx.x) * row_block, slots = heads.slots[head], size = plan.cut.piece_slots(slots);
  const int rows = static_cast<int>(plan.rows - first_row < row_block ? plan.rows - first_row : row_block);
  const int dim = static_cast<int>(plan.dim), value_dim = static_cast<int>(plan.value_dim);
  const int lane = cuda::lane_of_warp(), warp = cuda::warp_of_block(), thread = static_cast<int>(threadIdx.x);
  const auto key_codec = of_head(heads.key_codec, head);
  const auto value_codec = of_head(heads.value_codec, head);
  const LatentMap key_map = map_of(key_codec), value_map = map_of(value_codec);
  const bool latent_keys = is_latent<KeyCodec> && heads.turn.fine == nullptr && key_map.maps();
  const bool latent_values = is_latent<ValueCodec> && value_map.maps();
  const int key_width = key_map.rank + 1, value_rank = value_map.rank;
  const FarTile far(heads.turn, dim, tile + tile_floats(dim > value_dim ? dim : value_dim));

  begin_piece(shared, far, heads, plan, head, first_row, rows);
  for (int i = thread; latent_keys && i < rows * key_width; i += piece_threads)
    mapped.query[i / key_width][i % key_width] = latent.queries[(head * plan.rows + first_row + i / key_width) * (plan.dim + 1) + i % key_width];
  if (thread < piece_rows) mapped.weights[thread] = 0.0f;
  constexpr int columns = static_cast<int>(max_head_dim) / piece_threads;
  float sum[columns][piece_rows] = {}, of_latent[columns][piece_rows] = {};

  // No row of the block sees more than its last one.
  const index_t seen = plan.visible(slots, first_row + rows - 1);
  const index_t end = (piece + 1) * size < seen ? (piece + 1) * size : seen;
  for (index_t at = piece * size; at < end; at += piece_tile) {
    const int count = static_cast<int>(end - at < piece_tile ? end - at : piece_tile);
    __syncthreads();  // the tile before is done with everything shared
    locate_tile(shared, heads, head, at, count, slots);
    __syncthreads();
    load_either(key_codec, latent_keys, heads.exact, heads.keys.page_slots, shared.key_run, count, dim, tile);
    if (heads.turn.fine != nullptr) turn_tile(heads.turn, head, at, count, dim, tile, far.keys);
    __syncthreads();

    for (int r = warp; r < rows; r += piece_warps) {  // a warp a row, a lane a slot
      const index_t row = first_row + r;
      const bool visible = lane < count && at + lane < plan.visible(slots, row);
      float logit = minus_infinity();
      if (visible) {
        logit = 0.0f;
        const bool coordinates = latent_keys && shared.key_run[lane].coded;
        const bool out_of_reach = far.there() && heads.turn.out_of_reach(head, plan.visible(slots, row) - 1, at + lane);
        const float* const key = (out_of_reach ? far.keys : tile) + lane * (dim + 1);
        const float* const query = coordinates ? mapped.query[r] : out_of_reach ? far.query(r) : shared.query[r];
        const int width = coordinates ? key_width : dim;
        for (int c = 0; c < width; ++c) logit += query[c] * key[c];
        logit = finish_logit(shared, heads, plan, head, row, at + lane, slots, logit);
      }
      const float scaled = weigh_tile(shared, r, visible, logit);
      const float coded = cuda::warp_sum(visible && latent_values && shared.value_run[lane].coded ? scaled : 0.0f);
      if (lane == 0) mapped.weights[r] = mapped.weights[r] * shared.shrink[r] + coded;
    }
    __syncthreads();
    load_either(value_codec, latent_values, heads.exact, heads.values.page_slots, shared.value_run, count, value_dim, tile);
    __syncthreads();
#pragma unroll
    for (int k = 0; k < columns; ++k) {
      const int c = thread + k * piece_threads;
      if (c >= value_dim) continue;  // there are no more coordinates than numbers
#pragma unroll
      for (int r = 0; r < piece_rows; ++r) {
        const float shrink = r < rows ? shared.shrink[r] : 1.0f;
        sum[k][r] *= shrink, of_latent[k][r] *= shrink;
      }
      for (int i = 0; i < count; ++i) {
        const bool coordinates = latent_values && shared.value_run[i].coded;  // of all threads
        if (coordinates && c >= value_rank) continue;
        const float v = tile[i * (value_dim + 1) + c];
#pragma unroll
        for (int r = 0; r < piece_rows; ++r) {
          const float part = r < rows ? shared.weight[r][i] * v : 0.0f;
          if (coordinates) of_latent[k][r] += part;
          else sum[k][r] += part;
        }
      }
    }
  }

  __syncthreads();
#pragma unroll
  for (int r = 0; r < piece_rows; ++r) {
    if (r >= rows) continue;
    const index_t part = plan.at_piece(head, piece, first_row + r);
#pragma unroll
    for (int k = 0; k < columns; ++k) {
      const int c = thread + k * piece_threads;
      if (c < value_dim) plan.sums[part * value_dim + c] = sum[k][r];
      if (latent_values && c < value_rank) latent.sums[part * (value_dim + 1) + c] = of_latent[k][r];
    }
    if (thread == 0) plan.top[part] = shared.top[r], plan.total[part] = shared.total[r];
    if (latent_values && thread == 0) latent.sums[part * (value_dim + 1) + value_rank] = mapped.weights[r];
  }
}

/// Grid: `walk_grid`.
template <class KeyCodec, class ValueCodec>
__global__ void __launch_bounds__(piece_threads, latent_blocks) attend_latent_piece(PagedHeads<KeyCodec, ValueCodec> heads, AttendPlan plan, LatentPlan latent) {
  for (PieceWalk<piece_threads> walk(heads.slots, heads.kv_heads, plan.cut); walk.any(); walk.next()) sum_latent_piece(heads, plan, latent, walk.head(), walk.piece());
}

/// Behind `join_pieces`: sums of coordinates are joined, mapped back and added to the output. Grid: rows, heads.
template <class ValueCodec>
__global__ void __launch_bounds__(latent_threads) add_latent_sums(ValueCodec codec, const index_t* slots, AttendPlan plan, LatentPlan latent) {
  const index_t row = blockIdx.x, head = blockIdx.y, n = plan.cut.pieces(slots[head]);
  const LatentMap map = map_of(of_head(codec, head));
  if (!map.maps() || plan.visible(slots[head], row) <= 0) return;
  float* const joined = cuda::shared_as<float[max_head_dim + 1]>();
  const float top = plan.final_top[head * plan.rows + row], scale = plan.final_scale[head * plan.rows + row];
  for (int j = static_cast<int>(threadIdx.x); j <= map.rank; j += latent_threads) {
    float sum = 0.0f;
    for (index_t p = 0; p < n; ++p) {
      const index_t part = plan.at_piece(head, p, row);
      const float share = plan.top[part] > minus_infinity() ? expf(plan.top[part] - top) : 1.0f;  // a piece of NaN passes them on
      sum += latent.sums[part * (plan.value_dim + 1) + j] * share;
    }
    joined[j] = sum * scale;
  }
  __syncthreads();
  const float* const decode = map.decode();
  for (int c = static_cast<int>(threadIdx.x); c < map.dim; c += latent_threads) {
    float sum = 0.0f;
    for (int j = 0; j <= map.rank; ++j) sum += joined[j] * decode[j * map.dim + c];
    plan.request.out(head * plan.group + row % plan.group, row / plan.group, static_cast<index_t>(c)) += sum;
  }
}

}  // namespace kvcondense::prim::cuda_kernels
