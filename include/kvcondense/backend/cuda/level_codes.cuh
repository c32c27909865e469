#pragma once

#include <cmath>
#include <cstdint>

#include <kvcondense/backend/cuda/row_codec.cuh>
#include <kvcondense/prim/level_codes.hpp>

namespace kvcondense::prim {

/// Bits, what the scale is, then what the 2^bits codes stand for.
template <>
struct CodecTable<LevelCodes> {
  static constexpr int levels_at = 2;
  static index_t floats(const LevelCodes&, index_t) { return levels_at + 16; }
  static void fill(const LevelCodes& codec, index_t, float* out) {
    out[0] = static_cast<float>(codec.bits), out[1] = static_cast<float>(codec.scale);
    for (int c = 0; c < 16; ++c) out[levels_at + c] = c < 1 << codec.bits ? codec.value(c) : 0.0f;
  }
};

namespace cuda_kernels {

template <>
struct RowPage<Tabled<LevelCodes>> {
  const float* level;
  std::byte* data;
  int dim, bits, codes, bytes;
  LevelScale scale;

  __device__ RowPage(const float* table, std::byte* page, int, int row)
      : level(table + CodecTable<LevelCodes>::levels_at), data(page), dim(row), bits(static_cast<int>(table[0])), codes((row * bits + 7) / 8), bytes(codes + 2),
        scale(static_cast<LevelScale>(static_cast<int>(table[1]))) {}
  __device__ RowPage(const Tabled<LevelCodes>& c, std::byte* page, int slots, int row) : RowPage(c.table, page, slots, row) {}

  __device__ std::byte* row(int slot) const { return data + slot * bytes; }
  __device__ SlotBytes slot_bytes(int slot) const { return {row(slot), nullptr, bytes, 0}; }
  __device__ float value(int slot, int c) const { return __fmul_rn(level[row_code(row(slot), bits, c)], half_at(row(slot) + codes)); }

  struct Scratch {
    float clean[max_head_dim];
    std::uint8_t codes[max_head_dim];
  };
  /// Sums are in the order of channels, in every lane the same: products of floats are exact in double.
  template <class Rows>
  __device__ int encode(int slot, const Rows& rows, int i, Scratch& s) const {
    const int lane = cuda::lane_of_warp();
    int bad = clean_row(rows.row(i), dim, rows.counted, s.clean);
    double square = 0.0;
    for (int c = 0; c < dim; ++c) square += static_cast<double>(s.clean[c]) * static_cast<double>(s.clean[c]);
    const double length = sqrt(square);
    const auto inverse = static_cast<float>(length > 0.0 ? 1.0 / length : 0.0);
    for (int c = lane; c < dim; c += cuda::warp_lanes) s.codes[c] = code_of(__fmul_rn(s.clean[c], inverse));
    __syncwarp();
    double own = 0.0, shared = 0.0;
    for (int c = 0; c < dim; ++c) {
      const auto v = static_cast<double>(level[s.codes[c]]);
      own += v * v, shared += v * static_cast<double>(__fmul_rn(s.clean[c], inverse));
    }
    double size = length;
    if (scale == LevelScale::unit) size /= sqrt(own);
    if (scale == LevelScale::least_squares) size *= shared / own;
    if (lane == 0) put_half(row(slot) + codes, static_cast<float>(size), bad);
    pack_row(bits, s.codes, dim, row(slot));
    return cuda::warp_sum(bad);
  }

 private:
  /// Midpoints at or below u.
  __device__ std::uint8_t code_of(float u) const {
    const int half = 1 << (bits - 1);
    const float size = fabsf(u);
    int above = 0;
    for (int k = 0; k + 1 < half; ++k) {
      const float middle = 0.5f * (level[half + k] + level[half + k + 1]);
      above += static_cast<int>(u < 0.0f ? size > middle : size >= middle);
    }
    return static_cast<std::uint8_t>(u < 0.0f ? half - 1 - above : half + above);
  }
};

}  // namespace cuda_kernels
}  // namespace kvcondense::prim
