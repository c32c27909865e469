#pragma once

#include <cstddef>
#include <cstdint>

#include <kvcondense/core/config.hpp>
#include <kvcondense/core/shape.hpp>
#include <kvcondense/prim/ggml_block.hpp>
#include <kvcondense/prim/group_quant.hpp>
#include <kvcondense/prim/mini_float.hpp>
#include <kvcondense/prim/page_codec.hpp>

namespace kvcondense::prim {

/// What one code stands for before its block's scale.
enum class BlockElement : std::uint8_t {
  e2m1, e2m3, e3m2, e4m3, e5m2,  ///< mini floats
  int8,                          ///< a signed byte in units of 1 / 64, -127 to 127
  ggml,                          ///< as BlockCodes::ggml says
  int2, int3, int4, int5, int6, int7,  ///< the same of fewer bits b: in units of 2^(2 - b), symmetric
};

/// How the scale of a block comes about and is stored.
enum class BlockScale : std::uint8_t {
  fixed,         ///< `factor` for all numbers; nothing is stored
  f32,           ///< max(amax, 1e-6) / largest element
  f32_power,     ///< the same, rounded up to a power of two
  e8m0,          ///< 2^(floor(log2 amax) - exponent of the largest element): what lies beyond it clips
  e8m0_ceil,     ///< twice that where amax would clip
  e4m3,          ///< e4m3(amax / (largest * factor)) * factor
};

/// Scale of one block as coding needs it, and as it is stored.
struct BlockParams {
  float scale = 0.0f;
  float inverse = 0.0f;
  std::uint32_t stored = 0;  ///< the bits of a stored scale
  bool saturated = false;    ///< the scale was too large for its type
};

KVCONDENSE_HD constexpr MiniFloat mini_float_of(BlockElement e) {
  constexpr MiniFloat e2m1 = float_e2m1, e2m3 = float_e2m3, e3m2 = float_e3m2, e4m3 = float_e4m3, e5m2 = float_e5m2;
  switch (e) {
    case BlockElement::e2m1: return e2m1;
    case BlockElement::e2m3: return e2m3;
    case BlockElement::e3m2: return e3m2;
    case BlockElement::e5m2: return e5m2;
    default: return e4m3;
  }
}
/// Bits of a signed integer element; 0 for others.
KVCONDENSE_HD constexpr int integer_bits(BlockElement e) {
  return e == BlockElement::int8   ? 8
         : e >= BlockElement::int2 ? static_cast<int>(e) - static_cast<int>(BlockElement::int2) + 2
                                   : 0;
}
KVCONDENSE_HD constexpr bool is_integer(BlockElement e) { return integer_bits(e) != 0; }
/// The signed integer element of 2 to 8 bits.
KVCONDENSE_HD constexpr BlockElement integer_element(int bits) {
  return bits == 8 ? BlockElement::int8 : static_cast<BlockElement>(static_cast<int>(BlockElement::int2) + bits - 2);
}
KVCONDENSE_HD constexpr int bits_of(BlockElement e) { return is_integer(e) ? integer_bits(e) : mini_float_of(e).bits(); }
/// What the code 1 of an integer stands for: its numbers lie below 2.
KVCONDENSE_HD constexpr float unit_of(BlockElement e) { return is_integer(e) ? power_of_two(2 - integer_bits(e)) : 1.0f; }
KVCONDENSE_HD constexpr float largest_of(BlockElement e) {
  return is_integer(e) ? static_cast<float>((1 << (integer_bits(e) - 1)) - 1) * unit_of(e) : largest(mini_float_of(e));
}
KVCONDENSE_HD constexpr int top_exponent_of(BlockElement e) {
  return is_integer(e) ? 0 : mini_float_of(e).top_exponent();
}
/// The number of an integer's code, in units: two's complement.
KVCONDENSE_HD constexpr std::int32_t integer_value(int bits, std::uint32_t code) {
  const auto raised = static_cast<std::int32_t>(code << (32 - bits));
  return raised >> (32 - bits);
}

/// The number of a stored scale.
KVCONDENSE_HD constexpr float block_scale_value(BlockScale form, std::uint32_t stored, float factor) {
  switch (form) {
    case BlockScale::fixed: return factor;
    case BlockScale::e8m0:
    case BlockScale::e8m0_ceil: return e8m0_value(stored);
    case BlockScale::e4m3: return mini_float_value<float_e4m3>(stored) * factor;
    default: return detail::bit_cast<float>(stored);
  }
}

/// Scale of a block whose largest finite magnitude is `amax`.
KVCONDENSE_HD constexpr BlockParams fit_block(BlockElement element, BlockScale form, float factor, float amax) {
  BlockParams p;
  const float top = largest_of(element);
  if (form == BlockScale::f32 || form == BlockScale::f32_power) {
    p.stored = detail::bit_cast<std::uint32_t>((amax > 1e-6f ? amax : 1e-6f) / top);
    if (form == BlockScale::f32_power) p.stored = (p.stored + 0x7fffffu) & 0x7f800000u;
  } else if (form == BlockScale::e8m0 || form == BlockScale::e8m0_ceil) {
    p.stored = e8m0_floor(amax, top_exponent_of(element));
    if (form == BlockScale::e8m0_ceil && amax > top * e8m0_value(p.stored)) ++p.stored;
  } else if (form == BlockScale::e4m3) {
    const float want = amax / (top * factor);
    constexpr float most = largest(float_e4m3);
    p.saturated = want > most;
    p.stored = mini_float_code<float_e4m3, Rounding::half_even>(want);
  }
  p.scale = block_scale_value(form, p.stored, factor);
  p.inverse = p.scale != 0.0f ? 1.0f / p.scale : 0.0f;
  return p;
}

/// Rows as codes of two to eight bits in blocks that share a scale. Slots are independent.
///
/// Shapes   a page is `slots` rows. A row: ceil(dim * bits / 8) bytes, a little-endian stream of codes;
///          then the scales of its blocks. With `element` ggml: dim / 32 blocks (nvfp4: dim / 64) as ggml
///          has them. A last block may be short, with a scale of its own, but not in ggml.
struct BlockCodes {
  BlockElement element = BlockElement::e2m1;
  BlockScale scale = BlockScale::e8m0;
  index_t block = 32;   ///< numbers that share a scale: a power of two from 8 to 256; 0: the whole row
  float factor = 1.0f;  ///< the scale of `fixed`, the second level of `e4m3`
  Rounding rounding = Rounding::half_even;  ///< half_even or half_away; not of ggml
  GgmlType ggml = GgmlType::q4_0;

  KVCONDENSE_HD constexpr bool is_ggml() const { return element == BlockElement::ggml; }
  /// Numbers that share a scale.
  KVCONDENSE_HD constexpr index_t group(index_t dim) const {
    const index_t g = is_ggml() ? ggml_shape(ggml).group : scale == BlockScale::fixed ? 0 : block;
    return g == 0 || g > dim ? dim : g;
  }
  KVCONDENSE_HD constexpr index_t groups(index_t dim) const { return (dim + group(dim) - 1) / group(dim); }
  KVCONDENSE_HD constexpr index_t scale_bytes() const {
    return scale == BlockScale::fixed ? 0 : scale == BlockScale::f32 || scale == BlockScale::f32_power ? 4 : 1;
  }
  /// Bytes of a row's codes; its scales follow them.
  KVCONDENSE_HD constexpr index_t code_bytes(index_t dim) const { return (dim * bits_of(element) + 7) / 8; }
  KVCONDENSE_HD constexpr index_t row_bytes(index_t dim) const {
    if (is_ggml()) return dim / ggml_shape(ggml).numbers * ggml_shape(ggml).bytes;
    return code_bytes(dim) + groups(dim) * scale_bytes();
  }

  constexpr std::size_t page_bytes(index_t slots, index_t dim) const {
    return static_cast<std::size_t>(slots * row_bytes(dim));
  }
  constexpr index_t group_slots() const { return 1; }
  constexpr bool valid(index_t dim) const {
    if (dim < 1 || dim > max_head_dim) return false;
    if (is_ggml()) return dim % ggml_shape(ggml).numbers == 0;
    const bool power = block == 0 || (block >= 8 && block <= 256 && (block & (block - 1)) == 0);
    // Far from the ends of float, so that scales and their inverses are normal numbers.
    const bool usual = factor >= 0x1p-60f && factor <= 0x1p60f;
    return power && usual && rounding != Rounding::half_up;
  }
  /// Every field that the element leaves a meaning.
  constexpr std::int64_t fingerprint() const {
    if (is_ggml()) return 0x600 + static_cast<std::int64_t>(ggml);
    std::uint64_t f = detail::bit_cast<std::uint32_t>(scale == BlockScale::fixed || scale == BlockScale::e4m3 ? factor : 1.0f);
    f = f * 64 + static_cast<std::uint64_t>(scale == BlockScale::fixed ? 0 : block / 8);
    const int kind = static_cast<int>(element);
    for (const int field : {static_cast<int>(scale), static_cast<int>(rounding), kind % 8})
      f = f * 8 + static_cast<std::uint64_t>(field);
    // Above all others, so that snapshots of the first eight elements stay readable.
    return static_cast<std::int64_t>(f | static_cast<std::uint64_t>(kind / 8) << 56);
  }
};

static_assert(CodecDescription<BlockCodes>);

}  // namespace kvcondense::prim
