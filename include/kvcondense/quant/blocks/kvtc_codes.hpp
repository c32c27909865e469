#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <span>

#include <kvcondense/core/config.hpp>
#include <kvcondense/core/dtype.hpp>
#include <kvcondense/prim/group_quant.hpp>
#include <kvcondense/prim/mini_float.hpp>
#include <kvcondense/quant/kvtc.hpp>

namespace kvcondense::quant {

/// What the symbols of a block in a sub-chunk stand for: both numbers as 16 bits hold them.
struct KvtcScale {
  float scale = 0.0f;  ///< 0: all numbers are the shift
  float shift = 0.0f;

  static float stored(float x) { return static_cast<float>(half(prim::limit_to(x, largest_half))); }

  float value(KvtcType type, int symbol) const {
    const float y = type == KvtcType::fp8 ? prim::mini_float_value(prim::float_e4m3, static_cast<std::uint32_t>(symbol))
                                          : static_cast<float>(symbol);
    return y * scale + shift;
  }
  std::uint8_t symbol(KvtcType type, float x) const {
    if (!(scale > 0.0f)) return 0;
    const float y = (x - shift) * (1.0f / scale);
    if (type == KvtcType::fp8)
      return static_cast<std::uint8_t>(prim::mini_float_code<prim::float_e4m3, prim::Rounding::half_even>(y));
    const int top = symbols_of(type) - 1;
    return static_cast<std::uint8_t>(std::clamp(prim::round_half_even(prim::limit_to(y, static_cast<float>(top + 1))), 0, top));
  }
};

/// Whether a symbol of a type stands for a number: E4M3 has two that do not.
inline bool kvtc_symbol_counts(KvtcType type, int symbol) { return type != KvtcType::fp8 || (symbol & 0x7f) != 0x7f; }

/// The scale and shift of numbers, all finite and none larger than the largest half.
///
/// Numbers  integers: of 17 ranges around the mean, from all numbers down to a sixteenth of the farthest distance, that with the
///          least square error of the numbers as they will be decoded. fp8: the mean, and the farthest distance at 448.
inline KvtcScale fit_kvtc_scale(KvtcType type, std::span<const float> numbers) {
  if (numbers.empty()) return {};
  float lo = numbers[0], hi = numbers[0];
  double sum = 0.0;
  for (const float x : numbers) lo = std::min(lo, x), hi = std::max(hi, x), sum += static_cast<double>(x);
  const auto mean = static_cast<float>(sum / static_cast<double>(numbers.size()));
  const float far = std::max(hi - mean, mean - lo);
  if (type == KvtcType::fp8) {
    const float shift = KvtcScale::stored(mean);
    return {KvtcScale::stored(far / 448.0f), shift};
  }
  KvtcScale best{0.0f, KvtcScale::stored(mean)};
  double least = HUGE_VAL;
  const auto top = static_cast<float>(symbols_of(type) - 1);
  for (int j = 0; j <= 16; ++j) {
    const float reach = far * std::exp2(-0.25f * static_cast<float>(j));
    const float from = std::max(lo, mean - reach), to = std::min(hi, mean + reach);
    const KvtcScale s{KvtcScale::stored((to - from) / top), KvtcScale::stored(from)};
    if (!(s.scale > 0.0f)) break;
    double error = 0.0;
    for (const float x : numbers) {
      const auto e = static_cast<double>(x - s.value(type, s.symbol(type, x)));
      error += e * e;
    }
    if (error < least) least = error, best = s;
  }
  return best;
}

}  // namespace kvcondense::quant
