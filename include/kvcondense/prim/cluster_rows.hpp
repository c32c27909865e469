#pragma once

#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>

#include <kvcondense/core/config.hpp>
#include <kvcondense/core/shape.hpp>
#include <kvcondense/prim/group_quant.hpp>
#include <kvcondense/prim/mini_float.hpp>
#include <kvcondense/prim/page_codec.hpp>

namespace kvcondense::prim {

/// How ClusterRows stores scales and offsets.
enum class ClusterParam : std::uint8_t {
  f16,
  f32,
  e4m3,  ///< scales are rounded up, so that the end of a range is not cut off
};

/// Which channels share a scale: the channels of all groups one after another, and where each group ends.
struct ClusterOrder {
  index_t groups = 0;
  index_t end[32] = {};
  std::int32_t channel[max_head_dim] = {};
};

/// Rows as codes of few levels whose ranges are clipped, in groups of channels of any size that need not be neighbours.
///
/// Source   SKVQ, arXiv:2405.06219; RotateKV, arXiv:2501.16383.
/// Shapes   a row is its codes, group by group, channels ascending in each: `levels` = 2^b: a little-endian bit stream; 3: five
///          codes to a byte. Then the scales of all groups, then their offsets.
/// Numbers  ranges are `clip` times the smallest and the largest number of a group; forms `minimum` and `integer_zero`, with
///          stored parameters; what lies outside becomes the nearest code.
struct ClusterRows {
  static constexpr index_t most_groups = 32;

  std::int32_t levels = 4;          ///< 2, 3, 4, 8 or 16
  float clip = 1.0f;
  GroupForm form = GroupForm::minimum;
  ClusterParam params = ClusterParam::f16;
  Rounding rounding = Rounding::half_even;
  std::int32_t group_size = 128;    ///< neighbours that are a group, without clusters
  const float* cluster = nullptr;   ///< group of each channel, [channels]; the caller owns and keeps it
  std::int32_t channels = 0;

  constexpr int bits() const { return levels == 3 ? 2 : static_cast<int>(std::bit_width(static_cast<std::uint32_t>(levels))) - 1; }
  constexpr index_t param_bytes() const { return params == ClusterParam::f16 ? 2 : params == ClusterParam::f32 ? 4 : 1; }
  constexpr index_t code_bytes(index_t dim) const { return levels == 3 ? (dim + 4) / 5 : (dim * bits() + 7) / 8; }
  constexpr index_t group_of(index_t c) const {
    return cluster == nullptr ? c / group_size : static_cast<index_t>(cluster[c]);
  }
  constexpr index_t groups(index_t dim) const {
    index_t most = 0;
    for (index_t c = 0; c < dim; ++c) most = group_of(c) > most ? group_of(c) : most;
    return most + 1;
  }
  constexpr ClusterOrder order(index_t dim) const {
    ClusterOrder o;
    index_t at = 0;
    o.groups = groups(dim);
    for (index_t g = 0; g < o.groups; ++g) {
      for (index_t c = 0; c < dim; ++c)
        if (group_of(c) == g) o.channel[at++] = static_cast<std::int32_t>(c);
      o.end[g] = at;
    }
    return o;
  }
  constexpr index_t row_bytes(index_t dim) const { return code_bytes(dim) + 2 * groups(dim) * param_bytes(); }

  constexpr std::size_t page_bytes(index_t slots, index_t dim) const { return static_cast<std::size_t>(slots * row_bytes(dim)); }
  constexpr index_t group_slots() const { return 1; }
  constexpr bool valid(index_t dim) const {
    if (dim < 1 || dim > max_head_dim || !(clip > 0.0f && clip <= 1.0f) || group_size < 1) return false;
    if (levels != 2 && levels != 3 && levels != 4 && levels != 8 && levels != 16) return false;
    if (form != GroupForm::minimum && form != GroupForm::integer_zero) return false;
    if (cluster != nullptr && channels != dim) return false;
    bool seen[most_groups] = {};
    for (index_t c = 0; c < dim; ++c) {
      if (cluster != nullptr && !(cluster[c] >= 0.0f && cluster[c] < static_cast<float>(most_groups))) return false;
      const index_t g = group_of(c);
      if (g >= most_groups || (cluster != nullptr && static_cast<float>(g) != cluster[c])) return false;
      seen[g] = true;
    }
    for (index_t g = 0; g < groups(dim); ++g)
      if (!seen[g]) return false;
    return true;
  }
  constexpr std::int64_t fingerprint() const {
    auto f = static_cast<std::uint64_t>(levels);
    for (const int field : {static_cast<int>(form), static_cast<int>(params), static_cast<int>(rounding)})
      f = f * 8 + static_cast<std::uint64_t>(field);
    f = f * 0x100000001b3u ^ std::bit_cast<std::uint32_t>(clip);
    if (cluster == nullptr) return static_cast<std::int64_t>(f * 512 + static_cast<std::uint64_t>(group_size));
    for (index_t c = 0; c < channels; ++c) f = f * 0x100000001b3u ^ std::bit_cast<std::uint32_t>(cluster[c]);
    return static_cast<std::int64_t>(f);
  }
};

static_assert(CodecDescription<ClusterRows>);

/// `v` as the type stores it. `up`: not below v, where the type has such a number.
KVCONDENSE_HD constexpr float stored(ClusterParam type, float v, bool up, bool& saturated) {
  if (type != ClusterParam::e4m3) return stored(type == ClusterParam::f16 ? ParamType::f16 : ParamType::f32, v, saturated);
  saturated = saturated || v > largest(float_e4m3) || v < -largest(float_e4m3);
  std::uint32_t code = mini_float_code<float_e4m3, Rounding::half_even>(v);
  if (up && mini_float_value(float_e4m3, code) < v && code < 0x7e) ++code;
  return mini_float_value(float_e4m3, code);
}

/// Parameters of a group with this range. An empty range gives scale 0 and offset 0; that of one number scale 0 and, in the
/// minimum form, the number.
KVCONDENSE_HD constexpr GroupParams fit_clipped(const ClusterRows& codec, GroupRange range) {
  GroupParams p;
  if (!(range.lo <= range.hi)) return p;
  const auto last = static_cast<float>(codec.levels - 1);
  float lo = range.lo * (range.lo < range.hi ? codec.clip : 1.0f), hi = range.hi * (range.lo < range.hi ? codec.clip : 1.0f);
  if (codec.form == GroupForm::integer_zero) {
    lo = lo < 0.0f ? lo : 0.0f;
    hi = hi > 0.0f ? hi : 0.0f;
  }
  const float scale = stored(codec.params, (hi - lo) / last, true, p.saturated);
  if (scale >= smallest_step) p.scale = scale, p.inverse = 1.0f / scale;
  if (codec.form == GroupForm::minimum) p.offset = stored(codec.params, lo, false, p.saturated);
  else if (p.scale > 0.0f) p.offset = static_cast<float>(round_half_even(limit_to(-lo * p.inverse, last)));
  return p;
}

}  // namespace kvcondense::prim
