#pragma once

#include <cstdint>

#include <kvcondense/backend/cuda/attend_halves.cuh>
#include <kvcondense/backend/cuda/attend_latent.cuh>
#include <kvcondense/backend/cuda/latent_ring.cuh>
#include <kvcondense/prim/slot_runs.hpp>

// `attend_halves` over slots of which some are coordinates. A tile is of one kind, so a tile of
// keys meets one form of the queries, and a tile of values is added to one of two sums. Coordinates
// are as long as a rank in pages, in the ring and in products: rows of `Rank` numbers, exact rows
// of `Dim`.

namespace kvcondense::prim::cuda_kernels {

/// Queries of a block of rows in both forms, each in the order that its keys are read in, a lane's
/// own; behind the rings. Logits are products times `scale`, and `shift`: what a mean of keys adds
/// to those of coordinates.
template <int Dim, int Rank>
struct LatentQueries {
  uint4 exact[Dim / 32][cuda::warp_lanes], coded[Rank / 32][cuda::warp_lanes];
  float scale[2][row_block], shift[2][row_block];
};
template <int Pairs>
__device__ inline void keep_queries(const QueryPairs<Pairs>& q, float shift, int lane,
                                    uint4 (*pairs)[cuda::warp_lanes], float* scales,
                                    float* shifts) {
#pragma unroll
  for (int k = 0; k < Pairs / 4; ++k)
    pairs[k][lane] = uint4{q.pair[4 * k], q.pair[4 * k + 1], q.pair[4 * k + 2], q.pair[4 * k + 3]};
  if (lane % 4 == 0) scales[lane / 4] = q.scale, shifts[lane / 4] = shift;
}
template <int Pairs>
__device__ inline void take_queries(const uint4 (*pairs)[cuda::warp_lanes], int lane,
                                    std::uint32_t (&q)[Pairs]) {
#pragma unroll
  for (int k = 0; k < Pairs / 4; ++k) {
    const uint4 v = pairs[k][lane];
    q[4 * k] = v.x, q[4 * k + 1] = v.y, q[4 * k + 2] = v.z, q[4 * k + 3] = v.w;
  }
}

template <int Dim, int Rank>
std::size_t latent_halves_shared(const RingLayout& ring) {
  return halves_shared<Dim>(ring) + sizeof(LatentQueries<Dim, Rank>);
}

/// Sums of a warp, rows 2t and 2t + 1, where the other warps find them.
template <int Blocks, int Dim>
__device__ inline void show_sums(HalvesShared<Dim>& shared, const float (&sum)[Blocks][4],
                                 const float (&total)[2]) {
  const int lane = cuda::lane_of_warp(), warp = cuda::warp_of_block(), g = lane / 4, t = lane % 4;
#pragma unroll
  for (int e = 0; e < 2; ++e)
    if (g == 0) shared.total[warp][2 * t + e] = total[e];
#pragma unroll
  for (int m = 0; m < Blocks; ++m)
#pragma unroll
    for (int c = 0; c < 4; ++c)
      shared.sums[warp][2 * t + c % 2][64 * (m / 4) + 8 * g + m % 4 + 4 * (c / 2)] = sum[m][c];
}
/// What all warps found of channel c of row r; at the total `c` is -1.
template <int Dim>
__device__ inline float joined_sum(const HalvesShared<Dim>& shared, int r, int c, float most) {
  float all = 0.0f;
  for (int w = 0; w < halves_warps; ++w)
    all += cuda::exp2_fast(shared.top[w][r] - most) *
           (c < 0 ? shared.total[w][r] : shared.sums[w][r][c]);
  return all;
}
template <int Dim>
__device__ inline float joined_top(const HalvesShared<Dim>& shared, int r) {
  float most = lowest_logit;
  for (int w = 0; w < halves_warps; ++w) most = shared.top[w][r] > most ? shared.top[w][r] : most;
  return most;
}

/// Blocks that registers of a multiprocessor have room for: two sums of long rows take those of a
/// third.
template <int Dim>
inline constexpr int latent_halves_blocks = Dim > 64 ? 2 : 3;

/// A piece of a head. The layout is made to fit the ranks of the head.
template <class KeyCodec, class ValueCodec, int Dim, int Rank>
__device__ inline void sum_latent_halves(const PagedHeads<KeyCodec, ValueCodec>& heads,
                                         const AttendPlan& plan, const LatentPlan& latent,
                                         RingLayout layout, index_t head, index_t piece) {
  using Keys = RingCodec<KeyCodec>;
  using Values = RingCodec<ValueCodec>;
  using ExactOrder = KeyOrder<ExactRows, Dim>;
  using CodedOrder = KeyOrder<Keys, Rank>;
  static_assert(ExactOrder::units == 1 && Rank <= Dim);
  constexpr int blocks = Dim / 16, coded_blocks = Rank / 16;  // of 16 channels of sums
  const index_t first_row = static_cast<index_t>(blockIdx.x) * row_block,
                slots = heads.slots[head], size = plan.cut.piece_slots(slots);
  const int rows =
      static_cast<int>(plan.rows - first_row < row_block ? plan.rows - first_row : row_block);
  const int dim = static_cast<int>(plan.dim), value_dim = static_cast<int>(plan.value_dim);
  const int lane = cuda::lane_of_warp(), warp = cuda::warp_of_block(), g = lane / 4, t = lane % 4;
  const auto& key_codec = ring_codec(heads.key_codec);
  const auto& value_codec = ring_codec(heads.value_codec);
  const CoordinateRows of_keys = coordinate_rows(heads.key_codec, head, dim),
                       of_values = coordinate_rows(heads.value_codec, head, value_dim);
  resize(key_codec, layout.key, of_keys.width), resize(value_codec, layout.value, of_values.width);

  std::byte* const memory = reinterpret_cast<std::byte*>(cuda::dyn_smem());
  const int rings = halves_warps * ring_stages * layout.stage;
  LatentQueries<Dim, Rank>& queries = *reinterpret_cast<LatentQueries<Dim, Rank>*>(
      memory + (rings > static_cast<int>(sizeof(HalvesShared<Dim>))
                    ? rings
                    : static_cast<int>(sizeof(HalvesShared<Dim>))));
  // No row of the block sees more than its last one.
  const index_t seen = plan.visible(slots, first_row + rows - 1), begin = piece * size;
  const int end = static_cast<int>(begin + size < seen ? begin + size : seen),
            from = static_cast<int>(begin);
  const int share =
      end > from ? ((end - from + halves_warps - 1) / halves_warps + 15) / 16 * 16 : 0;
  const int first = from + warp * share, last = first + share < end ? first + share : end;
  Ring<Keys, Values, Dim, ExactOrder::units, Rank> ring(
      {key_codec, layout.key, heads.keys, head, first, dim},
      {value_codec, layout.value, heads.values, head, first, value_dim}, layout.stage,
      memory + warp * ring_stages * layout.stage, first, last);
  if (warp == 0)
    keep_queries(load_queries<ExactOrder, Dim / 8>(plan, head, first_row + g, g < rows, t), 0.0f,
                 lane, queries.exact, queries.scale[0], queries.shift[0]);
  if (!exact_only<Keys> && warp == 1 && !of_keys.maps)
    keep_queries(load_queries<CodedOrder, Rank / 8>(plan, head, first_row + g, g < rows, t), 0.0f,
                 lane, queries.coded, queries.scale[1], queries.shift[1]);
  if (warp == 1 && of_keys.maps) {
    const float* const row = latent.queries + (head * plan.rows + first_row + g) * (plan.dim + 1);
    const auto number = [&](int c) { return g < rows && c < of_keys.width ? row[c] : 0.0f; };
    keep_queries(halve_queries<CodedOrder, Rank / 8>(number, 1.0f, t),
                 g < rows ? row[of_keys.width] * log2_e : 0.0f, lane, queries.coded,
                 queries.scale[1], queries.shift[1]);
  }
  __syncthreads();
  int visible[2];  // this lane's two columns of scores are rows 2t and 2t + 1
#pragma unroll
  for (int e = 0; e < 2; ++e)
    visible[e] =
        2 * t + e < rows ? static_cast<int>(plan.visible(slots, first_row + 2 * t + e)) : 0;
  const bool mass = plan.request.mass.data != nullptr;

  float sum[blocks][4] = {}, of_coordinates[coded_blocks][4] = {},
        top[2] = {lowest_logit, lowest_logit}, total[2] = {}, coordinate_total[2] = {};
  for (int stage = 0, filled = 0;; stage = stage + 1 < ring_stages ? stage + 1 : 0) {
    if (filled < ring_stages) {
      ring.fetch(stage), ++filled;
      continue;
    }
    cuda::copy_async_wait<ring_stages - 1>();
    __syncwarp();
    const TileHead tile = ring.head(stage);
    if (tile.count == 0) break;

    const std::byte *key_rows = ring.rows_of_keys(stage), *key_params = ring.params_of_keys(stage);
    const bool coded_keys = !exact_only<Keys> && tile.key_coded != 0,
               coded_values = !exact_only<Values> && tile.value_coded != 0;
    // Scores wait in the place of the keys they were made from where that can be, each in the lane
    // that made it.
    float4* waiting = reinterpret_cast<float4*>(ring.rows_of_keys(stage) + layout.scores) + lane;
    const float2 scale =
                     *reinterpret_cast<const float2*>(queries.scale[coded_keys ? 1 : 0] + 2 * t),
                 shift =
                     *reinterpret_cast<const float2*>(queries.shift[coded_keys ? 1 : 0] + 2 * t);
    float largest[2] = {top[0], top[1]};
    int limit[2];  // slots of the tile that a row sees
#pragma unroll
    for (int e = 0; e < 2; ++e)
      limit[e] = visible[e] - tile.first < tile.count ? visible[e] - tile.first : tile.count;
    const auto each_step = [&](const Scores& bias, const auto& add) {
#pragma unroll 1
      for (int u = 0; 16 * u < tile.count; ++u) {
        Scores score = {bias[0], bias[1], bias[2], bias[3]};
        add(u, score);
#pragma unroll
        for (int c = 0; c < 4; ++c) {
          const bool sees = 16 * u + g + 8 * (c / 2) < limit[c % 2];
          score[c] =
              sees ? fmaf(score[c], c % 2 == 0 ? scale.x : scale.y, c % 2 == 0 ? shift.x : shift.y)
                   : minus_infinity();
          largest[c % 2] = score[c] > largest[c % 2] ? score[c] : largest[c % 2];
        }
        if (mass) {
#pragma unroll
          for (int c = 0; c < 4; ++c) {
            const index_t row = first_row + 2 * t + c % 2;
            const int in_tile = 16 * u + g + 8 * (c / 2);
            if (in_tile < limit[c % 2] && row >= plan.first_mass_row)
              plan.logit_row(head, row)[tile.first + in_tile] = score[c] * ln_2;
          }
        }
        __syncwarp();  // keys of this step are read
        waiting[32 * u] = float4{score[0], score[1], score[2], score[3]};
      }
    };
    if (!coded_keys) {
      std::uint32_t q[Dim / 8];
      take_queries(queries.exact, lane, q);
      each_step({}, [&](int u, Scores& score) {
        exact_scores<ExactOrder, Dim>(key_rows, u, q, g, t, score);
      });
    } else if constexpr (!exact_only<Keys>) {
      std::uint32_t q[Rank / 8];
      take_queries(queries.coded, lane, q);
      if constexpr (rows_of_halves<Keys>) {
        each_step({}, [&](int u, Scores& score) {
          exact_scores<CodedOrder, Rank>(key_rows, u, q, g, t, score);
        });
      } else {
        const ChannelGroups groups(key_codec, of_keys.width);
        const BaseRule rule(key_codec);
        const bool folds = key_codec.axis == GroupAxis::channel;
        Scores bias = {};
        std::uint32_t folded[Rank / 8];
#pragma unroll
        for (int p = 0; p < Rank / 8; ++p) folded[p] = q[p];
        if (folds) fold_scales<Keys::bits, CodedOrder, Rank>(rule, key_params, q, t, folded, bias);
        each_step(bias, [&](int u, Scores& score) {
          coded_scores<Keys::bits, CodedOrder, Rank>(
              folds, rule, key_rows, key_params, layout.key.stride, groups, u, folded, g, t, score);
        });
      }
    }
#pragma unroll
    for (int e = 0; e < 2; ++e)
#pragma unroll
      for (int d = 4; d < cuda::warp_lanes; d *= 2) {
        const float other = __shfl_xor_sync(cuda::full_warp, largest[e], d);
        largest[e] = other > largest[e] ? other : largest[e];
      }
    // Tops seldom move behind the first tiles, and two sums are many products.
    if (__any_sync(cuda::full_warp, static_cast<int>(largest[0] > top[0] || largest[1] > top[1])) !=
        0) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const float shrink = cuda::exp2_fast(top[e] - largest[e]);
        top[e] = largest[e];
        total[e] *= shrink, coordinate_total[e] *= shrink;
#pragma unroll
        for (int m = 0; m < blocks; ++m) sum[m][e] *= shrink, sum[m][2 + e] *= shrink;
#pragma unroll
        for (int m = 0; m < coded_blocks; ++m)
          of_coordinates[m][e] *= shrink, of_coordinates[m][2 + e] *= shrink;
      }
    }
    float part[2] = {};  // of the total
    const auto each_weight = [&](const auto& add) {
#pragma unroll 1
      for (int u = 0; 16 * u < tile.count; ++u) {
        const float4 score = waiting[32 * u];
        const float weight[4] = {
            cuda::exp2_fast(score.x - top[0]), cuda::exp2_fast(score.y - top[1]),
            cuda::exp2_fast(score.z - top[0]), cuda::exp2_fast(score.w - top[1])};
        part[0] += weight[0] + weight[2], part[1] += weight[1] + weight[3];
        const std::uint32_t b[2] = {cuda::transpose_8x8(cuda::half2_pack(weight[0], weight[1])),
                                    cuda::transpose_8x8(cuda::half2_pack(weight[2], weight[3]))};
        add(u, b);
      }
    };
    const std::byte* value_rows = ring.rows_of_values(stage);
    if (!coded_values) {
      each_weight([&](int u, const std::uint32_t(&b)[2]) {
        add_exact_values<Dim>(value_rows, u, b, g, t, sum);
      });
    } else if constexpr (!exact_only<Values>) {
      const auto add_to = [&](float(*to)[4]) {
        if constexpr (rows_of_halves<Values>) {
          each_weight([&](int u, const std::uint32_t(&b)[2]) {
            add_exact_values<Rank>(value_rows, u, b, g, t, to);
          });
        } else {
          const ChannelGroups groups(value_codec, of_values.width);
          const BaseRule rule(value_codec);
          each_weight([&](int u, const std::uint32_t(&b)[2]) {
            add_coded_values<Values::bits, Rank>(rule, value_rows, ring.params_of_values(stage),
                                                 layout.value.stride, groups, u, b, g, t, to);
          });
        }
      };
      // Before a map is found, and of codecs without one, what is coded are rows.
      if (of_values.maps)
        add_to(of_coordinates);
      else
        add_to(sum);
    }
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      total[e] += part[e];
      if (coded_values && of_values.maps) coordinate_total[e] += part[e];
    }
    __syncwarp();  // all lanes are done with the stage
    ring.fetch(stage);
  }
  cuda::copy_async_wait<0>();

#pragma unroll
  for (int e = 0; e < 2; ++e)
#pragma unroll
    for (int d = 4; d < cuda::warp_lanes; d *= 2) {
      total[e] += __shfl_xor_sync(cuda::full_warp, total[e], d);
      coordinate_total[e] += __shfl_xor_sync(cuda::full_warp, coordinate_total[e], d);
    }
  __syncthreads();  // rings are done with
  HalvesShared<Dim>& shared = cuda::shared_as<HalvesShared<Dim>>();
#pragma unroll
  for (int e = 0; e < 2; ++e)
    if (g == 0) shared.top[warp][2 * t + e] = top[e];
  show_sums(shared, sum, total);
  __syncthreads();
  for (int x = static_cast<int>(threadIdx.x); x < rows * value_dim; x += halves_threads) {
    const int r = x / value_dim, c = x % value_dim;
    const float most = joined_top(shared, r);
    const index_t at = plan.at_piece(head, piece, first_row + r);
    plan.sums[at * value_dim + c] = joined_sum(shared, r, c, most);
    if (c == 0)
      plan.top[at] = most > lowest_logit ? most * ln_2 : minus_infinity(),
      plan.total[at] = joined_sum(shared, r, -1, most);
  }
  if constexpr (is_latent<ValueCodec>) {
    if (!of_values.maps) return;  // of all threads
    __syncthreads();
    show_sums(shared, of_coordinates, coordinate_total);
    __syncthreads();
    const int width = of_values.width + 1;
    for (int x = static_cast<int>(threadIdx.x); x < rows * width; x += halves_threads) {
      const int r = x / width, j = x % width;
      latent.sums[plan.at_piece(head, piece, first_row + r) * (value_dim + 1) + j] =
          joined_sum(shared, r, j < of_values.width ? j : -1, joined_top(shared, r));
    }
  }
}

/// Grid: `walk_grid`.
template <class KeyCodec, class ValueCodec, int Dim, int Rank>
__global__ void __launch_bounds__(halves_threads, latent_halves_blocks<Dim>)
    attend_latent_halves(PagedHeads<KeyCodec, ValueCodec> heads, AttendPlan plan, LatentPlan latent,
                         RingLayout layout) {
  for (PieceWalk<halves_threads> walk(heads.slots, heads.kv_heads, plan.cut); walk.any(); walk.next())
    sum_latent_halves<KeyCodec, ValueCodec, Dim, Rank>(heads, plan, latent, layout, walk.head(),
                                                       walk.piece());
}

/// Numbers of the longest row that is not exact, of any head.
inline index_t widest_coded(const ExactRows&, index_t) { return 0; }
template <class Codec>
index_t widest_coded(const Codec&, index_t dim) {
  return dim;
}
template <class C>
index_t widest_coded(const Latent<C>& codec, index_t dim) {
  return codec.map.uneven ? dim : codec.map.rank;
}

/// Coordinates that are halves may be any number of them, and another in every head; those that are codes as many in all, for a ring is laid out
/// for rows of one length of theirs.
template <class C>
bool reads_as_halves(const Latent<C>& codec, index_t, bool keys) {
  if constexpr (std::is_same_v<C, ExactRows>)
    return codec.codec.dtype == DType::f16;
  else
    return !codec.map.uneven && codec.map.rank % 16 == 0 && reads_as_halves(codec.codec, codec.map.rank, keys);
}

}  // namespace kvcondense::prim::cuda_kernels
