#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include <kvcondense/backend/cpu/simd/avx512.hpp>
#include <kvcondense/backend/cpu/simd/code_ops.hpp>
#include <kvcondense/backend/cpu/simd/target.hpp>

#if KVCONDENSE_X86_TARGETS

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni"))), apply_to = function)
#else
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")
#endif

namespace kvcondense::prim::cpu::vnni {

using F = __m512;
using I = __m512i;

inline constexpr const char* name = "avx512vnni";

/// sum + four products of an unsigned and a signed byte, in every lane.
[[gnu::always_inline]] inline I multiply_add(I sum, I codes, I multipliers) {
#if defined(__clang__)
  return _mm512_dpbusd_epi32(sum, codes, multipliers);
#else
  // g++ 12 copies the accumulators around the intrinsic; this keeps them where they are.
  asm("vpdpbusd %2,%1,%0" : "+v"(sum) : "v"(codes), "v"(multipliers));
  return sum;
#endif
}

[[gnu::always_inline]] inline F load_some(const float* p, index_t n) {
  if (n >= 16) return _mm512_loadu_ps(p);
  return n <= 0 ? _mm512_setzero_ps() : _mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << n) - 1u), p);
}

inline void fold_row(const float* x, const float* scale, index_t n, std::int8_t* high, std::int8_t* low, float& unit, float& total) {
  alignas(64) float product[max_head_dim + 64];
  F most = _mm512_setzero_ps();
  const index_t padded = (n + 63) / 64 * 64;
  for (index_t i = 0; i < padded; i += 16) {
    const F a = load_some(x + i, n - i);
    const F p = scale == nullptr ? a : _mm512_mul_ps(a, load_some(scale + i, n - i));
    most = _mm512_range_ps(most, p, 0x0B);  // the larger magnitude
    _mm512_store_ps(product + i, p);
  }
  const float bound = _mm512_reduce_max_ps(most);
  // Also for rows of zeros and for NaN, which then give zeros: NaN is the caller's to keep.
  unit = bound > 1e-30f ? bound / FoldedRows::top : 1.0f;
  const F inverse = _mm512_set1_ps(bound > 1e-30f ? FoldedRows::top / bound : 0.0f);
  const I order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  const I ones = _mm512_set1_epi8(1), half = _mm512_set1_epi16(64);
  I sum_high = _mm512_setzero_si512(), sum_low = sum_high;
  for (index_t i = 0; i < padded; i += 64) {
    I v[4];
#pragma GCC unroll 4
    for (int k = 0; k < 4; ++k) v[k] = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_load_ps(product + i + 16 * k), inverse));
    const I a = _mm512_packs_epi32(v[0], v[1]), b = _mm512_packs_epi32(v[2], v[3]);
    const I a_high = _mm512_srai_epi16(_mm512_add_epi16(a, half), 7), b_high = _mm512_srai_epi16(_mm512_add_epi16(b, half), 7);
    const I a_low = _mm512_sub_epi16(a, _mm512_slli_epi16(a_high, 7)), b_low = _mm512_sub_epi16(b, _mm512_slli_epi16(b_high, 7));
    const I highs = _mm512_permutexvar_epi32(order, _mm512_packs_epi16(a_high, b_high));
    const I lows = _mm512_permutexvar_epi32(order, _mm512_packs_epi16(a_low, b_low));
    _mm512_store_si512(high + i, highs);
    _mm512_store_si512(low + i, lows);
    sum_high = multiply_add(sum_high, ones, highs), sum_low = multiply_add(sum_low, ones, lows);
  }
  total = static_cast<float>(_mm512_reduce_add_epi32(_mm512_add_epi32(_mm512_slli_epi32(sum_high, 7), sum_low)));
}

inline void fold(RowBlock<const float> x, const float* scale, index_t n, FoldedRows& out) {
  for (index_t r = 0; r < x.rows; ++r)
    fold_row(x.data + r * x.step, scale, n, out.plane[r][0], out.plane[r][1], out.unit[r], out.total[r]);
}

/// The upper field is never isolated: the sum over both fields less the sum over the lower one is its multiple.
template <int Bits, int Field, int R, bool Add>
void dot_rows(const CodeRun& run, const FoldedRows& folded, const float* add, RowBlock<float> out) {
  const I low_field = _mm512_set1_epi8(static_cast<char>(Bits == 4 ? 0x0f : Field == 0 ? 0x03 : 0x30));
  const I both_fields = _mm512_set1_epi8(static_cast<char>(Bits == 4 ? 0xff : Field == 0 ? 0x0f : 0xf0));
  I low[R][2], both[R][2];
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 2
    for (int p = 0; p < 2; ++p) low[r][p] = both[r][p] = _mm512_setzero_si512();
  const std::byte* w = run.first;
  const std::byte* next = run.next == nullptr ? w : run.next;
  const index_t next_step = run.next == nullptr ? 0 : run.step;
  const std::int8_t* n = &folded.plane[0][0][run.multiplier];
  for (index_t s = 0; s < run.steps; ++s, w += run.step, next += next_step, n += 4) {
    avx512::prefetch(next);
    I x, y;
    if constexpr (Bits == 8) {
      avx512::prefetch(next + (run.next == nullptr ? 0 : run.second));
      x = _mm512_loadu_si512(w), y = _mm512_loadu_si512(w + run.second);
    } else {
      const I codes = _mm512_loadu_si512(w);
      x = _mm512_and_si512(codes, low_field);
      y = Bits == 4 ? codes : _mm512_and_si512(codes, both_fields);
    }
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 2
      for (int p = 0; p < 2; ++p) {
        std::int32_t four;
        std::memcpy(&four, n + (r * 2 + p) * max_head_dim, sizeof four);
        const I m = _mm512_set1_epi32(four);
        low[r][p] = multiply_add(low[r][p], x, m), both[r][p] = multiply_add(both[r][p], y, m);
      }
  }
  constexpr float scale_low = Bits == 2 && Field == 2 ? 0x1p-4f : 1.0f;
  constexpr float scale_high = Bits == 8 ? 1.0f : Bits == 4 ? 0x1p-4f : Field == 0 ? 0x1p-2f : 0x1p-6f;
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r) {
    if (r >= out.rows) break;
    const I a = _mm512_add_epi32(_mm512_slli_epi32(low[r][0], 7), low[r][1]);
    const I all = _mm512_add_epi32(_mm512_slli_epi32(both[r][0], 7), both[r][1]);
    const I b = Bits == 8 ? all : _mm512_sub_epi32(all, a);
    float* o = out.data + r * out.step;
    const F more = _mm512_set1_ps(add[r]);
    const F u = _mm512_set1_ps(folded.unit[r] * scale_low), v = _mm512_set1_ps(folded.unit[r] * scale_high);
    F first = _mm512_fmadd_ps(_mm512_cvtepi32_ps(a), u, more), second = _mm512_fmadd_ps(_mm512_cvtepi32_ps(b), v, more);
    if constexpr (Add) first = _mm512_add_ps(first, _mm512_loadu_ps(o)), second = _mm512_add_ps(second, _mm512_loadu_ps(o + 16));
    _mm512_storeu_ps(o, first), _mm512_storeu_ps(o + 16, second);
  }
}

template <int Bits, int Field, bool Add>
void dot_any(const CodeRun& run, const FoldedRows& folded, const float* add, RowBlock<float> out) {
  if (out.rows > 2) dot_rows<Bits, Field, 4, Add>(run, folded, add, out);
  else if (out.rows == 2) dot_rows<Bits, Field, 2, Add>(run, folded, add, out);
  else dot_rows<Bits, Field, 1, Add>(run, folded, add, out);
}

template <bool Add>
void dot_bits(int bits, const CodeRun& run, const FoldedRows& folded, const float* add, RowBlock<float> out) {
  if (bits == 8) dot_any<8, 0, Add>(run, folded, add, out);
  else if (bits == 4) dot_any<4, 0, Add>(run, folded, add, out);
  else if (run.field == 0) dot_any<2, 0, Add>(run, folded, add, out);
  else dot_any<2, 2, Add>(run, folded, add, out);
}

inline constexpr CodeOps code_ops{name, fold, dot_bits<false>, dot_bits<true>};

}  // namespace kvcondense::prim::cpu::vnni

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#pragma GCC diagnostic pop
#endif
#endif
