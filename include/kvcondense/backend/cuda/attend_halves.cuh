#pragma once

#include <cmath>
#include <cstdint>

#include <kvcondense/backend/cuda/attend_piece.cuh>
#include <kvcondense/backend/cuda/attend_plan.cuh>
#include <kvcondense/backend/cuda/block.cuh>
#include <kvcondense/backend/cuda/halves.cuh>
#include <kvcondense/prim/slot_runs.hpp>

// One piece of a head for eight query rows, on tensor cores: scores = keys (slots x channels) times queries
// (channels x rows), sums = values (channels x slots) times weights (slots x rows). Numbers enter products as halves
// and are summed in float32. A warp takes 64 slots at a time, straight from pages into registers; warps meet once, at
// the end.

namespace kvcondense::prim::cuda_kernels {

inline constexpr int halves_threads = 128, halves_warps = halves_threads / cuda::warp_lanes;
inline constexpr int halves_tile = 64, halves_steps = halves_tile / 16;
static_assert(halves_warps * halves_tile == least_piece && row_block == 8);

template <int Dim>
struct HalvesShared {
  RowAt key[halves_warps][halves_tile], value[halves_warps][halves_tile];
  float sums[halves_warps][row_block][Dim];
  float top[halves_warps][row_block], total[halves_warps][row_block];
};

inline constexpr float log2_e = 1.4426950408889634f, ln_2 = 0.6931471805599453f;
/// Below every logit, and finite: differences of two of them are 0.
inline constexpr float lowest_logit = -1e30f;

/// Queries of a row as halves, divided by a power of two so that none is out of range; `scale` makes logits of base 2.
template <int Pairs>
struct QueryPairs {
  std::uint32_t pair[Pairs];
  float scale;
};
/// Lane (g, t) holds row g, of every four units the t-th. Rows that are not there are zeros.
template <int Pairs>
__device__ inline QueryPairs<Pairs> load_queries(const AttendPlan& plan, index_t head, index_t row, bool there, int t) {
  float x[2 * Pairs], most = 0.0f;
#pragma unroll
  for (int p = 0; p < Pairs; ++p)
#pragma unroll
    for (int k = 0; k < 2; ++k) {
      const int c = (p / 4 * 4 + t) * unit + p % 4 + 4 * k;
      const float q = there ? plan.request.queries(head * plan.group + row % plan.group, row / plan.group, c) : 0.0f;
      x[2 * p + k] = q;
      most = fabsf(q) > most ? fabsf(q) : most;
    }
  most = cuda::warp_max(most, 4);
  const auto bits = kvcondense::detail::bit_cast<std::uint32_t>(most) & 0x7f800000u;
  const bool usual = bits > 0x10000000u && bits < 0x70000000u;
  const float power = usual ? kvcondense::detail::bit_cast<float>(bits) : 1.0f;
  QueryPairs<Pairs> q;
  q.scale = plan.request.softmax_scale * log2_e * power;
#pragma unroll
  for (int p = 0; p < Pairs; ++p) q.pair[p] = cuda::half2_pack(x[2 * p] / power, x[2 * p + 1] / power);
  return q;
}

/// Grid: pieces, row blocks, heads.
template <class KeyCodec, class ValueCodec, int Dim>
__global__ void __launch_bounds__(halves_threads, Dim == 64 ? 3 : 2) attend_halves(PagedHeads<KeyCodec, ValueCodec> heads, AttendPlan plan) {
  constexpr int pairs = Dim / 8, blocks = Dim / 16;  // of a lane's keys; of 16 channels of sums
  HalvesShared<Dim>& shared = cuda::shared_as<HalvesShared<Dim>>();
  const index_t head = blockIdx.z, piece = blockIdx.x, first_row = static_cast<index_t>(blockIdx.y) * row_block;
  const index_t slots = heads.slots[head], size = piece_slots(slots, plan.split);
  if (piece >= pieces(slots, plan.split)) return;
  const int rows = static_cast<int>(plan.rows - first_row < row_block ? plan.rows - first_row : row_block);
  const int lane = cuda::lane_of_warp(), warp = cuda::warp_of_block(), g = lane / 4, t = lane % 4;

  const QueryPairs<pairs> q = load_queries<pairs>(plan, head, first_row + g, g < rows, t);
  // This lane's two columns of scores are rows 2t and 2t + 1.
  const float scale[2] = {__shfl_sync(cuda::full_warp, q.scale, 8 * t), __shfl_sync(cuda::full_warp, q.scale, 8 * t + 4)};
  index_t visible[2];
#pragma unroll
  for (int e = 0; e < 2; ++e) visible[e] = 2 * t + e < rows ? plan.visible(slots, first_row + 2 * t + e) : 0;

  float sum[blocks][4] = {}, top[2] = {lowest_logit, lowest_logit}, total[2] = {};
  const index_t seen = plan.visible(slots, first_row + rows - 1);
  const index_t end = (piece + 1) * size < seen ? (piece + 1) * size : seen;
  for (index_t at = piece * size + warp * halves_tile; at < end; at += halves_warps * halves_tile) {
    for (int s = lane; s < halves_tile; s += cuda::warp_lanes) {  // behind the end: the last slot again, with no weight
      const index_t slot = at + s < end ? at + s : end - 1;
      shared.key[warp][s] = row_at(heads.key_codec, static_cast<int>(heads.keys.page_slots), Dim, locate(heads.keys, head, slot));
      shared.value[warp][s] = row_at(heads.value_codec, static_cast<int>(heads.values.page_slots), Dim, locate(heads.values, head, slot));
    }
    __syncwarp();

    float score[halves_steps][4];  // slots 16u + g, 16u + g + 8 of rows 2t, 2t + 1
#pragma unroll
    for (int u = 0; u < halves_steps; ++u)
#pragma unroll
      for (int c = 0; c < 4; ++c) score[u][c] = 0.0f;
#pragma unroll
    for (int k = 0; k < pairs / 4; ++k) {  // of 32 channels, a unit in each of four lanes
      UnitScales scales;
#pragma unroll
      for (int u = 0; u < halves_steps; ++u) {
        std::uint32_t near[4], far[4];
        key_pairs(heads.key_codec, shared.key[warp][16 * u + g], Dim, 4 * k + t, scales, near);
        key_pairs(heads.key_codec, shared.key[warp][16 * u + g + 8], Dim, 4 * k + t, scales, far);
        __syncwarp();
#pragma unroll
        for (int j = 0; j < 2; ++j) {
          const std::uint32_t a[4] = {near[2 * j], far[2 * j], near[2 * j + 1], far[2 * j + 1]};
          const std::uint32_t b[2] = {q.pair[4 * k + 2 * j], q.pair[4 * k + 2 * j + 1]};
          cuda::mma_f16(score[u], a, b);
        }
      }
    }
    float largest[2] = {top[0], top[1]};
#pragma unroll
    for (int u = 0; u < halves_steps; ++u)
#pragma unroll
      for (int c = 0; c < 4; ++c) {
        const index_t slot = at + 16 * u + g + 8 * (c / 2);
        const bool sees = slot < end && slot < visible[c % 2];
        const float logit = score[u][c] * scale[c % 2];
        score[u][c] = sees ? logit : minus_infinity();
        largest[c % 2] = score[u][c] > largest[c % 2] ? score[u][c] : largest[c % 2];
        const index_t row = first_row + 2 * t + c % 2;
        if (sees && plan.request.mass.data != nullptr && row >= plan.first_mass_row) plan.logit_row(head, row)[slot] = logit * ln_2;
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
#pragma unroll
    for (int u = 0; u < halves_steps; ++u) {
      float weight[4];
#pragma unroll
      for (int c = 0; c < 4; ++c) {
        weight[c] = cuda::exp2_fast(score[u][c] - top[c % 2]);
        total[c % 2] += weight[c];
      }
      const std::uint32_t b[2] = {cuda::transpose_8x8(cuda::half2_pack(weight[0], weight[1])),
                                  cuda::transpose_8x8(cuda::half2_pack(weight[2], weight[3]))};
      const RowAt* value = shared.value[warp] + 16 * u + 2 * t;
#pragma unroll
      for (int hh = 0; hh < Dim / 64; ++hh) {
        std::uint32_t near[unit], far[unit];
        value_pairs(heads.value_codec, value[0], value[1], Dim, 8 * hh + g, near);
        value_pairs(heads.value_codec, value[8], value[9], Dim, 8 * hh + g, far);
        __syncwarp();
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const std::uint32_t a[4] = {near[i], near[i + 4], far[i], far[i + 4]};
          cuda::mma_f16(sum[4 * hh + i], a, b);
        }
      }
    }
    __syncwarp();  // the tables of rows are written anew
  }

#pragma unroll
  for (int e = 0; e < 2; ++e) {
#pragma unroll
    for (int d = 4; d < cuda::warp_lanes; d *= 2) total[e] += __shfl_xor_sync(cuda::full_warp, total[e], d);
    if (g == 0) shared.top[warp][2 * t + e] = top[e], shared.total[warp][2 * t + e] = total[e];
  }
#pragma unroll
  for (int m = 0; m < blocks; ++m)
#pragma unroll
    for (int c = 0; c < 4; ++c) shared.sums[warp][2 * t + c % 2][64 * (m / 4) + 8 * g + m % 4 + 4 * (c / 2)] = sum[m][c];
  __syncthreads();
  for (int x = static_cast<int>(threadIdx.x); x < rows * Dim; x += halves_threads) {
    const int r = x / Dim, c = x % Dim;
    float most = lowest_logit, all = 0.0f, weights = 0.0f;
    for (int w = 0; w < halves_warps; ++w) most = shared.top[w][r] > most ? shared.top[w][r] : most;
    for (int w = 0; w < halves_warps; ++w) {
      const float share = cuda::exp2_fast(shared.top[w][r] - most);
      all += share * shared.sums[w][r][c];
      weights += share * shared.total[w][r];
    }
    const index_t part = plan.at_piece(head, piece, first_row + r);
    plan.sums[part * Dim + c] = all;
    if (c == 0) plan.top[part] = most > lowest_logit ? most * ln_2 : minus_infinity(), plan.total[part] = weights;
  }
}

/// Codecs whose rows can be read as units, and whether rows of `dim` numbers can.
template <class Codec>
inline constexpr bool has_units = false;
template <>
inline constexpr bool has_units<ExactRows> = true;
template <int Bits>
inline constexpr bool has_units<GroupInt<Bits>> = Bits == 2 || Bits == 4 || Bits == 8;

inline bool reads_as_halves(const ExactRows& codec, index_t, bool) { return codec.dtype == DType::f16; }
template <int Bits>
bool reads_as_halves(const GroupInt<Bits>& codec, index_t dim, bool keys) {
  if (codec.params != ParamType::f16) return false;
  if (codec.axis == GroupAxis::channel) return keys && has_units<GroupInt<Bits>>;
  return has_units<GroupInt<Bits>> && codec.group_channels(dim) % unit == 0;
}

}  // namespace kvcondense::prim::cuda_kernels
