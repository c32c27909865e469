#pragma once
// Floating point as the device rounds it: formats of 16 bits, directed rounding, canonical NaN.

#include <bit>
#include <cmath>
#include <limits>

#include "types.hpp"

namespace ptx {

/// A binary format: bits of the exponent and of the stored significand.
struct Format {
  u32 exponent_bits, fraction_bits;
  i32 bias() const { return (1 << (exponent_bits - 1)) - 1; }
  u64 infinity() const { return ((u64{1} << exponent_bits) - 1) << fraction_bits; }
  u64 sign() const { return u64{1} << (exponent_bits + fraction_bits); }
};
inline constexpr Format f16_format{5, 10}, bf16_format{8, 7}, f32_format{8, 23}, f64_format{11, 52};

/// significand * 2^exponent (and, if sticky, something smaller added) rounded to a format.
u64 round_to(Format, bool negative, u128 significand, i32 exponent, Rounding, bool sticky = false);
/// A double rounded to a narrower format; NaN becomes the canonical one.
u64 narrow(Format, double, Rounding);

// ---- f32, f64 ----

inline float canonical(float x) { return x != x ? std::bit_cast<float>(0x7fffffffU) : x; }
inline double canonical(double x) {
  return x != x ? std::bit_cast<double>(0x7fffffffffffffffULL) : x;
}
inline float flush(float x) {
  return std::fabs(x) < std::numeric_limits<float>::min() ? std::copysign(0.0F, x) : x;
}
/// Into [0, 1], NaN to 0.
template <class T>
T saturated(T x) {
  return x > T(0) ? (x < T(1) ? x : T(1)) : T(0);
}

// ---- f16, bf16 ----

inline float widen_f16(u16 h) {
  u32 const magnitude = h & 0x7fffU;
  // A multiplication moves the exponent, and makes subnormals normal.
  u32 const x = std::bit_cast<u32>(std::bit_cast<float>(magnitude << 13) * 0x1p112F);
  u32 const special = magnitude >= 0x7c00U ? 0x7f800000U | (magnitude & 0x3ffU) << 13 : x;
  return std::bit_cast<float>(special | (h & 0x8000U) << 16);
}
inline float widen_bf16(u16 h) { return std::bit_cast<float>(u32{h} << 16); }

/// Nearest even, NaN canonical.
inline u16 narrow_f16(float f) {
  u32 const bits = std::bit_cast<u32>(f), sign = bits >> 16 & 0x8000U, magnitude = bits & 0x7fffffffU;
  // Subnormal results: adding 0.5 leaves the rounded fraction in the lowest bits.
  u32 const tiny = std::bit_cast<u32>(std::bit_cast<float>(magnitude) + 0.5F) - 0x3f000000U;
  u32 const normal = (magnitude - 0x38000000U + 0xfffU + (magnitude >> 13 & 1)) >> 13;
  u32 const finite = magnitude < 0x38800000U ? tiny : normal < 0x7c00U ? normal : 0x7c00U;
  u32 const rounded = magnitude < 0x47800000U ? finite : 0x7c00U;
  return static_cast<u16>(magnitude > 0x7f800000U ? 0x7fffU : rounded | sign);
}
inline u16 narrow_bf16(float f) {
  u32 const bits = std::bit_cast<u32>(f);
  if ((bits & 0x7fffffffU) > 0x7f800000U) return 0x7fff;
  return static_cast<u16>((bits + 0x7fffU + (bits >> 16 & 1)) >> 16);
}

/// A double as a float whose last bit is odd where it is inexact: rounding that once more to a
/// format of at most 22 bits is as rounding the double, for normal floats.
inline float odd_float(double x) {
  u64 const bits = std::bit_cast<u64>(x), rest = bits & 0x1fffffffU;
  double const odd = std::bit_cast<double>((bits ^ rest) | (rest ? 0x20000000U : 0U));
  return static_cast<float>(std::fabs(x) < std::numeric_limits<double>::infinity() ? odd : x);
}
inline u16 round_f16(double x) { return narrow_f16(odd_float(x)); }
inline u16 round_bf16(double x) {
  if (std::fabs(x) < 0x1p-126) return static_cast<u16>(narrow(bf16_format, x, Rounding::nearest));
  return narrow_bf16(odd_float(x));
}

/// a * b + c, rounded to odd, for factors whose product a double holds.
inline double odd_fma(double a, double b, double c) {
  double const p = a * b, s = p + c;
  double const t = s - p;
  double const lost = (p - (s - t)) + (c - t);  // what s lacks, exactly
  if (!(lost != 0) || !std::isfinite(s)) return s;
  u64 bits = std::bit_cast<u64>(s);
  if (bits & 1) return s;
  bool const outward = (lost > 0) == (s > 0);
  return std::bit_cast<double>(outward ? bits + 1 : bits - 1);
}

}  // namespace ptx
