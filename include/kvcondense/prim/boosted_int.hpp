#pragma once

#include <cstddef>
#include <cstdint>

#include <kvcondense/core/config.hpp>
#include <kvcondense/core/shape.hpp>
#include <kvcondense/prim/group_quant.hpp>
#include <kvcondense/prim/page_codec.hpp>

namespace kvcondense::prim {

/// Rows as integer codes whose strongest channels have more bits: all channels `Low` bits, some `High` more. A group
/// is `group_size` slots of one channel, in minimum form with fp16 parameters; which channels are boosted is
/// decided anew in every group of slots, by their mean magnitude there.
///
/// Shapes   a page holds the low planes: token-major rows of ceil(dim * Low / 8) bytes, the low bits of every code;
///          then the high planes: rows of ceil(boosted * High / 8) bytes, the high bits of boosted channels from
///          the strongest on; then, on a multiple of 4 bytes, per group of slots [dim] scales, [dim] minima,
///          and [dim] bytes: a channel's rank among the boosted ones, or their number.
template <int Low, int High>
struct BoostedInt {
  static_assert(Low >= 1 && High >= 1 && Low + High <= 8, "kvcondense: BoostedInt stores codes of 2 to 8 bits in two planes.");
  static constexpr int low_bits = Low;
  static constexpr int high_bits = High;

  index_t group_size = 128;
  float boost = 0.125f;  ///< part of the channels that has all bits, to the nearest whole number of them
  Rounding rounding = Rounding::half_up;

  KVCONDENSE_HD constexpr index_t group_slots() const { return group_size; }
  KVCONDENSE_HD constexpr index_t boosted(index_t dim) const {
    return static_cast<index_t>(static_cast<float>(dim) * boost + 0.5f);
  }
  KVCONDENSE_HD constexpr index_t low_bytes(index_t dim) const { return (dim * Low + 7) / 8; }
  KVCONDENSE_HD constexpr index_t high_bytes(index_t dim) const { return (boosted(dim) * High + 7) / 8; }
  /// Bytes of the parameters of one group of slots.
  KVCONDENSE_HD constexpr index_t group_bytes(index_t dim) const { return dim * 5; }
  /// Where the high planes and the parameters begin in a page of `slots` slots.
  KVCONDENSE_HD constexpr index_t high_at(index_t slots, index_t dim) const { return slots * low_bytes(dim); }
  KVCONDENSE_HD constexpr index_t params_at(index_t slots, index_t dim) const {
    return (slots * (low_bytes(dim) + high_bytes(dim)) + 3) / 4 * 4;
  }

  constexpr std::size_t page_bytes(index_t slots, index_t dim) const {
    const index_t groups = (slots + group_size - 1) / group_size;
    return static_cast<std::size_t>(params_at(slots, dim) + groups * group_bytes(dim));
  }
  constexpr std::int64_t fingerprint() const {
    std::uint64_t f = detail::bit_cast<std::uint32_t>(boost);
    f = f * 65536 + static_cast<std::uint64_t>(group_size);
    for (const int field : {static_cast<int>(rounding), Low, High}) f = f * 8 + static_cast<std::uint64_t>(field);
    return static_cast<std::int64_t>(f);
  }
  constexpr bool valid(index_t dim) const {
    return dim >= 1 && dim <= max_head_dim && group_size > 0 && group_size < 65536 && boost >= 0.0f && boost <= 1.0f;
  }
};

static_assert(CodecDescription<BoostedInt<2, 2>>);

}  // namespace kvcondense::prim
