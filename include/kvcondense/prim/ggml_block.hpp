#pragma once

#include <cstddef>
#include <cstdint>

#include <kvcondense/core/config.hpp>
#include <kvcondense/core/dtype.hpp>
#include <kvcondense/prim/group_quant.hpp>
#include <kvcondense/prim/mini_float.hpp>
#include <kvcondense/prim/pack_bits.hpp>

// ggml's blocks, byte for byte as its reference quantizer writes them: pure functions for host and
// device. Codes come from the float32 scale, not from the stored one, as they do there.

namespace kvcondense::prim {

enum class GgmlType : std::uint8_t { q4_0, q4_1, q5_0, q5_1, q8_0, mxfp4, nvfp4 };

/// Numbers and bytes of a block, and numbers that share a scale.
struct GgmlShape {
  index_t numbers;
  index_t bytes;
  index_t group;
};
KVCONDENSE_HD constexpr GgmlShape ggml_shape(GgmlType t) {
  switch (t) {
    case GgmlType::q4_0: return {32, 18, 32};
    case GgmlType::q4_1: return {32, 20, 32};
    case GgmlType::q5_0: return {32, 22, 32};
    case GgmlType::q5_1: return {32, 24, 32};
    case GgmlType::q8_0: return {32, 34, 32};
    case GgmlType::mxfp4: return {32, 17, 32};
    case GgmlType::nvfp4: return {64, 36, 16};
  }
  return {32, 18, 32};
}

/// Types that store a minimum beside the scale.
KVCONDENSE_HD constexpr bool has_minimum(GgmlType t) { return t == GgmlType::q4_1 || t == GgmlType::q5_1; }

/// The number of a code before scale and minimum; doubled for mxfp4 and nvfp4.
KVCONDENSE_HD constexpr int ggml_element(GgmlType t, std::uint32_t code) {
  switch (t) {
    case GgmlType::q4_0: return static_cast<int>(code) - 8;
    case GgmlType::q5_0: return static_cast<int>(code) - 16;
    case GgmlType::q8_0: return static_cast<std::int8_t>(static_cast<std::uint8_t>(code));
    case GgmlType::mxfp4:
    case GgmlType::nvfp4: return static_cast<int>(2.0f * mini_float_value<float_e2m1>(code));
    default: return static_cast<int>(code);
  }
}

/// nvfp4's scale: unsigned E4M3, where 0x7f stands for 0 and not for NaN.
KVCONDENSE_HD constexpr float ue4m3_value(std::uint32_t code) {
  return (code & 0x7fu) == 0x7fu ? 0.0f : mini_float_value<float_e4m3>(code & 0x7fu);
}

/// The code next to a scale, a tie up; from 248 on the largest, and below 2^-6 at most 7, as the reference.
KVCONDENSE_HD constexpr std::uint32_t ue4m3_code(float v) {
  if (v >= 248.0f) return 0x7eu;
  if (v >= 0x1p-6f) return mini_float_code<float_e4m3, Rounding::half_away>(v);
  const auto code = static_cast<std::uint32_t>(v * 512.0f + 0.5f);
  return code < 7 ? code : 7;
}

KVCONDENSE_HD inline void ggml_put_half(std::byte* at, float v) {
  const std::uint16_t bits = detail::half_bits(v);
  at[0] = static_cast<std::byte>(bits & 0xffu);
  at[1] = static_cast<std::byte>(bits >> 8);
}

/// A product and its summand, cut to an integer. The limit changes no code, but keeps compilers from
/// fusing the two.
KVCONDENSE_HD constexpr int ggml_cut(float product, float plus) { return static_cast<int>(limit_to(product, 256.0f) + plus); }

/// E2M1 next to x / d, a tie to the smaller, never minus zero.
KVCONDENSE_HD constexpr std::uint32_t ggml_e2m1_code(float x, float d) {
  const float size = (x < 0.0f ? -x : x);
  // Distances as the reference compares them. The products are exact, so fusing them changes nothing.
  std::uint32_t best = 0;
  float least = size;
  for (std::uint32_t c = 1; c < 8; ++c) {
    const float at = static_cast<float>(ggml_element(GgmlType::mxfp4, c)) * d;
    const float far = at > size ? at - size : size - at;
    if (far < least) best = c, least = far;
  }
  return best != 0 && x < 0.0f ? best | 8u : best;
}

/// Writes one block of finite numbers. True when a scale or a minimum did not fit its type and was
/// stored as its largest; ggml would store an infinity.
template <GgmlType T>
KVCONDENSE_HD bool ggml_encode(const float* x, std::byte* out) {
  bool saturated = false;
  constexpr GgmlShape shape = ggml_shape(T);
  if constexpr (T == GgmlType::mxfp4 || T == GgmlType::nvfp4) {
    constexpr index_t n = shape.group, scales = shape.numbers / n;
    for (index_t g = 0; g < scales; ++g, x += n) {
      float amax = 0.0f;
      for (index_t i = 0; i < n; ++i) amax = x[i] > amax ? x[i] : -x[i] > amax ? -x[i] : amax;
      float d = 0.0f;
      if constexpr (T == GgmlType::mxfp4) {
        const std::uint32_t e = e8m0_floor(amax, 2);
        out[0] = static_cast<std::byte>(e);
        d = power_of_two(static_cast<int>(e) - 128);
      } else {
        const float want = amax / 6.0f;
        const std::uint32_t s = ue4m3_code(want);
        constexpr float most = largest(float_e4m3);
        saturated = saturated || want > most;
        out[g] = static_cast<std::byte>(s);
        d = ue4m3_value(s) * 0.5f;
      }
      const SplitHalf packing{n};
      for (index_t i = 0; i < n; ++i) packing.set(out + scales + g * n / 2, i, ggml_e2m1_code(x[i], d));
    }
    return saturated;
  } else {
    constexpr index_t n = shape.numbers;
    float lo = x[0], hi = x[0], amax = 0.0f, extreme = 0.0f;
    for (index_t i = 0; i < n; ++i) {
      const float size = x[i] < 0.0f ? -x[i] : x[i];
      if (size > amax) amax = size, extreme = x[i];
      lo = x[i] < lo ? x[i] : lo;
      hi = x[i] > hi ? x[i] : hi;
    }
    float d = T == GgmlType::q4_0   ? extreme / -8.0f
              : T == GgmlType::q5_0 ? extreme / -16.0f
              : T == GgmlType::q4_1 ? (hi - lo) / 15.0f
              : T == GgmlType::q5_1 ? (hi - lo) / 31.0f
                                    : amax / 127.0f;
    if ((d < 0.0f ? -d : d) < smallest_step) d = 0.0f;  // 1 / d would overflow; the stored d is 0 in any case
    const float id = d != 0.0f ? 1.0f / d : 0.0f;
    ggml_put_half(out, stored(ParamType::f16, d, saturated));
    if constexpr (has_minimum(T)) ggml_put_half(out + 2, stored(ParamType::f16, lo, saturated));
    std::byte* codes = out + (has_minimum(T) ? 4 : 2);
    for (index_t i = 0; i < n; ++i) {
      int code = 0;
      if constexpr (T == GgmlType::q4_0) code = ggml_cut(x[i] * id, 8.5f);
      if constexpr (T == GgmlType::q5_0) code = ggml_cut(x[i] * id, 16.5f);
      if constexpr (has_minimum(T)) code = ggml_cut((x[i] - lo) * id, 0.5f);
      if constexpr (T == GgmlType::q8_0) code = round_code(Rounding::half_away, x[i] * id) & 0xff;
      constexpr int top = T == GgmlType::q8_0 ? 255 : T == GgmlType::q4_0 || T == GgmlType::q4_1 ? 15 : 31;
      const auto c = static_cast<std::uint32_t>(code < top ? code : top);
      if constexpr (T == GgmlType::q8_0) codes[i] = static_cast<std::byte>(c);
      else if constexpr (top == 15) SplitHalf{32}.set(codes, i, c);
      else Qh5{}.set(codes, i, c);
    }
    return saturated;
  }
}

/// Calls f with the type as a constant: f.template operator()<T>().
template <class F>
constexpr auto with_ggml_type(GgmlType t, F&& f) {
  switch (t) {
    case GgmlType::q4_0: return f.template operator()<GgmlType::q4_0>();
    case GgmlType::q4_1: return f.template operator()<GgmlType::q4_1>();
    case GgmlType::q5_0: return f.template operator()<GgmlType::q5_0>();
    case GgmlType::q5_1: return f.template operator()<GgmlType::q5_1>();
    case GgmlType::q8_0: return f.template operator()<GgmlType::q8_0>();
    case GgmlType::mxfp4: return f.template operator()<GgmlType::mxfp4>();
    case GgmlType::nvfp4: break;
  }
  return f.template operator()<GgmlType::nvfp4>();
}

}  // namespace kvcondense::prim
