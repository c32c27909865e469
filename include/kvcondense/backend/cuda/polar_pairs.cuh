#pragma once

#include <cmath>
#include <cstdint>
#include <numbers>

#include <kvcondense/backend/cuda/page_codec.cuh>
#include <kvcondense/prim/polar_pairs.hpp>

namespace kvcondense::prim {

/// PolarPairs of any widths, which kernels learn when they run.
struct PolarForm {
  int rho_bits = 4, theta_bits = 4;
  index_t group_size = 128;
  RopePairing pairing = RopePairing::half_split;
  ParamType params = ParamType::f16;
  bool centered = false;

  KVCONDENSE_HD constexpr int bits() const { return rho_bits + theta_bits; }
  KVCONDENSE_HD constexpr index_t group_slots() const { return group_size; }
  KVCONDENSE_HD constexpr index_t row_bytes(index_t dim) const { return (dim / 2 * bits() + 7) / 8; }
  KVCONDENSE_HD constexpr index_t group_bytes(index_t dim) const { return dim / 2 * 4 * size_of(params); }
  KVCONDENSE_HD constexpr index_t params_at(index_t slots, index_t dim) const { return (slots * row_bytes(dim) + 3) / 4 * 4; }
  constexpr std::size_t page_bytes(index_t slots, index_t dim) const {
    return static_cast<std::size_t>(params_at(slots, dim) + (slots + group_size - 1) / group_size * group_bytes(dim));
  }
  constexpr bool valid(index_t dim) const { return PolarPairs<4, 4>{.group_size = group_size}.valid(dim); }
  constexpr std::int64_t fingerprint() const {
    return PolarPairs<4, 4>{.group_size = group_size, .pairing = pairing, .params = params, .centered = centered}.fingerprint() * 64 + rho_bits * 8 + theta_bits;
  }
};

template <int RhoBits, int ThetaBits>
struct DeviceForm<PolarPairs<RhoBits, ThetaBits>> {
  using Codec = PolarPairs<RhoBits, ThetaBits>;
  using type = PolarForm;
  static index_t floats(const Codec&, index_t) { return 0; }
  static void fill(const Codec&, index_t, float*) {}
  static type of(const Codec& c, const float*, index_t, index_t) { return {RhoBits, ThetaBits, c.group_size, c.pairing, c.params, c.centered}; }
};

namespace cuda_kernels {

template <>
inline constexpr bool codes_groups<PolarForm> = true;

/// A group of slots shares, per pair of channels, the bins of lengths and of angles.
template <>
struct RowPage<PolarForm> {
  PolarForm codec;
  std::byte* data;
  int slots, dim;

  __device__ RowPage(const PolarForm& c, std::byte* page, int page_slots, int row) : codec(c), data(page), slots(page_slots), dim(row) {}
  __device__ int pairs() const { return dim / 2; }
  __device__ bool halves() const { return codec.pairing == RopePairing::half_split; }
  __device__ std::byte* row(int slot) const { return data + slot * static_cast<int>(codec.row_bytes(dim)); }
  /// Of the group that a slot belongs to: scales and offsets of angles, scales and offsets of lengths.
  __device__ std::byte* params(int slot) const {
    return data + codec.params_at(slots, dim) + slot / static_cast<int>(codec.group_size) * static_cast<int>(codec.group_bytes(dim));
  }

  /// Cosine and sine of a code are those of the first bin, turned by one bin, two, four ... as its bits say, as on the host.
  __device__ float value(int slot, int c) const {
    const int n = pairs(), j = halves() ? c % n : c / 2, code = row_code(row(slot), codec.bits(), j);
    const bool second = halves() ? c >= n : c % 2 == 1;
    const std::byte* const at = params(slot);
    const auto number = [&](int which) { return read_number(number_type(codec.params), at, which * n + j); };
    const float step = number(0), length = __fadd_rn(__fmul_rn(static_cast<float>(code >> codec.theta_bits) + 0.5f, number(2)), number(3));
    const float first = __fadd_rn(__fmul_rn(0.5f, step), number(1));
    float x = cosf(first), y = sinf(first);
    for (int bit = 0; bit < codec.theta_bits; ++bit) {
      if ((code >> bit & 1) == 0) continue;
      const float turn = __fmul_rn(static_cast<float>(1 << bit), step), cosine = cosf(turn), sine = sinf(turn), u = x;
      x = __fadd_rn(__fmul_rn(u, cosine), -__fmul_rn(y, sine));
      y = __fadd_rn(__fmul_rn(y, cosine), __fmul_rn(u, sine));
    }
    return __fmul_rn(length, second ? y : x);
  }

  struct GroupScratch {
    cuda::BlockScratch<int, channel_threads> sums;
    std::uint8_t codes[channel_rows][max_head_dim / 2];
  };
  /// A thread a pair.
  template <class Rows>
  __device__ int encode_group(int slot, const Rows& rows, int begin, GroupScratch& shared) const {
    const int n = static_cast<int>(codec.group_size), j = static_cast<int>(threadIdx.x);
    const bool mine = j < pairs();
    const int first = halves() ? j : 2 * j, second = halves() ? j + pairs() : 2 * j + 1;
    int bad = 0;
    float cut = 0.0f;
    GroupParams angle, length;
    if (mine) {
      Point p;
      if (codec.centered) {
        double x = 0.0, y = 0.0;
        for (int i = 0; i < n; ++i)
          if (p = point_of(rows.row(begin + i)(first), rows.row(begin + i)(second), 0.0f); p.ranges && p.length > 0.0f)
            x += cos(static_cast<double>(p.angle)), y += sin(static_cast<double>(p.angle));
        cut = static_cast<float>(atan2(y, x) - std::numbers::pi);
      }
      GroupRange angles, lengths;
      for (int i = 0; i < n; ++i) {
        const float x = rows.row(begin + i)(first), y = rows.row(begin + i)(second);
        bad += repairs(x, rows.counted) + repairs(y, rows.counted);
        p = point_of(x, y, cut);
        if (!p.ranges) continue;
        lengths.include(p.length);
        if (p.length > 0.0f) angles.include(p.angle);
      }
      angle = fit_bins(codec.theta_bits, codec.params, angles), length = fit_bins(codec.rho_bits, codec.params, lengths);
      bad += static_cast<int>(length.saturated);
    }
    for (int from = 0; from < n; from += channel_rows) {
      const int count = n - from < channel_rows ? n - from : channel_rows;
      for (int i = 0; mine && i < count; ++i) {
        const Point p = point_of(rows.row(begin + from + i)(first), rows.row(begin + from + i)(second), cut);
        shared.codes[i][j] = static_cast<std::uint8_t>(bin(codec.rho_bits, p.length, length) << codec.theta_bits | bin(codec.theta_bits, p.angle, angle));
      }
      __syncthreads();
      for (int i = cuda::warp_of_block(); i < count; i += channel_threads / cuda::warp_lanes) pack_row(codec.bits(), shared.codes[i], pairs(), row(slot + from + i));
      __syncthreads();
    }
    if (mine) {
      const auto put = [&](int which, float x) { write_number(number_type(codec.params), params(slot), which * pairs() + j, x); };
      put(0, angle.scale), put(1, angle.offset), put(2, length.scale), put(3, length.offset);
    }
    return cuda::block_sum<int, channel_threads>(bad, shared.sums);
  }

 private:
  struct Point {
    float length = 0.0f, angle = 0.0f;
    bool ranges = false;  ///< counts where the ends of the group are found
  };
  /// The point of a pair, its angle in [cut, cut + 2 pi).
  __device__ static Point point_of(float first, float second, float cut) {
    const float x = without_nan(first), y = without_nan(second), near = limit_to(x, largest_coded), far = limit_to(y, largest_coded);
    const auto a = static_cast<double>(near), b = static_cast<double>(far);  // whose squares are exact: fused or not, their sum is the same
    constexpr float circle = 2.0f * std::numbers::pi_v<float>;
    Point p{limit_to(static_cast<float>(sqrt(a * a + b * b)), largest_coded), atan2f(far, near), !needs_repair(x) && !needs_repair(y)};
    if (p.angle < 0.0f) p.angle += circle;
    if (p.angle < cut) p.angle += circle;
    else if (p.angle >= cut + circle) p.angle -= circle;
    return p;
  }
  /// `bin_of` of so many bits.
  __device__ static int bin(int bits, float v, const GroupParams& p) {
    const int cut = static_cast<int>(limit_to(__fmul_rn(v - p.offset, p.inverse), 0x1p20f)), last = (1 << bits) - 1;
    return cut < 0 ? 0 : cut < last ? cut : last;
  }
};

}  // namespace cuda_kernels
}  // namespace kvcondense::prim
