#pragma once

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include <kvcondense/backend/cpu/simd/code_ops.hpp>
#include <kvcondense/backend/cpu/simd/coding_ops.hpp>
#include <kvcondense/backend/cpu/simd/number_ops.hpp>
#include <kvcondense/backend/cpu/simd/row_ops.hpp>

namespace kvcondense::prim::cpu::portable {

// Vectors of 16 bytes, which every compiler turns into what the target has, and every ABI passes in registers.
using F __attribute__((vector_size(16))) = float;
using U __attribute__((vector_size(16))) = std::uint32_t;
using U16 __attribute__((vector_size(8))) = std::uint16_t;

inline constexpr const char* name = "portable";
inline constexpr index_t width = 4;
inline constexpr int tall = 2;

inline F zero() { return F{}; }
inline F set(float x) { return F{x, x, x, x}; }
inline F fma(F a, F b, F c) { return a * b + c; }
inline F add(F a, F b) { return a + b; }
inline F sub(F a, F b) { return a - b; }
inline F mul(F a, F b) { return a * b; }
inline F larger(F a, F b) { return a > b ? a : b; }

template <class To, class From>
inline To as(const From& x) {
  static_assert(sizeof(To) == sizeof(From));
  To y;
  std::memcpy(&y, &x, sizeof y);
  return y;
}

inline F load_float(const float* p) {
  F v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
inline void store_float(float* p, F v) { std::memcpy(p, &v, sizeof v); }
inline F load_float_some(const float* p, index_t n) {
  float x[width] = {};
  for (index_t i = 0; i < n; ++i) x[i] = p[i];
  return load_float(x);
}
inline void store_float_some(float* p, F v, index_t n) {
  float x[width];
  store_float(x, v);
  for (index_t i = 0; i < n; ++i) p[i] = x[i];
}

inline U load_16(const std::uint16_t* p) {
  U16 v;
  std::memcpy(&v, p, sizeof v);
  return __builtin_convertvector(v, U);
}
inline F half_values(U h) {
  const U mag = h & 0x7fffu;
  const U finite = as<U>(as<F>(mag << 13) * set(0x1p112f));
  const U bits = mag >= 0x7c00u ? (0x7f800000u | ((mag & 0x3ffu) << 13)) : finite;
  return as<F>(((h & 0x8000u) << 16) | bits);
}
inline F load_half(const std::uint16_t* p) { return half_values(load_16(p)); }
inline F load_bfloat16(const std::uint16_t* p) { return as<F>(load_16(p) << 16); }
inline F load_half_some(const std::uint16_t* p, index_t n) {
  std::uint16_t x[width] = {};
  for (index_t i = 0; i < n; ++i) x[i] = p[i];
  return load_half(x);
}
inline F load_bfloat16_some(const std::uint16_t* p, index_t n) {
  std::uint16_t x[width] = {};
  for (index_t i = 0; i < n; ++i) x[i] = p[i];
  return load_bfloat16(x);
}
inline void store_half(std::uint16_t* p, F v) {
  for (index_t i = 0; i < width; ++i) p[i] = kvcondense::detail::half_bits(v[i]);
}
inline void store_bfloat16(std::uint16_t* p, F v) {
  for (index_t i = 0; i < width; ++i) p[i] = kvcondense::detail::bfloat16_bits(v[i]);
}

using D __attribute__((vector_size(16))) = double;
inline constexpr index_t wide = 2;
inline D set_wide(double x) { return D{x, x}; }
inline D load_wide(const float* p) { return D{static_cast<double>(p[0]), static_cast<double>(p[1])}; }

inline void sum4(F a, F b, F c, F d, float* out) {
  const F ab = __builtin_shufflevector(a, b, 0, 4, 1, 5) + __builtin_shufflevector(a, b, 2, 6, 3, 7);
  const F cd = __builtin_shufflevector(c, d, 0, 4, 1, 5) + __builtin_shufflevector(c, d, 2, 6, 3, 7);
  store_float(out, __builtin_shufflevector(ab, cd, 0, 1, 4, 5) + __builtin_shufflevector(ab, cd, 2, 3, 6, 7));
}

inline float largest_lane(F v) {
  float lane[width];
  store_float(lane, v);
  return *std::max_element(lane, lane + width);
}

inline void prefetch(const std::byte* p) { __builtin_prefetch(p, 0, 2); }

/// exp(x) for x <= 0 or NaN.
inline F exp_of_negative(F x) {
  const auto seen = !(x < set(-86.6f));
  const F a = x < set(-86.6f) ? set(-86.6f) : x;
  const F shifted = a * set(1.44269504f) + set(0x1.8p23f);  // the nearest integer in the low bits
  const F n = shifted - set(0x1.8p23f);
  const F f = (a - n * set(0x1.63p-1f)) - n * set(-2.12194440e-4f);
  F p = set(1.9875691500e-4f);
  p = p * f + set(1.3981999507e-3f);
  p = p * f + set(8.3334519073e-3f);
  p = p * f + set(4.1665795894e-2f);
  p = p * f + set(1.6666665459e-1f);
  p = p * f + set(5.0000001201e-1f);
  p = p * (f * f) + f + set(1.0f);
  const U power = (as<U>(shifted) - 0x4b400000u + 127u) << 23;
  return as<F>(as<U>(p * as<F>(power)) & as<U>(seen));
}

#include <kvcondense/backend/cpu/simd/row_ops.inl>

#include <kvcondense/backend/cpu/simd/number_ops.inl>

#include <kvcondense/backend/cpu/simd/coding_ops.inl>

template <int Bits, int R>
void code_pair(const CodeRun& run, index_t at, int field, const FoldedRows& folded, int plane, index_t r, std::int32_t (&sum)[R][32]) {
  constexpr std::uint32_t mask = (1u << Bits) - 1u;
  for (int k = 0; k < R; ++k) std::memset(sum[k], 0, sizeof sum[k]);
  for (index_t s = 0; s < run.steps; ++s)
    for (index_t half = 0; half < 2; ++half) {
      std::uint32_t word[16];
      std::memcpy(word, run.first + at + s * run.step + (Bits == 8 ? half * run.second : 0), sizeof word);
      const auto shift = static_cast<unsigned>(Bits == 8 ? 0 : (field + static_cast<int>(half)) * Bits);
      for (int k = 0; k < R; ++k) {
        const std::int8_t* by = &folded.plane[r + k][plane][4 * s];
        for (index_t i = 0; i < 16; ++i) {
          const std::uint32_t w = word[i] >> shift;
          sum[k][16 * half + i] += by[0] * static_cast<std::int32_t>(w & mask) + by[1] * static_cast<std::int32_t>((w >> 8) & mask) +
                                   by[2] * static_cast<std::int32_t>((w >> 16) & mask) + by[3] * static_cast<std::int32_t>((w >> 24) & mask);
        }
      }
    }
}

#include <kvcondense/backend/cpu/simd/code_ops.inl>

}  // namespace kvcondense::prim::cpu::portable
