#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <numbers>

#include <kvcondense/core/config.hpp>
#include <kvcondense/core/shape.hpp>
#include <kvcondense/prim/group_quant.hpp>
#include <kvcondense/prim/page_codec.hpp>
#include <kvcondense/prim/rope_config.hpp>

namespace kvcondense::prim {

/// Two components as a length and an angle from 0 to 2 pi. No direction: the angle of (0, 0) says nothing.
struct PolarPoint {
  float length = 0.0f;
  float angle = 0.0f;
};

/// The point of two finite components; the length is at most `largest_coded`.
inline PolarPoint polar_point(float x, float y) {
  const double a = static_cast<double>(x), b = static_cast<double>(y);
  PolarPoint p;
  p.length = limit_to(static_cast<float>(std::sqrt(a * a + b * b)), largest_coded);
  p.angle = std::atan2(y, x);
  if (p.angle < 0.0f) p.angle += 2.0f * std::numbers::pi_v<float>;
  return p;
}

/// Parameters of 2^bits equal bins over a range: number = offset + (code + 1/2) * scale. A range of one number
/// gives scale 0: all codes are 0 and decode to it, as the parameter type holds it.
KVCONDENSE_HD constexpr GroupParams fit_bins(int bits, ParamType type, GroupRange range) {
  GroupParams p;
  if (!(range.lo <= range.hi)) return p;
  p.scale = stored(type, (range.hi - range.lo) / static_cast<float>(1 << bits), p.saturated);
  if (p.scale >= smallest_step) p.inverse = 1.0f / p.scale;
  else p.scale = 0.0f;
  p.offset = stored(type, range.lo, p.saturated);
  return p;
}

/// The bin that `v` lies in, the first or the last where it lies outside; v is not NaN.
template <int Bits>
KVCONDENSE_HD constexpr std::int32_t bin_of(float v, float offset, float inverse) {
  const float y = limit_to((v - offset) * inverse, 0x1p20f);
  const auto cut = static_cast<std::int32_t>(y);  // towards zero: below it all is the first bin
  constexpr std::int32_t last = (1 << Bits) - 1;
  return cut < 0 ? 0 : cut < last ? cut : last;
}

/// Rows as pairs of channels in polar form: a length of `RhoBits` and an angle of `ThetaBits`, in equal bins between
/// the least and the largest of a group, which is `group_size` slots of one pair.
///
/// Shapes   a page holds token-major rows of ceil(dim / 2 * (RhoBits + ThetaBits) / 8) bytes, a little-endian stream of
///          length << ThetaBits | angle per pair; then, on a multiple of 4 bytes, per group of slots [dim / 2] scales
///          of the angles, as many offsets, scales of the lengths, offsets.
template <int RhoBits, int ThetaBits>
struct PolarPairs {
  static_assert(RhoBits >= 1 && ThetaBits >= 1 && ThetaBits <= 5 && RhoBits + ThetaBits <= 8,
                "kvcondense: PolarPairs stores lengths and angles of 1 to 5 bits, 8 together at most.");
  static constexpr int bits = RhoBits + ThetaBits;  ///< of a pair

  index_t group_size = 128;
  RopePairing pairing = RopePairing::half_split;  ///< which channels are a pair
  ParamType params = ParamType::f16;
  /// The circle is cut opposite to the mean direction of the group, not at 0: angles on both sides of 0 then lie
  /// close to each other. Pages decode alike.
  bool centered = false;

  KVCONDENSE_HD constexpr index_t group_slots() const { return group_size; }
  KVCONDENSE_HD constexpr index_t row_bytes(index_t dim) const { return (dim / 2 * bits + 7) / 8; }
  KVCONDENSE_HD constexpr index_t group_bytes(index_t dim) const { return dim / 2 * 4 * size_of(params); }
  KVCONDENSE_HD constexpr index_t params_at(index_t slots, index_t dim) const {
    return (slots * row_bytes(dim) + 3) / 4 * 4;
  }
  /// Channels of pair j.
  KVCONDENSE_HD constexpr index_t first_of(index_t j) const { return pairing == RopePairing::half_split ? j : 2 * j; }
  KVCONDENSE_HD constexpr index_t second_of(index_t j, index_t dim) const {
    return pairing == RopePairing::half_split ? j + dim / 2 : 2 * j + 1;
  }

  constexpr std::size_t page_bytes(index_t slots, index_t dim) const {
    const index_t groups = (slots + group_size - 1) / group_size;
    return static_cast<std::size_t>(params_at(slots, dim) + groups * group_bytes(dim));
  }
  constexpr std::int64_t fingerprint() const {
    auto f = static_cast<std::uint64_t>(group_size);
    for (const int field : {static_cast<int>(pairing), static_cast<int>(params), centered ? 1 : 0, RhoBits, ThetaBits})
      f = f * 8 + static_cast<std::uint64_t>(field);
    return static_cast<std::int64_t>(f);
  }
  constexpr bool valid(index_t dim) const {
    return dim >= 2 && dim <= max_head_dim && dim % 2 == 0 && group_size > 0 && group_size < 65536;
  }
};

static_assert(CodecDescription<PolarPairs<4, 4>>);

}  // namespace kvcondense::prim
