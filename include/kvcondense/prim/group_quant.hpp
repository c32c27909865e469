#pragma once

#include <cstddef>
#include <cstdint>
#include <initializer_list>

#include <kvcondense/core/config.hpp>
#include <kvcondense/core/dtype.hpp>
#include <kvcondense/core/shape.hpp>
#include <kvcondense/prim/page_codec.hpp>

// The scalar quantizers of a group of numbers that share a scale: pure functions for host and device.
// Codes are computed with the stored (already rounded) parameters, in float32, from one rule
// y = (x - m) * (1 / s), so that every backend produces the same codes.

namespace kvcondense::prim {

/// What a group is.
enum class GroupAxis : std::uint8_t {
  token,    ///< consecutive channels of one slot
  channel,  ///< consecutive slots of one channel
};

/// How codes become numbers. `L` = 2^bits - 1.
enum class GroupForm : std::uint8_t {
  minimum,       ///< code * scale + minimum; the range is exactly [min, max]
  integer_zero,  ///< (code - zero) * scale, zero an integer code; the range is widened to contain 0
  float_zero,    ///< (code - zero) * scale, zero a stored real number
  symmetric,     ///< (code - half) * scale, half = 2^(bits-1) - 1; no offset is stored; bits >= 2
  mid_rise,      ///< (code - L / 2) * scale: odd multiples of scale / 2, no zero; no offset is stored
};

enum class Rounding : std::uint8_t {
  half_even,  ///< nearest, ties to the even code
  half_up,    ///< floor(y + 0.5) in float32
  half_away,  ///< nearest, ties away from zero
};

/// How codes lie in a page. Lanes serve instructions that multiply four codes at a time and add the products in one
/// lane of sixteen. Caches of a backend that has no use for them store rows: cache::as_stored.
enum class CodeLayout : std::uint8_t {
  rows,           ///< a slot's codes one behind the other
  slot_lanes,     ///< for scores: lanes are slots, four channels meet in a lane
  channel_lanes,  ///< for weighted sums: lanes are channels, four slots meet in a lane
};

/// What codes in lanes are multiplied with: queries and weights, with scales folded in, as integers of a share of their
/// row's largest. Only the CPU backend has a choice.
enum class CodeMath : std::uint8_t {
  int16,  ///< 1 / 32512 of it; floats where the processor has no instruction for it
  int8,   ///< 1 / 254 of it, everywhere; codes in rows and those that lanes do not suit are multiplied as floats
};

/// How a scale or an offset is stored.
enum class ParamType : std::uint8_t { f16, bf16, f32 };

KVCONDENSE_HD constexpr index_t size_of(ParamType t) { return t == ParamType::f32 ? 4 : 2; }
/// The type that parameters are numbers of.
KVCONDENSE_HD constexpr DType number_type(ParamType t) { return t == ParamType::f32 ? DType::f32 : t == ParamType::f16 ? DType::f16 : DType::bf16; }
KVCONDENSE_HD constexpr bool has_offset(GroupForm f) {
  return f != GroupForm::symmetric && f != GroupForm::mid_rise;
}

/// Numbers beyond this magnitude count as infinite: it keeps every range and decoded number finite.
inline constexpr float largest_coded = 0x1p126f;

/// Ranges whose step is below this are constant groups, so that 1 / step stays finite.
inline constexpr float smallest_step = 0x1p-126f;

/// True for numbers that coding must repair: NaN, infinities, |x| > largest_coded.
KVCONDENSE_HD constexpr bool needs_repair(float x) {
  return (detail::bit_cast<std::uint32_t>(x) & 0x7fffffffu) > detail::bit_cast<std::uint32_t>(largest_coded);
}

/// NaN becomes 0; infinities stay and are clamped to the range when coded. By masks: loops vectorise.
KVCONDENSE_HD constexpr float without_nan(float x) {
  const std::uint32_t bits = detail::bit_cast<std::uint32_t>(x);
  return detail::bit_cast<float>(bits & (static_cast<std::uint32_t>((bits & 0x7fffffffu) > 0x7f800000u) - 1u));
}

/// Smallest and largest number of a group. NaN counts as 0, infinities are left out.
struct GroupRange {
  float lo = 2.0f * largest_coded;  ///< lo > hi: nothing seen
  float hi = -2.0f * largest_coded;

  KVCONDENSE_HD constexpr void include(float x) {
    const float y = without_nan(x);
    const float low = needs_repair(y) ? 2.0f * largest_coded : y;
    const float high = needs_repair(y) ? -2.0f * largest_coded : y;
    lo = low < lo ? low : lo;
    hi = high > hi ? high : hi;
  }
};

/// What is stored for a group, as decoding will read it, and what coding needs besides.
struct GroupParams {
  float scale = 0.0f;
  float offset = 0.0f;   ///< minimum or zero, by form
  float inverse = 0.0f;  ///< 1 / scale; 0 for a constant group, whose codes are then all 0
  bool saturated = false;  ///< a parameter was too large for its type
};

/// `v` rounded to the parameter type; magnitudes it cannot hold become its largest.
KVCONDENSE_HD constexpr float stored(ParamType type, float v, bool& saturated) {
  const float top = largest_of(number_type(type));
  saturated = saturated || v > top || v < -top;
  const float c = v > top ? top : v < -top ? -top : v;
  if (type == ParamType::f16) return detail::half_value(detail::half_bits(c));
  if (type == ParamType::bf16) return detail::bfloat16_value(detail::bfloat16_bits(c));
  return c;
}

/// Nearest integer, ties to even, for |y| < 2^22. Adding 1.5 * 2^23 leaves no fraction bits; the
/// integer is then read from the low bits, which no compiler flag can optimise away.
KVCONDENSE_HD constexpr std::int32_t round_half_even(float y) {
  return detail::bit_cast<std::int32_t>(y + 0x1.8p23f) - 0x4b400000;
}

/// `y` rounded by the rule, for |y| < 2^22.
KVCONDENSE_HD constexpr std::int32_t round_code(Rounding rule, float y) {
  if (rule == Rounding::half_even) return round_half_even(y);
  if (rule == Rounding::half_up) {
    const float up = y + 0.5f;
    const auto cut = static_cast<std::int32_t>(up);
    return cut - static_cast<std::int32_t>(static_cast<float>(cut) > up);
  }
  const float size = y < 0.0f ? -y : y;
  const auto cut = static_cast<std::int32_t>(size);
  const std::int32_t near = cut + static_cast<std::int32_t>(size - static_cast<float>(cut) >= 0.5f);
  return y < 0.0f ? -near : near;
}

/// `x` with its magnitude cut to `top`; x is not NaN. By integer minimum: loops vectorise.
KVCONDENSE_HD constexpr float limit_to(float x, float top) {
  const std::uint32_t bits = detail::bit_cast<std::uint32_t>(x), most = detail::bit_cast<std::uint32_t>(top);
  const std::uint32_t size = bits & 0x7fffffffu;
  return detail::bit_cast<float>((bits & 0x80000000u) | (size < most ? size : most));
}

/// Parameters of a group with this range. An empty range gives scale 0 and offset 0.
///
/// Numbers  a constant group decodes to its value as the parameter type holds it: minimum form stores it
///          as the minimum; float_zero stores it as the scale, with zero -1.
KVCONDENSE_HD constexpr GroupParams fit_group(GroupForm form, int bits, ParamType type, GroupRange range) {
  GroupParams p;
  if (!(range.lo <= range.hi)) return p;
  const auto levels = static_cast<float>((1 << bits) - 1);
  float lo = range.lo, hi = range.hi, divisor = levels;
  if (form == GroupForm::integer_zero) {
    lo = lo < 0.0f ? lo : 0.0f;
    hi = hi > 0.0f ? hi : 0.0f;
  } else if (!has_offset(form)) {
    hi = hi > -lo ? hi : -lo;
    lo = 0.0f;
    divisor = form == GroupForm::symmetric ? static_cast<float>((1 << (bits - 1)) - 1) : 0.5f * levels;
  }
  const float exact = (hi - lo) / divisor;
  const float scale = stored(type, exact, p.saturated);
  const bool constant = !(scale >= smallest_step);
  p.scale = constant ? 0.0f : scale;
  p.inverse = constant ? 0.0f : 1.0f / scale;
  if (form == GroupForm::minimum) p.offset = stored(type, lo, p.saturated);
  if (form == GroupForm::integer_zero && !constant)
    p.offset = static_cast<float>(round_half_even(limit_to(-lo * p.inverse, levels)));
  if (form == GroupForm::float_zero) {
    if (!constant) p.offset = stored(type, -lo / exact, p.saturated);
    else if (lo != 0.0f) p.scale = stored(type, lo, p.saturated), p.offset = -1.0f;
  }
  return p;
}

/// The stored code of `x`, in [0, 2^bits). Symmetric codes are stored as code + half.
template <int Bits, GroupForm Form, Rounding Rule>
KVCONDENSE_HD constexpr std::int32_t code_of(float x, float offset, float inverse) {
  constexpr std::int32_t last = (1 << Bits) - 1, middle = (1 << (Bits - 1)) - 1;
  const float v = limit_to(without_nan(x), 2.0f * largest_coded);
  float y = (Form == GroupForm::minimum ? v - offset : v) * inverse;
  // The limit between product and sum changes no code, but keeps compilers from fusing the two.
  if (Form == GroupForm::float_zero) y = limit_to(y, 0x1p30f) + offset;
  if (Form == GroupForm::mid_rise) y = limit_to(y, 0x1p30f) + 0.5f * static_cast<float>(last);
  const std::int32_t zero = Form == GroupForm::integer_zero ? static_cast<std::int32_t>(offset)
                            : Form == GroupForm::symmetric  ? middle
                                                            : 0;
  const std::int32_t code = round_code(Rule, limit_to(y, 0x1p20f)) + zero;
  constexpr std::int32_t top = Form == GroupForm::symmetric ? 2 * middle : last;
  const std::int32_t raised = code > 0 ? code : 0;
  return raised < top ? raised : top;
}

/// The number a stored code stands for.
template <int Bits, GroupForm Form>
KVCONDENSE_HD constexpr float value_of(std::int32_t code, float scale, float offset) {
  if constexpr (Form == GroupForm::minimum) return static_cast<float>(code) * scale + offset;
  else if constexpr (Form == GroupForm::symmetric) return static_cast<float>(code - ((1 << (Bits - 1)) - 1)) * scale;
  else if constexpr (Form == GroupForm::mid_rise) return (static_cast<float>(code) - 0.5f * static_cast<float>((1 << Bits) - 1)) * scale;
  else return (static_cast<float>(code) - offset) * scale;
}

/// The constant term when codes are folded: value = code * scale + base.
template <int Bits, GroupForm Form>
KVCONDENSE_HD constexpr float base_of(float scale, float offset) {
  if constexpr (Form == GroupForm::minimum) return offset;
  else if constexpr (Form == GroupForm::symmetric) return -static_cast<float>((1 << (Bits - 1)) - 1) * scale;
  else if constexpr (Form == GroupForm::mid_rise) return -0.5f * static_cast<float>((1 << Bits) - 1) * scale;
  else return -offset * scale;
}

/// Rows as integer codes of `Bits` bits with a scale, and an offset by form, per group.
///
/// Shapes   a page holds token-major rows of ceil(dim * Bits / 8) bytes, each a little-endian bit stream of
///          codes; then, on a multiple of 4 bytes, the parameters: token axis, per slot [dim / group] scales
///          then as many offsets; channel axis, per group of slots [dim] scales then [dim] offsets.
template <int Bits>
struct GroupInt {
  static_assert(Bits >= 1 && Bits <= 8, "kvcondense: GroupInt stores codes of 1 to 8 bits.");
  static constexpr int bits = Bits;

  GroupAxis axis = GroupAxis::token;
  index_t group_size = 0;  ///< numbers per group; 0 on the token axis: the whole row
  GroupForm form = GroupForm::minimum;
  ParamType params = ParamType::f16;
  Rounding rounding = Rounding::half_even;
  CodeLayout layout = CodeLayout::rows;
  CodeMath math = CodeMath::int16;

  /// The same codec for keys, and for values.
  constexpr GroupInt for_scores() const { return with(CodeLayout::slot_lanes); }
  constexpr GroupInt for_sums() const { return with(CodeLayout::channel_lanes); }
  constexpr GroupInt with(CodeLayout l) const {
    GroupInt c = *this;
    c.layout = l;
    return c;
  }

  /// Whether pages may lie in lanes at all.
  static constexpr bool has_lanes = Bits == 2 || Bits == 4 || Bits == 8;
  /// Outputs that one block of 64 bytes has room for, four codes each.
  static constexpr index_t block_outputs = 128 / Bits;

  /// The layout of a page of this size: lanes where they are asked for and full.
  KVCONDENSE_HD constexpr CodeLayout layout_of(index_t slots, index_t dim) const {
    const bool whole = slots % 64 == 0 && (layout == CodeLayout::slot_lanes ? dim % 4 == 0 : dim % block_outputs == 0 && dim % 32 == 0);
    return has_lanes && whole ? layout : CodeLayout::rows;
  }

  /// Channels of a row that share parameters; 1 on the channel axis.
  KVCONDENSE_HD constexpr index_t group_channels(index_t dim) const {
    return axis == GroupAxis::channel ? 1 : group_size == 0 ? dim : group_size;
  }
  KVCONDENSE_HD constexpr index_t group_slots() const { return axis == GroupAxis::channel ? group_size : 1; }
  KVCONDENSE_HD constexpr index_t row_bytes(index_t dim) const { return (dim * Bits + 7) / 8; }

  /// Scales of one group of slots; offsets, where the form has them, are as many and follow them.
  KVCONDENSE_HD constexpr index_t scales(index_t dim) const { return dim / group_channels(dim); }
  /// Bytes of the parameters of one group of slots.
  KVCONDENSE_HD constexpr index_t group_bytes(index_t dim) const {
    return scales(dim) * size_of(params) * (has_offset(form) ? 2 : 1);
  }
  /// Where the parameters begin in a page of `slots` slots.
  KVCONDENSE_HD constexpr index_t params_at(index_t slots, index_t dim) const {
    return (slots * row_bytes(dim) + 3) / 4 * 4;
  }

  constexpr std::size_t page_bytes(index_t slots, index_t dim) const {
    const index_t groups = (slots + group_slots() - 1) / group_slots();
    return static_cast<std::size_t>(params_at(slots, dim) + groups * group_bytes(dim));
  }
  /// Every field that bytes depend on, so not `math`: pages may be exchanged only between equal fingerprints.
  constexpr std::int64_t fingerprint() const {
    auto f = static_cast<std::uint64_t>(group_size);
    for (const int field : {static_cast<int>(axis), static_cast<int>(form), static_cast<int>(params),
                            static_cast<int>(rounding), static_cast<int>(layout), Bits})
      f = f * 16 + static_cast<std::uint64_t>(field);
    return static_cast<std::int64_t>(f);
  }
  constexpr bool valid(index_t dim) const {
    if (dim < 1 || dim > max_head_dim || group_size < 0 || (form == GroupForm::symmetric && Bits < 2)) return false;
    return axis == GroupAxis::channel ? group_size > 0 : dim % group_channels(dim) == 0;
  }
};

static_assert(CodecDescription<GroupInt<2>>);

}  // namespace kvcondense::prim
