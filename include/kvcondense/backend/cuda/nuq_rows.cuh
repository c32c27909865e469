#pragma once

#include <cstdint>

#include <kvcondense/backend/cuda/row_codec.cuh>
#include <kvcondense/prim/nuq_rows.hpp>

namespace kvcondense::prim {

/// Bits, outliers, whether ranges are of channels, levels; then middles, halves, lower and upper ends of channels.
template <>
struct CodecTable<NuqRows> {
  static constexpr int levels_at = 3, ranges_at = levels_at + 16;
  static index_t floats(const NuqRows& codec, index_t dim) { return ranges_at + (codec.fixed() ? 4 * dim : 0); }
  static void fill(const NuqRows& codec, index_t dim, float* out) {
    out[0] = static_cast<float>(codec.bits), out[1] = static_cast<float>(codec.outliers), out[2] = codec.fixed() ? 1.0f : 0.0f;
    for (std::size_t i = 0; i < codec.level.size(); ++i) out[levels_at + static_cast<index_t>(i)] = codec.level[i];
    out += ranges_at;
    for (index_t c = 0; c < (codec.fixed() ? dim : 0); ++c)
      out[c] = codec.middle(c), out[dim + c] = codec.half(c), out[2 * dim + c] = codec.lower[c], out[3 * dim + c] = codec.upper[c];
  }
};

namespace cuda_kernels {

template <>
struct RowPage<Tabled<NuqRows>> {
  const float* level;
  const float* ranges;
  std::byte* data;
  int dim, bits, outliers;
  bool fixed;
  int range_at, addends_at, bytes;

  __device__ RowPage(const float* table, std::byte* page, int, int row)
      : level(table + CodecTable<NuqRows>::levels_at), ranges(table + CodecTable<NuqRows>::ranges_at), data(page), dim(row), bits(static_cast<int>(table[0])),
        outliers(static_cast<int>(table[1])), fixed(table[2] != 0.0f), range_at((row * bits + 7) / 8), addends_at(range_at + (fixed ? 0 : 4)), bytes(addends_at + 3 * outliers) {}
  __device__ RowPage(const Tabled<NuqRows>& c, std::byte* page, int slots, int row) : RowPage(c.table, page, slots, row) {}

  __device__ std::byte* row(int slot) const { return data + slot * bytes; }
  __device__ SlotBytes slot_bytes(int slot) const { return {row(slot), nullptr, bytes, 0}; }
  __device__ float value(int slot, int c) const {
    const std::byte* at = row(slot);
    const float middle = fixed ? ranges[c] : half_at(at + range_at), half = fixed ? ranges[dim + c] : half_at(at + range_at + 2);
    float x = __fadd_rn(__fmul_rn(level[row_code(at, bits, c)], half), middle);
    const std::byte* places = at + addends_at + 2 * outliers;
    for (int e = 0; e < outliers; ++e) {
      const int place = static_cast<int>(places[e]);
      if ((place < dim ? place : dim - 1) == c) x = __fadd_rn(x, half_at(at + addends_at + 2 * e));  // a damaged place must not lead astray
    }
    return x;
  }

  struct Scratch {
    float clean[max_head_dim];
    std::uint8_t codes[max_head_dim], taken[max_head_dim];
  };
  template <class Rows>
  __device__ int encode(int slot, const Rows& rows, int i, Scratch& s) const {
    const int lane = cuda::lane_of_warp();
    std::byte* const to = row(slot);
    int bad = clean_row(rows.row(i), dim, rows.counted, s.clean);
    for (int c = lane; c < dim; c += cuda::warp_lanes) s.taken[c] = 0;
    __syncwarp();
    const float* const x = s.clean;
    float lo = 0.0f, hi = 0.0f, of_row[2] = {};  // middle and half
    const auto beyond = [&](int c) {
      const float over = fixed ? x[c] - ranges[3 * dim + c] : x[c] - hi, under = fixed ? ranges[2 * dim + c] - x[c] : lo - x[c];
      const float most = over < under ? under : over;
      return most < 0.0f ? 0.0f : most;
    };
    if (fixed) {
      take<true>(s, outliers, beyond);
    } else {
      take<true>(s, outliers / 2, [&](int c) { return x[c]; });
      take<false>(s, outliers / 2, [&](int c) { return x[c]; });
      lo = largest_coded, hi = -largest_coded;
      for (int c = lane; c < dim; c += cuda::warp_lanes)
        if (s.taken[c] == 0) lo = x[c] < lo ? x[c] : lo, hi = x[c] > hi ? x[c] : hi;
      lo = cuda::warp_reduce(lo, [](float a, float b) { return a < b ? a : b; });
      hi = cuda::warp_max(hi);
      const float range[2] = {__fadd_rn(0.5f * lo, 0.5f * hi), __fadd_rn(0.5f * hi, -0.5f * lo)};
      int cut = 0;
      for (int k = 0; k < 2; ++k) {
        bool saturated = false;
        of_row[k] = stored(ParamType::f16, range[k], saturated);
        if (lane == 0) put_half(to + range_at + 2 * k, range[k], cut);
      }
      bad += cut;
    }
    const auto middle = [&](int c) { return fixed ? ranges[c] : of_row[0]; };
    const auto half = [&](int c) { return fixed ? ranges[dim + c] : of_row[1]; };
    for (int c = lane; c < dim; c += cuda::warp_lanes) {
      const float inverse = half(c) >= smallest_step ? __frcp_rn(half(c)) : 0.0f;
      s.codes[c] = code_of(limit_to(__fmul_rn(x[c] - middle(c), inverse), 1e30f));
    }
    __syncwarp();
    pack_row(bits, s.codes, dim, to);
    int before = 0;  // outliers of channels in front
    for (int from = 0; from < dim; from += cuda::warp_lanes) {
      const int c = from + lane;
      const bool mine = c < dim && s.taken[c] != 0;
      const unsigned all = __ballot_sync(cuda::full_warp, static_cast<int>(mine));
      if (mine) {
        const int e = before + __popc(all & ((1u << lane) - 1u));
        const float left = x[c] - __fadd_rn(__fmul_rn(level[s.codes[c]], half(c)), middle(c));
        put_half(to + addends_at + 2 * e, beyond(c) > 0.0f ? left : 0.0f, bad);
        to[addends_at + 2 * outliers + e] = static_cast<std::byte>(c);
      }
      before += __popc(all);
    }
    return cuda::warp_sum(bad);
  }

 private:
  /// Marks the `count` channels of largest (or smallest) key that are not marked yet.
  template <bool Largest, class Key>
  __device__ void take(Scratch& s, int count, Key&& key) const {
    for (int k = 0; k < count; ++k) {
      const int c = first_extreme<Largest>(dim, [&](int j) { return s.taken[j] != 0; }, key);
      __syncwarp();
      if (cuda::lane_of_warp() == 0) s.taken[c] = 1;
      __syncwarp();
    }
  }
  /// Midpoints at or below u.
  __device__ std::uint8_t code_of(float u) const {
    int code = 0;
    for (int k = 0; k + 1 < 1 << bits; ++k) code += static_cast<int>(u >= 0.5f * (level[k] + level[k + 1]));
    return static_cast<std::uint8_t>(code);
  }
};

}  // namespace cuda_kernels
}  // namespace kvcondense::prim
