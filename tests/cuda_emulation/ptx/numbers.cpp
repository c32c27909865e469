#include "numbers.hpp"

#include <algorithm>

namespace ptx {
namespace {

u32 width(u128 x) {
  u64 const high = static_cast<u64>(x >> 64);
  return high ? 128U - static_cast<u32>(std::countl_zero(high))
              : 64U - static_cast<u32>(std::countl_zero(static_cast<u64>(x)));
}

}  // namespace

u64 round_to(Format format, bool negative, u128 significand, i32 exponent, Rounding rounding,
             bool sticky) {
  u64 const sign = negative ? format.sign() : 0;
  if (significand == 0 && !sticky) return sign;
  // The place of the last bit kept: fraction_bits below the first, but not below the smallest
  // subnormal number.
  i32 const smallest = 1 - format.bias() - static_cast<i32>(format.fraction_bits);
  i32 const first = significand ? exponent + static_cast<i32>(width(significand)) - 1 : smallest - 1;
  i32 const last = std::max(first - static_cast<i32>(format.fraction_bits), smallest);
  i32 const drop = last - exponent;
  u128 kept = 0;
  bool half = false, rest = sticky;
  if (drop <= 0) {
    kept = significand << -drop;
  } else if (drop > 127) {
    rest |= significand != 0;
  } else {
    kept = significand >> drop;
    half = significand >> (drop - 1) & 1;
    rest |= (significand & ((u128{1} << (drop - 1)) - 1)) != 0;
  }
  bool const inexact = half || rest;
  bool const up = rounding == Rounding::nearest ? half && (rest || (kept & 1))
                  : rounding == Rounding::up    ? inexact && !negative
                  : rounding == Rounding::down  ? inexact && negative
                                                : false;
  u64 value = static_cast<u64>(kept) + up;
  // The first bit of a normal number counts into its exponent.
  value += static_cast<u64>(last - smallest) << format.fraction_bits;
  if (value >= format.infinity()) {
    bool const to_infinity = rounding == Rounding::nearest || rounding == (negative ? Rounding::down : Rounding::up);
    value = to_infinity ? format.infinity() : format.infinity() - 1;
  }
  return sign | value;
}

u64 narrow(Format format, double x, Rounding rounding) {
  u64 const bits = std::bit_cast<u64>(x);
  bool const negative = bits >> 63;
  if (x != x) return format.sign() - 1;
  if (std::isinf(x)) return format.infinity() | (negative ? format.sign() : 0);
  u64 const fraction = bits & ((u64{1} << 52) - 1);
  i32 const biased = static_cast<i32>(bits >> 52 & 0x7ff);
  return round_to(format, negative, biased ? fraction | u64{1} << 52 : fraction,
                  (biased ? biased : 1) - 1075, rounding);
}

}  // namespace ptx
