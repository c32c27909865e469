#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include <kvcondense/backend/cpu/simd/code_ops.hpp>
#include <kvcondense/backend/cpu/simd/coding_ops.hpp>
#include <kvcondense/backend/cpu/simd/number_ops.hpp>
#include <kvcondense/backend/cpu/simd/row_ops.hpp>
#include <kvcondense/backend/cpu/simd/target.hpp>

#if KVCONDENSE_X86_TARGETS
#include <immintrin.h>

// Everything between push and pop is compiled for these instructions, whatever the rest of the program is compiled
// for; `row_ops` is called where the processor has them.
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
#endif

namespace kvcondense::prim::cpu::avx2 {

using F = __m256;

inline constexpr const char* name = "avx2";
inline constexpr index_t width = 8;
inline constexpr int tall = 2;

[[gnu::always_inline]] inline F zero() { return _mm256_setzero_ps(); }
[[gnu::always_inline]] inline F set(float x) { return _mm256_set1_ps(x); }
[[gnu::always_inline]] inline F fma(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }
[[gnu::always_inline]] inline F add(F a, F b) { return _mm256_add_ps(a, b); }
[[gnu::always_inline]] inline F sub(F a, F b) { return _mm256_sub_ps(a, b); }
[[gnu::always_inline]] inline F mul(F a, F b) { return _mm256_mul_ps(a, b); }
[[gnu::always_inline]] inline F larger(F a, F b) { return _mm256_max_ps(a, b); }

/// A mask whose first n lanes are set.
[[gnu::always_inline]] inline __m256i first_lanes(index_t n) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(n)), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
[[gnu::always_inline]] inline F load_float(const float* p) { return _mm256_loadu_ps(p); }
[[gnu::always_inline]] inline void store_float(float* p, F v) { _mm256_storeu_ps(p, v); }
[[gnu::always_inline]] inline F load_float_some(const float* p, index_t n) { return _mm256_maskload_ps(p, first_lanes(n)); }
[[gnu::always_inline]] inline void store_float_some(float* p, F v, index_t n) { _mm256_maskstore_ps(p, first_lanes(n), v); }

[[gnu::always_inline]] inline __m128i load_16(const std::uint16_t* p) {
  return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
}
[[gnu::always_inline]] inline __m128i load_16_some(const std::uint16_t* p, index_t n) {
  std::uint16_t x[width] = {};
  for (index_t i = 0; i < n; ++i) x[i] = p[i];
  return load_16(x);
}
[[gnu::always_inline]] inline F bfloat16_values(__m128i x) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(x), 16));
}
[[gnu::always_inline]] inline F load_half(const std::uint16_t* p) { return _mm256_cvtph_ps(load_16(p)); }
[[gnu::always_inline]] inline F load_bfloat16(const std::uint16_t* p) { return bfloat16_values(load_16(p)); }
[[gnu::always_inline]] inline F load_half_some(const std::uint16_t* p, index_t n) { return _mm256_cvtph_ps(load_16_some(p, n)); }
[[gnu::always_inline]] inline F load_bfloat16_some(const std::uint16_t* p, index_t n) { return bfloat16_values(load_16_some(p, n)); }

[[gnu::always_inline]] inline void store_half(std::uint16_t* p, F v) {
  // Of NaN only the sign is kept.
  const F nan = _mm256_cmp_ps(v, v, _CMP_UNORD_Q);
  const F quiet = _mm256_or_ps(_mm256_and_ps(v, _mm256_set1_ps(-0.0f)), _mm256_castsi256_ps(_mm256_set1_epi32(0x7fc00000)));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p),
                   _mm256_cvtps_ph(_mm256_blendv_ps(v, quiet, nan), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
[[gnu::always_inline]] inline void store_bfloat16(std::uint16_t* p, F v) {
  const __m256i x = _mm256_castps_si256(v);
  const __m256i even = _mm256_and_si256(_mm256_srli_epi32(x, 16), _mm256_set1_epi32(1));
  const __m256i rounded = _mm256_srli_epi32(_mm256_add_epi32(_mm256_add_epi32(x, _mm256_set1_epi32(0x7fff)), even), 16);
  const __m256i quiet = _mm256_or_si256(_mm256_srli_epi32(x, 16), _mm256_set1_epi32(0x40));
  const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(v, v, _CMP_UNORD_Q));
  const __m256i all = _mm256_blendv_epi8(rounded, quiet, nan);
  const __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(all, all), 0x08);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_castsi256_si128(packed));
}

using D = __m256d;
inline constexpr index_t wide = 4;
[[gnu::always_inline]] inline D set_wide(double x) { return _mm256_set1_pd(x); }
[[gnu::always_inline]] inline D load_wide(const float* p) { return _mm256_cvtps_pd(_mm_loadu_ps(p)); }

[[gnu::always_inline]] inline void sum4(F a, F b, F c, F d, float* out) {
  const F ab = _mm256_add_ps(_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b));
  const F cd = _mm256_add_ps(_mm256_unpacklo_ps(c, d), _mm256_unpackhi_ps(c, d));
  const F x = _mm256_add_ps(_mm256_shuffle_ps(ab, cd, 0x44), _mm256_shuffle_ps(ab, cd, 0xee));
  _mm_storeu_ps(out, _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1)));
}

[[gnu::always_inline]] inline float largest_lane(F v) {
  const __m128 x = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1)), y = _mm_max_ps(x, _mm_movehl_ps(x, x));
  return _mm_cvtss_f32(_mm_max_ss(y, _mm_movehdup_ps(y)));
}

[[gnu::always_inline]] inline void prefetch(const std::byte* p) {
  _mm_prefetch(reinterpret_cast<const char*>(p), _MM_HINT_T1);
}

#include <kvcondense/backend/cpu/simd/exp_polynomial.inl>

/// exp(x) for x <= 0 or NaN.
[[gnu::always_inline]] inline F exp_of_negative(F x) {
  const F seen = _mm256_cmp_ps(x, set(-86.6f), _CMP_NLT_UQ);
  const F a = _mm256_max_ps(set(-86.6f), x);
  const F n = _mm256_round_ps(mul(a, set(1.44269504f)), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  F f = _mm256_fnmadd_ps(n, set(0x1.63p-1f), a);
  f = _mm256_fnmadd_ps(n, set(-2.12194440e-4f), f);
  const F p = exp_polynomial(f);
  const __m256i power = _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23);
  return _mm256_and_ps(mul(p, _mm256_castsi256_ps(power)), seen);
}

#include <kvcondense/backend/cpu/simd/row_ops.inl>

#include <kvcondense/backend/cpu/simd/number_ops.inl>

#include <kvcondense/backend/cpu/simd/coding_ops.inl>

/// sum + four products of an unsigned and a signed byte, in every lane. Two products of 8 bits do not fit 16: halves are
/// multiplied apart.
template <int Bits>
[[gnu::always_inline]] inline __m256i add_products(__m256i sum, __m256i codes, __m256i by) {
  const __m256i low = Bits == 8 ? _mm256_and_si256(codes, _mm256_set1_epi8(0x0f)) : codes;
  sum = _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_maddubs_epi16(low, by), _mm256_set1_epi16(1)));
  if constexpr (Bits < 8) return sum;
  const __m256i high = _mm256_and_si256(_mm256_srli_epi16(codes, 4), _mm256_set1_epi8(0x0f));
  return _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_maddubs_epi16(high, by), _mm256_set1_epi16(16)));
}

template <int Bits, int R>
void code_pair(const CodeRun& run, index_t at, int field, const FoldedRows& folded, int plane, index_t r, std::int32_t (&sum)[R][32]) {
  const __m256i mask = _mm256_set1_epi8(static_cast<char>((1 << Bits) - 1));
  const __m128i shift = _mm_cvtsi32_si128(field * Bits), next = _mm_cvtsi32_si128((field + 1) * Bits);
  __m256i total[R][4];
#pragma GCC unroll 2
  for (int k = 0; k < R; ++k)
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) total[k][j] = _mm256_setzero_si256();
  const std::byte* w = run.first + at;
  RunAhead<Bits> ahead(run, at + field > 0 ? 1 : 0, 1);
  for (index_t s = 0; s < run.steps; ++s, w += run.step, ahead.at += ahead.step) {
    prefetch(ahead.at);
    if constexpr (Bits == 8) prefetch(ahead.at + 64);
    __m256i x[4];
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
      const std::byte* from = w + (Bits == 8 && j >= 2 ? run.second : 0) + j % 2 * 32;
      x[j] = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
      if constexpr (Bits < 8) x[j] = _mm256_and_si256(_mm256_srl_epi16(x[j], j < 2 ? shift : next), mask);
    }
#pragma GCC unroll 2
    for (int k = 0; k < R; ++k) {
      std::int32_t four;
      std::memcpy(&four, &folded.plane[r + k][plane][4 * s], sizeof four);
      const __m256i by = _mm256_set1_epi32(four);
#pragma GCC unroll 4
      for (int j = 0; j < 4; ++j) total[k][j] = add_products<Bits>(total[k][j], x[j], by);
    }
  }
  for (int k = 0; k < R; ++k)
    for (int j = 0; j < 4; ++j) _mm256_storeu_si256(reinterpret_cast<__m256i*>(sum[k] + 8 * j), total[k][j]);
}

#include <kvcondense/backend/cpu/simd/code_ops.inl>

}  // namespace kvcondense::prim::cpu::avx2

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif
