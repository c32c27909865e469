#pragma once

#include <algorithm>
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

/// sum + two products of 16-bit integers, in every lane.
[[gnu::always_inline]] inline I multiply_add_16(I sum, I a, I b) {
#if defined(__clang__)
  return _mm512_dpwssd_epi32(sum, a, b);
#else
  asm("vpdpwssd %2,%1,%0" : "+v"(sum) : "v"(a), "v"(b));
  return sum;
#endif
}

/// Four vectors to four numbers: their largest lanes, or sums of lanes.
[[gnu::always_inline]] inline __m128 largest4(const F (&v)[4]) {
  const F ab = _mm512_max_ps(_mm512_unpacklo_ps(v[0], v[1]), _mm512_unpackhi_ps(v[0], v[1]));
  const F cd = _mm512_max_ps(_mm512_unpacklo_ps(v[2], v[3]), _mm512_unpackhi_ps(v[2], v[3]));
  const F x = _mm512_max_ps(_mm512_shuffle_ps(ab, cd, 0x44), _mm512_shuffle_ps(ab, cd, 0xee));
  const __m256 y = _mm256_max_ps(_mm512_castps512_ps256(x), _mm512_extractf32x8_ps(x, 1));
  return _mm_max_ps(_mm256_castps256_ps128(y), _mm256_extractf128_ps(y, 1));
}
[[gnu::always_inline]] inline __m128 sum4(const F (&v)[4]) {
  float out[4];
  avx512::sum4(v[0], v[1], v[2], v[3], out);
  return _mm_loadu_ps(out);
}

template <int R, int N>
void multiply_rows(int bytes, const RowBlock<const float>& x, const float* scale, const float* mid, index_t n, UnroundedRows& to, FoldedRows* out) {
  F most[N][4], most2[N][4], zero[N][4];
#pragma GCC unroll 2
  for (int k = 0; k < N; ++k)
#pragma GCC unroll 4
    for (int r = 0; r < 4; ++r) most[k][r] = most2[k][r] = zero[k][r] = _mm512_setzero_ps();
  // Sixteen multipliers of every row, of all groups; `m` becomes the larger magnitude.
  const auto multiply = [&](index_t i, F (&m)[N][4], auto load) __attribute__((always_inline)) {
    F a[R];
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) a[r] = load(x.data + r * x.step + i);
#pragma GCC unroll 2
    for (int k = 0; k < N; ++k) {
      const F s = scale == nullptr ? _mm512_set1_ps(1.0f) : load(scale + k * max_head_dim + i);
      const F o = mid == nullptr ? _mm512_setzero_ps() : load(mid + k * max_head_dim + i);
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) {
        const F p = _mm512_mul_ps(a[r], s);
        zero[k][r] = _mm512_fmadd_ps(a[r], o, zero[k][r]);
        m[k][r] = _mm512_range_ps(m[k][r], p, 0x0B);
        _mm512_store_ps(to.product[k][r] + i, p);
      }
    }
  };
  const index_t padded = (n + 63) / 64 * 64;
  index_t i = 0;
  for (; i + 32 <= n; i += 32) multiply(i, most, avx512::load_float), multiply(i + 16, most2, avx512::load_float);  // two chains of maxima
  for (; i < padded; i += 16)
    multiply(i, most, [&](const float* p) { return avx512::load_float_some(p, std::clamp<index_t>(n - i, 0, 16)); });
  const float top = FoldedRows::top(bytes);
#pragma GCC unroll 2
  for (int k = 0; k < N; ++k) {
#pragma GCC unroll 4
    for (int r = 0; r < 4; ++r) most[k][r] = _mm512_range_ps(most[k][r], most2[k][r], 0x0B);
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) _mm512_store_ps(to.zero[k][r], zero[k][r]);
    // Rows of zeros, and of NaN, give zeros: NaN lives on in what is added.
    const __m128 bound = largest4(most[k]), usable = _mm_cmp_ps(bound, _mm_set1_ps(1e-30f), _CMP_GT_OQ);
    _mm_storeu_ps(out[k].unit, _mm_blendv_ps(_mm_set1_ps(1.0f), _mm_mul_ps(bound, _mm_set1_ps(1.0f / top)), usable));
    _mm_store_ps(to.inverse[k], _mm_and_ps(_mm_div_ps(_mm_set1_ps(top), bound), usable));
    out[k].bytes = bytes;
  }
}

template <int R, int Bytes>
void round_rows(const UnroundedRows& from, index_t groups, index_t n, float middle, FoldedRows* out) {
  const I order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  const I ones = _mm512_set1_epi16(1), low_bits = _mm512_set1_epi16(127);
  for (index_t k = 0; k < groups; ++k) {
    F total[4];
#pragma GCC unroll 4
    for (int r = 0; r < 4; ++r) total[r] = _mm512_setzero_ps();
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
      const F f = _mm512_set1_ps(from.inverse[k][r]);
      I sum = _mm512_setzero_si512();
      for (index_t c = 0; c < n; c += 64) {
        I v[4];
#pragma GCC unroll 4
        for (int j = 0; j < 4; ++j) v[j] = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_load_ps(from.product[k][r] + c + 16 * j), f));
        const I a = _mm512_packs_epi32(v[0], v[1]), b = _mm512_packs_epi32(v[2], v[3]);
        if constexpr (Bytes == 1) {
          const I bytes = _mm512_packs_epi16(a, b);
          _mm512_store_si512(out[k].plane[r][0] + c, _mm512_permutexvar_epi32(order, bytes));
          sum = multiply_add(sum, _mm512_set1_epi8(1), bytes);
          continue;
        }
        const I highs = _mm512_packs_epi16(_mm512_srai_epi16(a, 7), _mm512_srai_epi16(b, 7));
        const I lows = _mm512_packs_epi16(_mm512_and_si512(a, low_bits), _mm512_and_si512(b, low_bits));
        _mm512_store_si512(out[k].plane[r][0] + c, _mm512_permutexvar_epi32(order, highs));
        _mm512_store_si512(out[k].plane[r][1] + c, _mm512_permutexvar_epi32(order, lows));
        sum = multiply_add_16(multiply_add_16(sum, a, ones), b, ones);
      }
      total[r] = _mm512_fnmadd_ps(_mm512_cvtepi32_ps(sum), _mm512_set1_ps(out[k].unit[r] * middle), _mm512_load_ps(from.zero[k][r]));
    }
    _mm_storeu_ps(out[k].add, sum4(total));
  }
}

/// Calls f with the number of rows, 1 to 4, as a constant.
template <class Call>
void with_rows(index_t rows, Call&& f) {
  if (rows == 4) f.template operator()<4>();
  else if (rows == 3) f.template operator()<3>();
  else if (rows == 2) f.template operator()<2>();
  else f.template operator()<1>();
}

inline void multiply(int bytes, const RowBlock<const float>& x, index_t groups, const float* scale, const float* mid, index_t n,
                     UnroundedRows& products, FoldedRows* out) {
  with_rows(x.rows, [&]<int R>() {
    if (groups == 2) multiply_rows<R, 2>(bytes, x, scale, mid, n, products, out);
    else multiply_rows<R, 1>(bytes, x, scale, mid, n, products, out);
  });
}

inline void round(const UnroundedRows& products, index_t rows, index_t groups, index_t n, float middle, FoldedRows* out) {
  with_rows(rows, [&]<int R>() {
    if (out->bytes == 2) round_rows<R, 2>(products, groups, n, middle, out);
    else round_rows<R, 1>(products, groups, n, middle, out);
  });
}

template <class Row>
void read_type(const std::byte* scales, const std::byte* offsets, index_t n, const MidRule& rule, float* scale, float* mid) {
  const F a = _mm512_set1_ps(rule.by_scale), b = _mm512_set1_ps(rule.by_offset), c = _mm512_set1_ps(rule.by_both);
  using T = typename Row::T;
  const auto use = [&](const T* from_scales, const T* from_offsets, F& s, F& m) {
    s = Row::load(from_scales);
    const F o = offsets == nullptr ? _mm512_setzero_ps() : Row::load(from_offsets);
    m = _mm512_fmadd_ps(s, _mm512_fmadd_ps(o, c, a), _mm512_mul_ps(o, b));
  };
  // Parameters may lie at odd addresses, which vectors are read from as well as from others.
  constexpr index_t size = sizeof(T);
  F s, m;
  index_t i = 0;
  for (; i + 16 <= n; i += 16) {
    use(reinterpret_cast<const T*>(scales + i * size), reinterpret_cast<const T*>(offsets == nullptr ? nullptr : offsets + i * size), s, m);
    _mm512_storeu_ps(scale + i, s), _mm512_storeu_ps(mid + i, m);
  }
  if (i == n) return;
  T x[16] = {}, y[16] = {};
  std::memcpy(x, scales + i * size, static_cast<std::size_t>(n - i) * sizeof(T));
  if (offsets != nullptr) std::memcpy(y, offsets + i * size, static_cast<std::size_t>(n - i) * sizeof(T));
  use(x, y, s, m);
  avx512::store_float_some(scale + i, s, n - i), avx512::store_float_some(mid + i, m, n - i);
}

inline void read(DType type, const std::byte* scales, const std::byte* offsets, index_t n, const MidRule& rule, float* scale,
                 float* mid) {
  if (type == DType::f32) read_type<avx512::Float>(scales, offsets, n, rule, scale, mid);
  else if (type == DType::f16) read_type<avx512::Half>(scales, offsets, n, rule, scale, mid);
  else read_type<avx512::Bfloat>(scales, offsets, n, rule, scale, mid);
}

inline void scale_add(const float* x, index_t n, const float* scale, const float* mid, const float* sum, const RowBlock<float>& out) {
  for (index_t i = 0; i < n; i += 16) {
    const F s = _mm512_loadu_ps(scale + i), m = _mm512_loadu_ps(mid + i);
    for (index_t r = 0; r < out.rows; ++r) {
      float* o = out.data + r * out.step + i;
      const F more = _mm512_fmadd_ps(_mm512_set1_ps(sum[r]), m, _mm512_loadu_ps(o));
      _mm512_storeu_ps(o, _mm512_fmadd_ps(_mm512_loadu_ps(x + r * n + i), s, more));
    }
  }
}

/// What the sum over the lower field, and the difference between both and it, stand for.
template <int Bits, int Field>
inline constexpr float low_unit = Bits == 2 && Field == 2 ? 0x1p-4f : 1.0f;
template <int Bits, int Field>
inline constexpr float high_unit = Bits == 8 ? 1.0f : Bits == 4 ? 0x1p-4f : Field == 0 ? 0x1p-2f : 0x1p-6f;

/// Sums over the lower field and over both as 32 outputs.
template <int Bits, int Field, bool Add>
[[gnu::always_inline]] inline void put(I low, I both, float unit, float add, float* out) {
  const F more = _mm512_set1_ps(add), u = _mm512_set1_ps(unit * low_unit<Bits, Field>), v = _mm512_set1_ps(unit * high_unit<Bits, Field>);
  const I high = Bits == 8 ? both : _mm512_sub_epi32(both, low);
  F first = _mm512_fmadd_ps(_mm512_cvtepi32_ps(low), u, more), second = _mm512_fmadd_ps(_mm512_cvtepi32_ps(high), v, more);
  if constexpr (Add) first = _mm512_add_ps(first, _mm512_loadu_ps(out)), second = _mm512_add_ps(second, _mm512_loadu_ps(out + 16));
  _mm512_storeu_ps(out, first), _mm512_storeu_ps(out + 16, second);
}

/// Multipliers of two bytes: sixteen sums, of one pair, four rows and two planes. The upper field is never isolated: the sum over both
/// fields less the sum over the lower one is its multiple.
template <int Bits, int Field, int R, bool Add>
void dot_rows(const CodeRun& run, bool behind, const FoldedRows& folded, const RowBlock<float>& out) {
  const I low_field = _mm512_set1_epi8(static_cast<char>(Bits == 4 ? 0x0f : Field == 0 ? 0x03 : 0x30));
  const I both_fields = _mm512_set1_epi8(static_cast<char>(Bits == 4 ? 0xff : Field == 0 ? 0x0f : 0xf0));
  I low[R][2], both[R][2];
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 2
    for (int p = 0; p < 2; ++p) low[r][p] = both[r][p] = _mm512_setzero_si512();
  const std::byte* w = run.first + (behind && Bits != 2 ? run.other : 0);
  RunAhead<Bits> ahead(run, behind ? 1 : 0, 1);
  const std::int8_t* n = &folded.plane[0][0][0];
  for (index_t s = 0; s < run.steps; ++s, w += run.step, ahead.at += ahead.step, n += 4) {
    avx512::prefetch(ahead.at);
    I x, y;
    if constexpr (Bits == 8) {
      avx512::prefetch(ahead.at + 64);
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
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r) {
    if (r >= out.rows) break;
    const I a = _mm512_add_epi32(_mm512_slli_epi32(low[r][0], 7), low[r][1]);
    const I all = _mm512_add_epi32(_mm512_slli_epi32(both[r][0], 7), both[r][1]);
    put<Bits, Field, Add>(a, all, folded.unit[r], folded.add[r], out.data + r * out.step);
  }
}

template <int Bits, int R, bool Add>
void dot_pairs(const CodeRun& run, const FoldedRows& first, const FoldedRows& behind, const RowBlock<float>& out) {
  dot_rows<Bits, 0, R, Add>(run, false, first, out);
  if (run.pairs == 2) dot_rows<Bits, Bits == 2 ? 2 : 0, R, Add>(run, true, behind, {out.data + 32, out.rows, out.step});
}

/// Multipliers of one byte: sixteen sums, of two pairs and four rows.
template <int Bits, int R, int Pairs, bool Add>
void byte_rows(const CodeRun& run, const FoldedRows& first, const FoldedRows& behind, const RowBlock<float>& out) {
  const I low_field = _mm512_set1_epi8(Bits == 4 ? 0x0f : 0x03), next_field = _mm512_set1_epi8(0x30);
  const I two_fields = _mm512_set1_epi8(0x0f), last_fields = _mm512_set1_epi8(static_cast<char>(0xf0));
  I low[Pairs][R], both[Pairs][R];
#pragma GCC unroll 2
  for (int p = 0; p < Pairs; ++p)
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) low[p][r] = both[p][r] = _mm512_setzero_si512();
  const std::byte* w = run.first;
  RunAhead<Bits> ahead(run, 0, Pairs);
  const std::int8_t* n = &first.plane[0][0][0];
  const std::int8_t* m = &behind.plane[0][0][0];
  for (index_t s = 0; s < run.steps; ++s, w += run.step, ahead.at += ahead.step, n += 4, m += 4) {
#pragma GCC unroll 4
    for (index_t b = 0; b < Pairs * 16 * Bits; b += 64) avx512::prefetch(ahead.at + b);
    I x[Pairs], y[Pairs];
    if constexpr (Bits == 2) {
      const I codes = _mm512_loadu_si512(w);
      x[0] = _mm512_and_si512(codes, low_field), y[0] = _mm512_and_si512(codes, two_fields);
      if constexpr (Pairs == 2) x[1] = _mm512_and_si512(codes, next_field), y[1] = _mm512_and_si512(codes, last_fields);
    } else {
#pragma GCC unroll 2
      for (int p = 0; p < Pairs; ++p) {
        const I codes = _mm512_loadu_si512(w + p * run.other);
        x[p] = Bits == 4 ? _mm512_and_si512(codes, low_field) : codes;
        y[p] = codes;
        if constexpr (Bits == 8) y[p] = _mm512_loadu_si512(w + p * run.other + run.second);
      }
    }
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 2
      for (int p = 0; p < Pairs; ++p) {
        std::int32_t four;
        std::memcpy(&four, (p == 0 ? n : m) + r * 2 * max_head_dim, sizeof four);
        const I by = _mm512_set1_epi32(four);
        low[p][r] = multiply_add(low[p][r], x[p], by), both[p][r] = multiply_add(both[p][r], y[p], by);
      }
  }
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r) {
    if (r >= out.rows) break;
    float* o = out.data + r * out.step;
    put<Bits, 0, Add>(low[0][r], both[0][r], first.unit[r], first.add[r], o);
    if constexpr (Pairs == 2) put<Bits, 2, Add>(low[1][r], both[1][r], behind.unit[r], behind.add[r], o + 32);
  }
}

template <int Bits, int R, bool Add>
void dot_some(const CodeRun& run, const FoldedRows& first, const FoldedRows& behind, const RowBlock<float>& out) {
  if (first.bytes == 2) dot_pairs<Bits, R, Add>(run, first, behind, out);
  else if (run.pairs == 2) byte_rows<Bits, R, 2, Add>(run, first, behind, out);
  else byte_rows<Bits, R, 1, Add>(run, first, behind, out);
}

template <int Bits, bool Add>
void dot_bits(const CodeRun& run, const FoldedRows& first, const FoldedRows& behind, const RowBlock<float>& out) {
  if (out.rows > 2) dot_some<Bits, 4, Add>(run, first, behind, out);
  else if (out.rows == 2) dot_some<Bits, 2, Add>(run, first, behind, out);
  else dot_some<Bits, 1, Add>(run, first, behind, out);
}

template <bool Add>
void dot(int bits, const CodeRun& run, const FoldedRows& first, const FoldedRows& behind, const RowBlock<float>& out) {
  if (bits == 8) dot_bits<8, Add>(run, first, behind, out);
  else if (bits == 4) dot_bits<4, Add>(run, first, behind, out);
  else dot_bits<2, Add>(run, first, behind, out);
}

inline constexpr CodeOps code_ops{name, read, multiply, round, dot<false>, dot<true>, scale_add};

}  // namespace kvcondense::prim::cpu::vnni

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#pragma GCC diagnostic pop
#endif
#endif
