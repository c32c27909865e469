#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include <kvcondense/backend/cpu/simd/code_ops.hpp>
#include <kvcondense/backend/cpu/simd/coding_ops.hpp>
#include <kvcondense/backend/cpu/simd/number_ops.hpp>
#include <kvcondense/backend/cpu/simd/row_ops.hpp>
#include <kvcondense/backend/cpu/simd/target.hpp>

#if KVCONDENSE_NEON_TARGETS
#include <arm_neon.h>

// Vectors that every 64-bit ARM processor has; products of bytes for those that can in neon_dot.hpp.
namespace kvcondense::prim::cpu::neon {

using F = float32x4_t;

inline constexpr const char* name = "neon";
inline constexpr index_t width = 4;
inline constexpr int tall = 4;

[[gnu::always_inline]] inline F zero() { return vdupq_n_f32(0.0f); }
[[gnu::always_inline]] inline F set(float x) { return vdupq_n_f32(x); }
[[gnu::always_inline]] inline F fma(F a, F b, F c) { return vfmaq_f32(c, a, b); }
[[gnu::always_inline]] inline F add(F a, F b) { return vaddq_f32(a, b); }
[[gnu::always_inline]] inline F sub(F a, F b) { return vsubq_f32(a, b); }
[[gnu::always_inline]] inline F mul(F a, F b) { return vmulq_f32(a, b); }
[[gnu::always_inline]] inline F larger(F a, F b) { return vbslq_f32(vcgtq_f32(a, b), a, b); }

[[gnu::always_inline]] inline F load_float(const float* p) { return vld1q_f32(p); }
[[gnu::always_inline]] inline void store_float(float* p, F v) { vst1q_f32(p, v); }
[[gnu::always_inline]] inline F load_float_some(const float* p, index_t n) {
  float x[width] = {};
  for (index_t i = 0; i < n; ++i) x[i] = p[i];
  return load_float(x);
}
[[gnu::always_inline]] inline void store_float_some(float* p, F v, index_t n) {
  float x[width];
  store_float(x, v);
  for (index_t i = 0; i < n; ++i) p[i] = x[i];
}

[[gnu::always_inline]] inline uint16x4_t load_16_some(const std::uint16_t* p, index_t n) {
  std::uint16_t x[width] = {};
  for (index_t i = 0; i < n; ++i) x[i] = p[i];
  return vld1_u16(x);
}
[[gnu::always_inline]] inline F half_values(uint16x4_t x) { return vcvt_f32_f16(vreinterpret_f16_u16(x)); }
[[gnu::always_inline]] inline F bfloat16_values(uint16x4_t x) { return vreinterpretq_f32_u32(vshll_n_u16(x, 16)); }
[[gnu::always_inline]] inline F load_half(const std::uint16_t* p) { return half_values(vld1_u16(p)); }
[[gnu::always_inline]] inline F load_bfloat16(const std::uint16_t* p) { return bfloat16_values(vld1_u16(p)); }
[[gnu::always_inline]] inline F load_half_some(const std::uint16_t* p, index_t n) { return half_values(load_16_some(p, n)); }
[[gnu::always_inline]] inline F load_bfloat16_some(const std::uint16_t* p, index_t n) { return bfloat16_values(load_16_some(p, n)); }

[[gnu::always_inline]] inline void store_half(std::uint16_t* p, F v) {
  // Of NaN only the sign is kept.
  const uint32x4_t number = vceqq_f32(v, v), x = vreinterpretq_u32_f32(v);
  const uint32x4_t quiet = vorrq_u32(vandq_u32(x, vdupq_n_u32(0x80000000u)), vdupq_n_u32(0x7fc00000u));
  vst1_u16(p, vreinterpret_u16_f16(vcvt_f16_f32(vreinterpretq_f32_u32(vbslq_u32(number, x, quiet)))));
}
[[gnu::always_inline]] inline void store_bfloat16(std::uint16_t* p, F v) {
  const uint32x4_t x = vreinterpretq_u32_f32(v), high = vshrq_n_u32(x, 16);
  const uint32x4_t even = vandq_u32(high, vdupq_n_u32(1));
  const uint32x4_t rounded = vshrq_n_u32(vaddq_u32(vaddq_u32(x, vdupq_n_u32(0x7fff)), even), 16);
  vst1_u16(p, vmovn_u32(vbslq_u32(vceqq_f32(v, v), rounded, vorrq_u32(high, vdupq_n_u32(0x40)))));
}

using D = float64x2_t;
inline constexpr index_t wide = 2;
[[gnu::always_inline]] inline D set_wide(double x) { return vdupq_n_f64(x); }
[[gnu::always_inline]] inline D load_wide(const float* p) { return vcvt_f64_f32(vld1_f32(p)); }

[[gnu::always_inline]] inline void sum4(F a, F b, F c, F d, float* out) { vst1q_f32(out, vpaddq_f32(vpaddq_f32(a, b), vpaddq_f32(c, d))); }

[[gnu::always_inline]] inline float largest_lane(F v) { return vmaxvq_f32(v); }

[[gnu::always_inline]] inline void prefetch(const std::byte* p) { __builtin_prefetch(p, 0, 2); }

#include <kvcondense/backend/cpu/simd/exp_polynomial.inl>

/// exp(x) for x <= 0 or NaN.
[[gnu::always_inline]] inline F exp_of_negative(F x) {
  const uint32x4_t beyond = vcltq_f32(x, set(-86.6f));
  const F a = vbslq_f32(beyond, set(-86.6f), x);
  const F n = vrndnq_f32(mul(a, set(1.44269504f)));
  F f = vfmsq_f32(a, n, set(0x1.63p-1f));
  f = vfmsq_f32(f, n, set(-2.12194440e-4f));
  const F p = exp_polynomial(f);
  const int32x4_t power = vshlq_n_s32(vaddq_s32(vcvtq_s32_f32(n), vdupq_n_s32(127)), 23);
  return vreinterpretq_f32_u32(vbicq_u32(vreinterpretq_u32_f32(mul(p, vreinterpretq_f32_s32(power))), beyond));
}

#include <kvcondense/backend/cpu/simd/row_ops.inl>

#include <kvcondense/backend/cpu/simd/number_ops.inl>

#include <kvcondense/backend/cpu/simd/coding_ops.inl>

/// Sixteen codes of a field as signed bytes; codes of 8 bits less 128.
template <int Bits>
inline int8x16_t signed_codes(const std::byte* from, int8x16_t down) {
  const uint8x16_t x = vld1q_u8(reinterpret_cast<const std::uint8_t*>(from));
  if constexpr (Bits == 8) return vreinterpretq_s8_u8(veorq_u8(x, vdupq_n_u8(0x80)));
  return vreinterpretq_s8_u8(vandq_u8(vshlq_u8(x, down), vdupq_n_u8((1 << Bits) - 1)));
}
/// What signed codes of 8 bits lack: 128 of every multiplier.
inline std::int32_t lacking(const std::int8_t* multipliers, index_t steps) {
  std::int32_t all = 0;
  for (index_t i = 0; i < 4 * steps; ++i) all += multipliers[i];
  return 128 * all;
}

/// Four outputs of each field at a time: their products of 16 bits are added in pairs, and the pairs at the end.
template <int Bits, int R>
void code_pair(const CodeRun& run, index_t at, int field, const FoldedRows& folded, int plane, index_t r, std::int32_t (&sum)[R][32]) {
  const int8x16_t down[2] = {vdupq_n_s8(static_cast<std::int8_t>(-field * Bits)), vdupq_n_s8(static_cast<std::int8_t>(-(field + 1) * Bits))};
  for (index_t j = 0; j < 4; ++j) {
    int32x4_t front[R][2], back[R][2];
#pragma GCC unroll 4
    for (int k = 0; k < 2 * R; ++k) front[k / 2][k % 2] = back[k / 2][k % 2] = vdupq_n_s32(0);
    const std::byte* w = run.first + at + 16 * j;
    RunAhead<Bits> ahead(run, at + field > 0 ? 1 : 0, 1);
    for (index_t s = 0; s < run.steps; ++s, w += run.step, ahead.at += ahead.step) {
      if (j == 0) prefetch(ahead.at);
      if (Bits == 8 && j == 1) prefetch(ahead.at + 64);
      int8x16_t x[2];
#pragma GCC unroll 2
      for (int p = 0; p < 2; ++p) x[p] = signed_codes<Bits>(w + (Bits == 8 ? p * run.second : 0), down[p]);
#pragma GCC unroll 2
      for (int k = 0; k < R; ++k) {
        std::int32_t four;
        std::memcpy(&four, &folded.plane[r + k][plane][4 * s], sizeof four);
        const int8x16_t by = vreinterpretq_s8_s32(vdupq_n_s32(four));
#pragma GCC unroll 2
        for (int p = 0; p < 2; ++p) {
          front[k][p] = vpadalq_s16(front[k][p], vmull_s8(vget_low_s8(x[p]), vget_low_s8(by)));
          back[k][p] = vpadalq_s16(back[k][p], vmull_high_s8(x[p], by));
        }
      }
    }
    for (int k = 0; k < R; ++k) {
      const int32x4_t more = vdupq_n_s32(Bits == 8 ? lacking(folded.plane[r + k][plane], run.steps) : 0);
      for (int p = 0; p < 2; ++p) vst1q_s32(sum[k] + 16 * p + 4 * j, vaddq_s32(vpaddq_s32(front[k][p], back[k][p]), more));
    }
  }
}

#include <kvcondense/backend/cpu/simd/code_ops.inl>

}  // namespace kvcondense::prim::cpu::neon
#endif
