#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include <kvcondense/backend/cpu/simd/coding_ops.hpp>
#include <kvcondense/backend/cpu/simd/number_ops.hpp>
#include <kvcondense/backend/cpu/simd/row_ops.hpp>
#include <kvcondense/backend/cpu/simd/target.hpp>

#if KVCONDENSE_X86_TARGETS
// g++ 12 takes its own "undefined" operands for uninitialized variables.
#if !defined(__clang__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <immintrin.h>

// Everything between push and pop is compiled for these instructions, whatever the rest of the program is compiled
// for; `row_ops` is called where the processor has them.
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl")
#endif

namespace kvcondense::prim::cpu::avx512 {

using F = __m512;

inline constexpr const char* name = "avx512";
inline constexpr index_t width = 16;
inline constexpr int tall = 4;

[[gnu::always_inline]] inline F zero() { return _mm512_setzero_ps(); }
[[gnu::always_inline]] inline F set(float x) { return _mm512_set1_ps(x); }
[[gnu::always_inline]] inline F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
[[gnu::always_inline]] inline F add(F a, F b) { return _mm512_add_ps(a, b); }
[[gnu::always_inline]] inline F sub(F a, F b) { return _mm512_sub_ps(a, b); }
[[gnu::always_inline]] inline F mul(F a, F b) { return _mm512_mul_ps(a, b); }
[[gnu::always_inline]] inline F larger(F a, F b) { return _mm512_max_ps(a, b); }

/// A mask whose first n bits are set.
[[gnu::always_inline]] inline __mmask16 first_lanes(index_t n) { return static_cast<__mmask16>((1u << n) - 1u); }
[[gnu::always_inline]] inline F load_float(const float* p) { return _mm512_loadu_ps(p); }
[[gnu::always_inline]] inline void store_float(float* p, F v) { _mm512_storeu_ps(p, v); }
[[gnu::always_inline]] inline F load_float_some(const float* p, index_t n) { return _mm512_maskz_loadu_ps(first_lanes(n), p); }
[[gnu::always_inline]] inline void store_float_some(float* p, F v, index_t n) { _mm512_mask_storeu_ps(p, first_lanes(n), v); }

[[gnu::always_inline]] inline __m256i load_16(const std::uint16_t* p) {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
}
[[gnu::always_inline]] inline F bfloat16_values(__m256i x) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(x), 16));
}
[[gnu::always_inline]] inline F load_half(const std::uint16_t* p) { return _mm512_cvtph_ps(load_16(p)); }
[[gnu::always_inline]] inline F load_bfloat16(const std::uint16_t* p) { return bfloat16_values(load_16(p)); }
[[gnu::always_inline]] inline F load_half_some(const std::uint16_t* p, index_t n) {
  return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(first_lanes(n), p));
}
[[gnu::always_inline]] inline F load_bfloat16_some(const std::uint16_t* p, index_t n) {
  return bfloat16_values(_mm256_maskz_loadu_epi16(first_lanes(n), p));
}

[[gnu::always_inline]] inline void store_half(std::uint16_t* p, F v) {
  // Of NaN only the sign is kept.
  const __m512i x = _mm512_castps_si512(v);
  const __m512i quiet = _mm512_or_si512(_mm512_and_si512(x, _mm512_set1_epi32(static_cast<int>(0x80000000u))), _mm512_set1_epi32(0x7fc00000));
  const F all = _mm512_mask_blend_ps(_mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q), v, _mm512_castsi512_ps(quiet));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph(all, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
[[gnu::always_inline]] inline void store_bfloat16(std::uint16_t* p, F v) {
  const __m512i x = _mm512_castps_si512(v), high = _mm512_srli_epi32(x, 16);
  const __m512i even = _mm512_and_si512(high, _mm512_set1_epi32(1));
  const __m512i rounded = _mm512_srli_epi32(_mm512_add_epi32(_mm512_add_epi32(x, _mm512_set1_epi32(0x7fff)), even), 16);
  const __m512i quiet = _mm512_or_si512(high, _mm512_set1_epi32(0x40));
  const __m512i all = _mm512_mask_blend_epi32(_mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q), rounded, quiet);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(all));
}

using D = __m512d;
inline constexpr index_t wide = 8;
[[gnu::always_inline]] inline D set_wide(double x) { return _mm512_set1_pd(x); }
[[gnu::always_inline]] inline D load_wide(const float* p) { return _mm512_cvtps_pd(_mm256_loadu_ps(p)); }

[[gnu::always_inline]] inline void sum4(F a, F b, F c, F d, float* out) {
  const F ab = add(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
  const F cd = add(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
  const F x = add(_mm512_shuffle_ps(ab, cd, 0x44), _mm512_shuffle_ps(ab, cd, 0xee));
  const __m256 y = _mm256_add_ps(_mm512_castps512_ps256(x), _mm512_extractf32x8_ps(x, 1));
  _mm_storeu_ps(out, _mm_add_ps(_mm256_castps256_ps128(y), _mm256_extractf128_ps(y, 1)));
}

[[gnu::always_inline]] inline float largest_lane(F v) { return _mm512_reduce_max_ps(v); }

[[gnu::always_inline]] inline void prefetch(const std::byte* p) {
  _mm_prefetch(reinterpret_cast<const char*>(p), _MM_HINT_T1);
}

#include <kvcondense/backend/cpu/simd/exp_polynomial.inl>

/// exp(x) for x <= 0 or NaN.
[[gnu::always_inline]] inline F exp_of_negative(F x) {
  const __mmask16 seen = _mm512_cmp_ps_mask(x, set(-86.6f), _CMP_NLT_UQ);  // what is below may overflow on the way
  const F n = sub(fma(x, set(1.44269504f), set(0x1.8p23f)), set(0x1.8p23f));
  const F f = _mm512_fnmadd_ps(n, set(-2.12194440e-4f), _mm512_fnmadd_ps(n, set(0x1.63p-1f), x));
  return _mm512_maskz_scalef_ps(seen, exp_polynomial(f), n);
}

#include <kvcondense/backend/cpu/simd/row_ops.inl>

#include <kvcondense/backend/cpu/simd/number_ops.inl>

#include <kvcondense/backend/cpu/simd/coding_ops.inl>

}  // namespace kvcondense::prim::cpu::avx512

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#pragma GCC diagnostic pop
#endif
#endif
