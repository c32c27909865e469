#pragma once

#include <cmath>
#include <cstdint>

#include <kvcondense/backend/cuda/attend_piece.cuh>
#include <kvcondense/backend/cuda/attend_plan.cuh>
#include <kvcondense/backend/cuda/block.cuh>
#include <kvcondense/backend/cuda/halves.cuh>
#include <kvcondense/backend/cuda/ring.cuh>
#include <kvcondense/prim/slot_runs.hpp>

// One piece of a head for eight query rows, on tensor cores: scores = keys (slots x channels) times queries
// (channels x rows), sums = values (channels x slots) times weights (slots x rows). Numbers enter products as halves
// and are summed in float32. A warp takes a quarter of the piece through a ring of its own; warps meet once, at the
// end. Scales of keys on the channel axis go into the queries, once for all slots of a group.

namespace kvcondense::prim::cuda_kernels {

inline constexpr int halves_threads = 128, halves_warps = halves_threads / cuda::warp_lanes;
static_assert(row_block == 8);
inline constexpr int halves_blocks = 3;   ///< of a multiprocessor, where shared memory is enough
inline constexpr int halves_least = 7;    ///< logarithm of a shortest piece: two steps of tensor cores a warp

/// What the warps bring together, in the place of their rings.
template <int Dim>
struct HalvesShared {
  float sums[halves_warps][row_block][Dim];
  float top[halves_warps][row_block], total[halves_warps][row_block];
};
template <int Dim>
std::size_t halves_shared(const RingLayout& ring) {
  const std::size_t rings = static_cast<std::size_t>(halves_warps * ring_stages * ring.stage);
  return rings > sizeof(HalvesShared<Dim>) ? rings : sizeof(HalvesShared<Dim>);
}

inline constexpr float log2_e = 1.4426950408889634f, ln_2 = 0.6931471805599453f;
/// Below every logit, and finite: differences of two of them are 0.
inline constexpr float lowest_logit = -1e30f;

/// Which units of a row of keys, padded to `Dim` numbers, lane t of four takes: `units` side by side at a read.
template <class Codec, int Dim>
struct KeyOrder {
  static constexpr int bits = stored_bits<Codec>, all = Dim / 32;
  static constexpr int whole = Dim * bits / 32, read_bytes = whole < 16 ? whole : 16, reads = whole / read_bytes, units = read_bytes / bits;
  __device__ static constexpr int unit_of(int k, int t) { return (k / units * 4 + t) * units + k % units; }
};

/// Queries of a row as halves below 1, divided by a power of two; `scale` makes logits of base 2.
template <int Pairs>
struct QueryPairs {
  std::uint32_t pair[Pairs];
  float scale;
};
/// Lane (g, t) holds row g: four pairs of each of its units. `number(c)` is the row's at channel c, `factor` of its logits.
template <class Order, int Pairs, class Number>
__device__ inline QueryPairs<Pairs> halve_queries(const Number& number, float factor, int t) {
  float x[2 * Pairs], most = 0.0f;
#pragma unroll
  for (int p = 0; p < Pairs; ++p)
#pragma unroll
    for (int k = 0; k < 2; ++k) {
      const int c = Order::unit_of(p / 4, t) * unit + p % 4 + 4 * k;
      const float q = number(c);
      x[2 * p + k] = q;
      most = fabsf(q) > most ? fabsf(q) : most;
    }
  most = cuda::warp_max(most, 4);
  const auto bits = kvcondense::detail::bit_cast<std::uint32_t>(most) & 0x7f800000u;
  const bool usual = bits > 0x10000000u && bits < 0x70000000u;
  const float power = usual ? 2.0f * kvcondense::detail::bit_cast<float>(bits) : 1.0f;
  QueryPairs<Pairs> q;
  q.scale = factor * log2_e * power;
#pragma unroll
  for (int p = 0; p < Pairs; ++p) q.pair[p] = cuda::half2_pack(x[2 * p] / power, x[2 * p + 1] / power);
  return q;
}
/// Of the request. Rows and channels that are not there are zeros.
template <class Order, int Pairs>
__device__ inline QueryPairs<Pairs> load_queries(const AttendPlan& plan, index_t head, index_t row, bool there, int t) {
  const int dim = static_cast<int>(plan.dim);
  const auto number = [&](int c) { return there && c < dim ? plan.request.queries(head * plan.group + row % plan.group, row / plan.group, c) : 0.0f; };
  return halve_queries<Order, Pairs>(number, plan.request.softmax_scale, t);
}

/// Groups of channels of a codec of the token axis, and the one that a unit belongs to. A division, so it is done once.
struct ChannelGroups {
  int count = 1, units = 1, shift = 0;  ///< units of eight channels in a group, and their logarithm; -1: no power of two
  template <class Codec>
  __device__ ChannelGroups(const Codec& codec, int dim) {
    if constexpr (!std::is_same_v<Codec, ExactRows>) {
      if (codec.axis == GroupAxis::channel) return;
      const int group = static_cast<int>(codec.group_channels(dim));
      count = dim / group, units = group / unit;
      shift = (units & (units - 1)) == 0 ? __ffs(units) - 1 : -1;
    }
  }
  /// Units behind the end of a row take the last group.
  __device__ int of(int u) const {
    const int j = shift >= 0 ? u >> shift : u / units;
    return j < count ? j : count - 1;
  }
};

/// Scores of 16 slots against eight rows: slots g and g + 8 of rows 2t and 2t + 1.
using Scores = float[4];

__device__ inline void add_key_unit(const std::uint32_t (&near)[4], const std::uint32_t (&far)[4], const std::uint32_t* q, Scores& score) {
#pragma unroll
  for (int j = 0; j < 2; ++j) {
    const std::uint32_t a[4] = {near[2 * j], far[2 * j], near[2 * j + 1], far[2 * j + 1]};
    const std::uint32_t b[2] = {q[2 * j], q[2 * j + 1]};
    cuda::mma_f16(score, a, b);
  }
}

/// Keys as they are: a lane's units of rows g and g + 8 of step u.
template <class Order, int Dim>
__device__ inline void exact_scores(const std::byte* rows, int u, const std::uint32_t* q, int g, int t, Scores& score) {
  constexpr int row = padded_row(16, Dim);
#pragma unroll
  for (int k = 0; k < Order::all; ++k) {
    std::uint32_t near[4], far[4];
    const std::byte* at = rows + key_chunk<row, Order::units>(g, Order::unit_of(k, t)) * 16 + 16 * u * row;
    exact_key_unit(at, near), exact_key_unit(at + 8 * row, far);
    add_key_unit(near, far, q + 4 * k, score);
  }
}

/// Queries times a group's scales, and what its constant terms add to every score. Codes enter products raw, as
/// 1024 + code * 2^shift: the queries carry 2^-shift, a product with rows of -1024 takes off the rest.
template <int Bits, class Order, int Dim>
__device__ inline void fold_scales(const BaseRule& rule, const std::byte* params, const std::uint32_t* q, int t, std::uint32_t* folded, float (&bias)[4]) {
#pragma unroll
  for (int k = 0; k < Order::all; ++k) {
    std::uint32_t scale[4], offset[4] = {};
    const int at = param_chunk(Order::unit_of(k, t)) * 16;
    exact_key_unit(params + at, scale);
    if (rule.offsets) exact_key_unit(params + 2 * Dim + at, offset);
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      std::uint32_t base[2], b[2];
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const int i = 2 * j + e;
        base[e] = rule.base(scale[i], offset[i]);
        b[e] = cuda::half2_mul(q[4 * k + i], scale[i]);
        if (raw_shift<Bits>(Bits == 8 ? 0 : i) != 0) b[e] = cuda::half2_mul(b[e], raw_inverse(raw_shift<Bits>(i)));
        folded[4 * k + i] = b[e];
      }
      const std::uint32_t own[2] = {q[4 * k + 2 * j], q[4 * k + 2 * j + 1]};
      const std::uint32_t a[4] = {base[0], base[0], base[1], base[1]};
      cuda::mma_f16(bias, a, own);
      constexpr std::uint32_t off[4] = {minus_raw_zero, minus_raw_zero, minus_raw_zero, minus_raw_zero};
      cuda::mma_f16(bias, off, b);
    }
  }
}

/// Codes of keys: raw where scales are folded into q, else as numbers.
template <int Bits, class Order, int Dim>
__device__ inline void coded_scores(bool folded, const BaseRule& rule, const std::byte* rows, const std::byte* params, int stride, const ChannelGroups& groups, int u,
                                    const std::uint32_t* q, int g, int t, Scores& score) {
  constexpr int row = padded_row(Bits, Dim);
#pragma unroll
  for (int r = 0; r < Order::reads; ++r) {
    std::uint32_t near_words[4], far_words[4];
    const int place = (4 * r + t) * Order::read_bytes;
    const std::byte* at = rows + key_chunk<row, 1>(g, place / 16) * 16 + place % 16 + 16 * u * row;
    read_words<Order::read_bytes>(at, near_words), read_words<Order::read_bytes>(at + 8 * row, far_words);
#pragma unroll
    for (int n = 0; n < Order::units; ++n) {
      const int k = r * Order::units + n;
      std::uint32_t near[4], far[4];
      raw_key_unit<Bits>(near_words, n, near), raw_key_unit<Bits>(far_words, n, far);
      if (!folded) {
        const int j = groups.of(Order::unit_of(k, t));
        const std::byte* own = params + g * stride + 16 * u * stride;
        const PairScale x = pair_scale(rule, own, own, j, groups.count), y = pair_scale(rule, own + 8 * stride, own + 8 * stride, j, groups.count);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          near[i] = cuda::half2_fma(code_of_raw<Bits>(near[i], Bits == 8 ? 0 : i), x.scale, x.base);
          far[i] = cuda::half2_fma(code_of_raw<Bits>(far[i], Bits == 8 ? 0 : i), y.scale, y.base);
        }
      }
      add_key_unit(near, far, q + 4 * k, score);
    }
  }
}

/// Adds weights (slots x rows) times the values of 16 slots, of which this lane takes 2t, 2t + 1 and 8 further on.
template <int Dim>
__device__ inline void add_exact_values(const std::byte* rows, int step, const std::uint32_t (&weights)[2], int g, int t, float (*sum)[4]) {
  constexpr int row = padded_row(16, Dim);
#pragma unroll
  for (int hh = 0; hh < Dim / 64; ++hh) {
    std::uint32_t near[unit], far[unit];
    const std::byte* even = rows + value_chunk<row>(2 * t, 8 * hh + g) * 16 + 16 * step * row;
    const std::byte* odd = rows + value_chunk<row>(2 * t + 1, 8 * hh + g) * 16 + 16 * step * row;
    exact_value_unit(even, odd, near), exact_value_unit(even + 8 * row, odd + 8 * row, far);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const std::uint32_t a[4] = {near[i], near[i + 4], far[i], far[i + 4]};
      cuda::mma_f16(sum[4 * hh + i], a, weights);
    }
  }
}
template <int Bits, int Dim>
__device__ inline void add_coded_values(const BaseRule& rule, const std::byte* rows, const std::byte* params, int stride, const ChannelGroups& groups, int step,
                                        const std::uint32_t (&weights)[2], int g, int t, float (*sum)[4]) {
  constexpr int row = padded_row(Bits, Dim);
#pragma unroll
  for (int hh = 0; hh < Dim / 64; ++hh) {
    const int place = (8 * hh + g) * Bits, j = groups.of(8 * hh + g);
    const std::byte* even = rows + value_chunk<row>(2 * t, place / 16) * 16 + place % 16 + 16 * step * row;
    const std::byte* odd = rows + value_chunk<row>(2 * t + 1, place / 16) * 16 + place % 16 + 16 * step * row;
    std::uint32_t near[unit], far[unit];
    coded_value_unit<Bits>(even, odd, near), coded_value_unit<Bits>(even + 8 * row, odd + 8 * row, far);
    const std::byte* own = params + 2 * t * stride + 16 * step * stride;
    const PairScale x = pair_scale(rule, own, own + stride, j, groups.count), y = pair_scale(rule, own + 8 * stride, own + 9 * stride, j, groups.count);
#pragma unroll
    for (int i = 0; i < unit; ++i) near[i] = cuda::half2_fma(near[i], x.scale, x.base), far[i] = cuda::half2_fma(far[i], y.scale, y.base);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const std::uint32_t a[4] = {near[i], near[i + 4], far[i], far[i + 4]};
      cuda::mma_f16(sum[4 * hh + i], a, weights);
    }
  }
}

template <class Codec>
inline constexpr bool exact_only = std::is_same_v<Codec, ExactRows>;

template <class KeyCodec, class ValueCodec, int Dim>
__device__ inline void sum_halves(const PagedHeads<KeyCodec, ValueCodec>& heads, const AttendPlan& plan, const RingLayout& layout, index_t head, index_t piece) {
  using Order = KeyOrder<KeyCodec, Dim>;
  constexpr int pairs = Dim / 8, blocks = Dim / 16;  // of a lane's keys; of 16 channels of sums
  const index_t first_row = static_cast<index_t>(blockIdx.x) * row_block, slots = heads.slots[head], size = plan.cut.piece_slots(slots);
  const int rows = static_cast<int>(plan.rows - first_row < row_block ? plan.rows - first_row : row_block), dim = static_cast<int>(plan.dim);
  const int lane = cuda::lane_of_warp(), warp = cuda::warp_of_block(), g = lane / 4, t = lane % 4;

  std::byte* memory = reinterpret_cast<std::byte*>(cuda::dyn_smem()) + warp * ring_stages * layout.stage;
  // No row of the block sees more than its last one.
  const index_t seen = plan.visible(slots, first_row + rows - 1), begin = piece * size;
  const int end = static_cast<int>(begin + size < seen ? begin + size : seen), from = static_cast<int>(begin);
  const int share = end > from ? ((end - from + halves_warps - 1) / halves_warps + 15) / 16 * 16 : 0;
  const int first = from + warp * share, last = first + share < end ? first + share : end;
  Ring<KeyCodec, ValueCodec, Dim, Order::units> ring({heads.key_codec, layout.key, heads.keys, head, first, dim}, {heads.value_codec, layout.value, heads.values, head, first, dim},
                                                     layout.stage, memory, first, last);
  const QueryPairs<pairs> q = load_queries<Order, pairs>(plan, head, first_row + g, g < rows, t);
  // This lane's two columns of scores are rows 2t and 2t + 1.
  const float scale[2] = {__shfl_sync(cuda::full_warp, q.scale, 8 * t), __shfl_sync(cuda::full_warp, q.scale, 8 * t + 4)};
  int visible[2];
#pragma unroll
  for (int e = 0; e < 2; ++e) visible[e] = 2 * t + e < rows ? static_cast<int>(plan.visible(slots, first_row + 2 * t + e)) : 0;
  const ChannelGroups key_groups(heads.key_codec, dim), value_groups(heads.value_codec, dim);
  const BaseRule key_rule(heads.key_codec), value_rule(heads.value_codec);
  bool folds = false;
  if constexpr (!exact_only<KeyCodec>) folds = heads.key_codec.axis == GroupAxis::channel;
  const bool mass = plan.request.mass.data != nullptr;

  float sum[blocks][4] = {}, top[2] = {lowest_logit, lowest_logit}, total[2] = {};
  for (int stage = 0, filled = 0;; stage = stage + 1 < ring_stages ? stage + 1 : 0) {
    if (filled < ring_stages) {
      ring.fetch(stage), ++filled;
      continue;
    }
    cuda::copy_async_wait<ring_stages - 1>();
    __syncwarp();
    const TileHead tile = ring.head(stage);
    if (tile.count == 0) break;

    const std::byte* key_rows = ring.rows_of_keys(stage);
    const bool exact_keys = exact_only<KeyCodec> || tile.key_coded == 0, exact_values = exact_only<ValueCodec> || tile.value_coded == 0;
    Scores bias = {};
    std::uint32_t folded[pairs];
#pragma unroll
    for (int p = 0; p < pairs; ++p) folded[p] = q.pair[p];
    if constexpr (!exact_only<KeyCodec>)
      if (!exact_keys && folds)
        fold_scales<KeyCodec::bits, Order, Dim>(key_rule, ring.params_of_keys(stage), q.pair, t, folded, bias);

    // Scores wait in the place of the keys they were made from where that can be, each in the lane that made it.
    float4* waiting = reinterpret_cast<float4*>(ring.rows_of_keys(stage) + layout.scores) + lane;
    float largest[2] = {top[0], top[1]};
    int limit[2];  // slots of the tile that a row sees
#pragma unroll
    for (int e = 0; e < 2; ++e) limit[e] = visible[e] - tile.first < tile.count ? visible[e] - tile.first : tile.count;
#pragma unroll 1
    for (int u = 0; 16 * u < tile.count; ++u) {
      Scores score = {bias[0], bias[1], bias[2], bias[3]};
      if (exact_keys) exact_scores<Order, Dim>(key_rows, u, q.pair, g, t, score);
      if constexpr (!exact_only<KeyCodec>)
        if (!exact_keys)
          coded_scores<KeyCodec::bits, Order, Dim>(folds, key_rule, key_rows, ring.params_of_keys(stage), layout.key.stride, key_groups, u, folded, g, t, score);
#pragma unroll
      for (int c = 0; c < 4; ++c) {
        const bool sees = 16 * u + g + 8 * (c / 2) < limit[c % 2];
        score[c] = sees ? score[c] * scale[c % 2] : minus_infinity();
        largest[c % 2] = score[c] > largest[c % 2] ? score[c] : largest[c % 2];
      }
      if (mass) {
#pragma unroll
        for (int c = 0; c < 4; ++c) {
          const index_t row = first_row + 2 * t + c % 2;
          const int in_tile = 16 * u + g + 8 * (c / 2);
          if (in_tile < limit[c % 2] && row >= plan.first_mass_row) plan.logit_row(head, row)[tile.first + in_tile] = score[c] * ln_2;
        }
      }
      __syncwarp();  // keys of this step are read
      waiting[32 * u] = float4{score[0], score[1], score[2], score[3]};
    }
#pragma unroll
    for (int e = 0; e < 2; ++e) {
#pragma unroll
      for (int d = 4; d < cuda::warp_lanes; d *= 2) {
        const float other = __shfl_xor_sync(cuda::full_warp, largest[e], d);
        largest[e] = other > largest[e] ? other : largest[e];
      }
      const float shrink = cuda::exp2_fast(top[e] - largest[e]);
      top[e] = largest[e];
      total[e] *= shrink;
#pragma unroll
      for (int m = 0; m < blocks; ++m) sum[m][e] *= shrink, sum[m][2 + e] *= shrink;
    }
#pragma unroll 1
    for (int u = 0; 16 * u < tile.count; ++u) {
      const float4 score = waiting[32 * u];
      const float weight[4] = {cuda::exp2_fast(score.x - top[0]), cuda::exp2_fast(score.y - top[1]), cuda::exp2_fast(score.z - top[0]),
                               cuda::exp2_fast(score.w - top[1])};
      total[0] += weight[0], total[1] += weight[1], total[0] += weight[2], total[1] += weight[3];
      const std::uint32_t b[2] = {cuda::transpose_8x8(cuda::half2_pack(weight[0], weight[1])),
                                  cuda::transpose_8x8(cuda::half2_pack(weight[2], weight[3]))};
      if (exact_values) add_exact_values<Dim>(ring.rows_of_values(stage), u, b, g, t, sum);
      if constexpr (!exact_only<ValueCodec>)
        if (!exact_values)
          add_coded_values<ValueCodec::bits, Dim>(value_rule, ring.rows_of_values(stage), ring.params_of_values(stage), layout.value.stride, value_groups, u, b,
                                                  g, t, sum);
    }
    __syncwarp();  // all lanes are done with the stage
    ring.fetch(stage);
  }
  cuda::copy_async_wait<0>();

#pragma unroll
  for (int e = 0; e < 2; ++e) {
#pragma unroll
    for (int d = 4; d < cuda::warp_lanes; d *= 2) total[e] += __shfl_xor_sync(cuda::full_warp, total[e], d);
  }
  __syncthreads();  // rings are done with
  HalvesShared<Dim>& shared = cuda::shared_as<HalvesShared<Dim>>();
#pragma unroll
  for (int e = 0; e < 2; ++e)
    if (g == 0) shared.top[warp][2 * t + e] = top[e], shared.total[warp][2 * t + e] = total[e];
#pragma unroll
  for (int m = 0; m < blocks; ++m)
#pragma unroll
    for (int c = 0; c < 4; ++c) shared.sums[warp][2 * t + c % 2][64 * (m / 4) + 8 * g + m % 4 + 4 * (c / 2)] = sum[m][c];
  __syncthreads();
  for (int x = static_cast<int>(threadIdx.x); x < rows * dim; x += halves_threads) {
    const int r = x / dim, c = x % dim;
    float most = lowest_logit, all = 0.0f, weights = 0.0f;
    for (int w = 0; w < halves_warps; ++w) most = shared.top[w][r] > most ? shared.top[w][r] : most;
    for (int w = 0; w < halves_warps; ++w) {
      const float part = cuda::exp2_fast(shared.top[w][r] - most);
      all += part * shared.sums[w][r][c];
      weights += part * shared.total[w][r];
    }
    const index_t at = plan.at_piece(head, piece, first_row + r);
    plan.sums[at * dim + c] = all;
    if (c == 0) plan.top[at] = most > lowest_logit ? most * ln_2 : minus_infinity(), plan.total[at] = weights;
  }
}

/// Grid: `walk_grid`.
template <class KeyCodec, class ValueCodec, int Dim>
__global__ void __launch_bounds__(halves_threads, halves_blocks) attend_halves(PagedHeads<KeyCodec, ValueCodec> heads, AttendPlan plan, RingLayout layout) {
  for (PieceWalk<halves_threads> walk(heads.slots, heads.kv_heads, plan.cut); walk.any(); walk.next())
    sum_halves<KeyCodec, ValueCodec, Dim>(heads, plan, layout, walk.head(), walk.piece());
}

/// Whether rows of `dim` numbers of a codec can be taken: whole words, parameters in halves.
inline bool reads_as_halves(const ExactRows& codec, index_t, bool) { return codec.dtype == DType::f16; }
template <int Bits>
bool reads_as_halves(const GroupInt<Bits>& codec, index_t dim, bool keys) {
  if (stored_bits<GroupInt<Bits>> == 0 || codec.params != ParamType::f16 || !lies_in_rows(codec)) return false;
  if (codec.axis == GroupAxis::channel) return keys;
  return codec.group_channels(dim) % unit == 0;
}

}  // namespace kvcondense::prim::cuda_kernels
