#pragma once

#include <cmath>
#include <cstdint>
#include <numbers>

#include <kvcondense/backend/cuda/row_codec.cuh>
#include <kvcondense/prim/polar_tree.hpp>

namespace kvcondense::prim {

/// Levels, bits of the first and of the others; then the cosine and sine of the middle of every bin of the first level, and angle, cosine and sine of
/// every code of the others.
template <>
struct CodecTable<PolarTree> {
  static constexpr int circle_at = 3, angles_at = circle_at + 2 * 64, codes = 8;
  static index_t floats(const PolarTree&, index_t) { return angles_at + 3 * codes * (static_cast<index_t>(PolarTree::most_levels) - 1); }
  static void fill(const PolarTree& codec, index_t, float* out) {
    out[0] = static_cast<float>(codec.levels), out[1] = static_cast<float>(codec.first_bits), out[2] = static_cast<float>(codec.bits);
    for (int i = 0; i < 1 << codec.first_bits; ++i) {
      const double a = 2.0 * std::numbers::pi * (i + 0.5) / (1 << codec.first_bits);
      out[circle_at + 2 * i] = static_cast<float>(std::cos(a)), out[circle_at + 2 * i + 1] = static_cast<float>(std::sin(a));
    }
    for (index_t l = 2; l <= codec.levels; ++l)
      for (int c = 0; c < 1 << codec.bits; ++c) {
        float* to = out + angles_at + 3 * (codes * (l - 2) + c);
        to[0] = codec.angle_of(l, c), to[1] = std::cos(to[0]), to[2] = std::sin(to[0]);
      }
  }
};

namespace cuda_kernels {

template <>
struct RowPage<Tabled<PolarTree>> {
  using Table = CodecTable<PolarTree>;

  const float* table;
  std::byte* data;
  int dim, levels, first_bits, bits, codes, bytes;

  __device__ RowPage(const float* t, std::byte* page, int, int row)
      : table(t), data(page), dim(row), levels(static_cast<int>(t[0])), first_bits(static_cast<int>(t[1])), bits(static_cast<int>(t[2])), codes(0), bytes(0) {
    for (int l = 1; l <= levels; ++l) codes += level_bytes(l);
    bytes = codes + 2 * (dim >> levels);
  }
  __device__ RowPage(const Tabled<PolarTree>& c, std::byte* page, int slots, int row) : RowPage(c.table, page, slots, row) {}

  __device__ std::byte* row(int slot) const { return data + slot * bytes; }
  __device__ SlotBytes slot_bytes(int slot) const { return {row(slot), nullptr, bytes, 0}; }
  __device__ float value(int slot, int c) const {
    const std::byte* at = row(slot) + codes;
    const float length = half_at(at + 2 * (c >> levels));
    float direction = 1.0f;
    for (int l = levels; l >= 1; --l) {
      at -= level_bytes(l);
      const int code = row_code(at, bits_of(l), c >> l), sine = c >> (l - 1) & 1;
      direction = __fmul_rn(direction, l == 1 ? table[Table::circle_at + 2 * code + sine] : table[angle_of(l, code) + 1 + sine]);
    }
    return __fmul_rn(direction, length);
  }

  struct Scratch {
    double length[2][max_head_dim];
    std::uint8_t codes[max_head_dim];
  };
  /// A level after the other, the whole row at once: neighbours of all blocks become lengths.
  template <class Rows>
  __device__ int encode(int slot, const Rows& rows, int i, Scratch& s) const {
    const int lane = cuda::lane_of_warp();
    auto* clean = reinterpret_cast<float*>(s.length[1]);
    int bad = clean_row(rows.row(i), dim, rows.counted, clean);
    for (int c = lane; c < dim; c += cuda::warp_lanes) s.length[0][c] = static_cast<double>(clean[c]);
    __syncwarp();
    std::byte* to = row(slot);
    for (int l = 1; l <= levels; ++l) {
      const double* from = s.length[1 - l % 2];
      for (int k = lane; k < dim >> l; k += cuda::warp_lanes) {
        const double a = from[2 * k], b = from[2 * k + 1];
        double angle = atan2(b, a);
        if (angle < 0.0) angle += 2.0 * std::numbers::pi;
        s.codes[k] = static_cast<std::uint8_t>(l == 1 ? bin_of(angle) : level_of(l, angle));
        s.length[l % 2][k] = sqrt(__dadd_rn(__dmul_rn(a, a), __dmul_rn(b, b)));
      }
      __syncwarp();
      pack_row(bits_of(l), s.codes, dim >> l, to);
      __syncwarp();
      to += level_bytes(l);
    }
    for (int j = lane; j < dim >> levels; j += cuda::warp_lanes) put_half(to + 2 * j, static_cast<float>(s.length[levels % 2][j]), bad);
    return cuda::warp_sum(bad);
  }

 private:
  __device__ int bits_of(int level) const { return level == 1 ? first_bits : bits; }
  __device__ int level_bytes(int level) const { return ((dim >> level) * bits_of(level) + 7) / 8; }
  __device__ static int angle_of(int level, int code) { return Table::angles_at + 3 * (Table::codes * (level - 2) + code); }
  __device__ int bin_of(double angle) const {
    const int bins = 1 << first_bits, bin = static_cast<int>(angle / (2.0 * std::numbers::pi) * bins);
    return bin < bins - 1 ? bin : bins - 1;
  }
  /// Middles between angles that lie at or below this one.
  __device__ int level_of(int level, double angle) const {
    int code = 0;
    for (int c = 0; c + 1 < 1 << bits; ++c)
      code += static_cast<int>(angle >= 0.5 * (static_cast<double>(table[angle_of(level, c)]) + static_cast<double>(table[angle_of(level, c + 1)])));
    return code;
  }
};

}  // namespace cuda_kernels
}  // namespace kvcondense::prim
