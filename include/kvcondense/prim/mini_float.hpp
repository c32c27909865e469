#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

#include <kvcondense/core/config.hpp>
#include <kvcondense/prim/group_quant.hpp>

// Floating point numbers of four to eight bits, and scales that are a power of two: pure functions
// for host and device. Rounding is by integers, so that every backend produces the same codes.

namespace kvcondense::prim {

/// A sign, `exponent_bits`, `mantissa_bits`. Codes above `top` (sign aside) are infinite or NaN.
struct MiniFloat {
  int exponent_bits;
  int mantissa_bits;
  int bias;
  int top;  ///< code of the largest finite number

  KVCONDENSE_HD constexpr int bits() const { return 1 + exponent_bits + mantissa_bits; }
  /// floor(log2(largest number))
  KVCONDENSE_HD constexpr int top_exponent() const { return (top >> mantissa_bits) - bias; }
  friend bool operator==(const MiniFloat&, const MiniFloat&) = default;
};

inline constexpr MiniFloat float_e2m1{2, 1, 1, 0x07};    ///< 0 .5 1 1.5 2 3 4 6
inline constexpr MiniFloat float_e2m3{2, 3, 1, 0x1f};    ///< up to 7.5
inline constexpr MiniFloat float_e3m2{3, 2, 3, 0x1f};    ///< up to 28
inline constexpr MiniFloat float_e4m3{4, 3, 7, 0x7e};    ///< up to 448; 0x7f is NaN, there is no infinity
inline constexpr MiniFloat float_e5m2{5, 2, 15, 0x7b};   ///< up to 57344; 0x7c is infinite, above it NaN

/// 2^n as a float, -149 <= n <= 127.
KVCONDENSE_HD constexpr float power_of_two(int n) {
  return detail::bit_cast<float>(n >= -126 ? static_cast<std::uint32_t>(n + 127) << 23
                                        : std::uint32_t{1} << (n + 149));
}

/// The number a code stands for.
KVCONDENSE_HD constexpr float mini_float_value(MiniFloat f, std::uint32_t code) {
  const std::uint32_t size = code & ((1u << (f.bits() - 1)) - 1u);
  const int exponent = static_cast<int>(size >> f.mantissa_bits);
  const int mantissa = static_cast<int>(size & ((1u << f.mantissa_bits) - 1u));
  float v = 0.0f;
  if (static_cast<int>(size) > f.top)
    v = detail::bit_cast<float>(f.exponent_bits == 5 && mantissa == 0 ? 0x7f800000u : 0x7fc00000u);  // e5m2 alone has an infinity
  else if (exponent == 0)
    v = static_cast<float>(mantissa) * power_of_two(1 - f.bias - f.mantissa_bits);
  else
    v = static_cast<float>((1 << f.mantissa_bits) + mantissa) * power_of_two(exponent - f.bias - f.mantissa_bits);
  return size == code ? v : -v;
}

/// The same of a format that is a constant: device code may name objects of a class only where compilers evaluate them.
template <MiniFloat F>
KVCONDENSE_HD constexpr float mini_float_value(std::uint32_t code) {
  constexpr MiniFloat f = F;
  return mini_float_value(f, code);
}

/// The largest finite number.
KVCONDENSE_HD constexpr float largest(MiniFloat f) { return mini_float_value(f, static_cast<std::uint32_t>(f.top)); }

/// The code next to `y`, which is not NaN; beyond the largest number, that one. The sign of zero stays.
template <MiniFloat F, Rounding Rule>
KVCONDENSE_HD constexpr std::uint32_t mini_float_code(float y) {
  constexpr int lowest = 128 - F.bias;  // exponent field of the smallest normal number
  constexpr float top = largest(F);
  const std::uint32_t sign = detail::bit_cast<std::uint32_t>(y) >> 31;
  const float size = limit_to(detail::bit_cast<float>(detail::bit_cast<std::uint32_t>(y) & 0x7fffffffu), top);
  const int field = static_cast<int>(detail::bit_cast<std::uint32_t>(size) >> 23);
  const int exponent = field > lowest ? field : lowest;
  // In units of the last place of its binade a number is at most 2^(mantissa_bits + 1): the product is
  // exact, and a carry into the next binade is the next code.
  const float units = size * detail::bit_cast<float>(static_cast<std::uint32_t>(254 + F.mantissa_bits - exponent) << 23);
  const int code = ((exponent - lowest) << F.mantissa_bits) + round_code(Rule, units);
  return static_cast<std::uint32_t>(code) | (sign << (F.bits() - 1));
}

/// All numbers of a format, by code.
template <MiniFloat F>
inline constexpr auto mini_float_values = [] {
  std::array<float, std::size_t{1} << F.bits()> all{};
  for (std::uint32_t c = 0; c < all.size(); ++c) all[c] = mini_float_value(F, c);
  return all;
}();

/// An E8M0 scale: 2^(code - 127); 255 is NaN.
KVCONDENSE_HD constexpr float e8m0_value(std::uint32_t code) {
  return code == 255 ? detail::bit_cast<float>(0x7fc00000u) : power_of_two(static_cast<int>(code) - 127);
}

/// The E8M0 code of floor(log2(amax)) - top_exponent, or 0 where that is below 2^-127.
KVCONDENSE_HD constexpr std::uint32_t e8m0_floor(float amax, int top_exponent) {
  const int code = static_cast<int>(detail::bit_cast<std::uint32_t>(amax) >> 23) - top_exponent;
  return static_cast<std::uint32_t>(code > 0 ? code : 0);
}

}  // namespace kvcondense::prim
