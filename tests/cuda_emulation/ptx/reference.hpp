#pragma once
// Rounding by search, for tests: no shifting of bits as in the interpreter. A format's numbers
// are listed in order, and the neighbours of a value compared with it.

#include <cmath>

#include "types.hpp"

namespace ptx::test {

struct RealFormat {
  u32 exponent_bits, fraction_bits;
  u64 infinity() const { return ((u64{1} << exponent_bits) - 1) << fraction_bits; }
  u64 sign() const { return u64{1} << (exponent_bits + fraction_bits); }
  u64 nan() const { return sign() - 1; }
  bool is_nan(u64 x) const { return (x & (sign() - 1)) > infinity(); }

  /// The value of a magnitude, as the definition says it.
  long double magnitude(u64 x) const {
    i64 const bias = (i64{1} << (exponent_bits - 1)) - 1;
    i64 const exponent = static_cast<i64>(x >> fraction_bits);
    long double const fraction = static_cast<long double>(x & ((u64{1} << fraction_bits) - 1));
    long double const one = std::ldexp(1.0L, static_cast<int>(fraction_bits));
    int const scale = static_cast<int>((exponent ? exponent : 1) - bias - static_cast<i64>(fraction_bits));
    return std::ldexp(exponent ? one + fraction : fraction, scale);
  }
  long double value(u64 x) const {
    if (is_nan(x)) return std::nanl("");
    long double const m = (x & (sign() - 1)) == infinity() ? INFINITY : magnitude(x & (sign() - 1));
    return x & sign() ? -m : m;
  }
  /// mode: n z m p. `negative` tells the sign of a zero. `beyond`: the true value's magnitude is
  /// more (+1) or less (-1) than |x|, by less than x can show.
  u64 round(long double x, char mode, bool negative, int beyond = 0) const {
    if (std::isnan(x)) return nan();
    u64 const with = negative ? sign() : 0;
    long double const m = std::fabs(x);
    if (std::isinf(x)) return infinity() | with;
    u64 low = 0, high = infinity();  // the largest number not above m
    while (high - low > 1) {
      u64 const middle = (low + high) / 2;
      (magnitude(middle) <= m ? low : high) = middle;
    }
    if (magnitude(low) == m && beyond < 0 && low > 0) --low;
    bool const exact = magnitude(low) == m && beyond == 0;
    // Infinity counts as one step beyond the largest number.
    long double const step = magnitude(low) - (low ? magnitude(low - 1) : -magnitude(1));
    long double const next = low + 1 == infinity() ? magnitude(low) + step : magnitude(low + 1);
    bool up = false;
    if (!exact) {
      long double const half = (magnitude(low) + next) / 2;
      if (mode == 'n') up = m > half || (m == half && (beyond > 0 || (beyond == 0 && low % 2 == 1)));
      if (mode == 'p') up = !negative;
      if (mode == 'm') up = negative;
    }
    return (low + up) | with;
  }
};

inline constexpr RealFormat ref_f16{5, 10}, ref_bf16{8, 7}, ref_f32{8, 23}, ref_f64{11, 52};

}  // namespace ptx::test
