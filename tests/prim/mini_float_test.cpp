#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include <catch2/catch.hpp>

#include <kvcondense/prim/mini_float.hpp>

#include <support/fill.hpp>

// Mini floats against the definition of a floating point format, in double, code by code.

using namespace kvcondense;
using namespace kvcondense::prim;

namespace {

/// The definition: (-1)^s * 2^(max(e, 1) - bias) * (e > 0 ? 1 + m : m).
double defined(MiniFloat f, std::uint32_t code) {
  const std::uint32_t m = code & ((1u << f.mantissa_bits) - 1), e = (code >> f.mantissa_bits) & ((1u << f.exponent_bits) - 1);
  const double fraction = std::ldexp(static_cast<double>(m), -f.mantissa_bits) + (e > 0 ? 1.0 : 0.0);
  const double size = std::ldexp(fraction, static_cast<int>(e > 0 ? e : 1) - f.bias);
  return (code >> (f.bits() - 1)) != 0 ? -size : size;
}

/// The code whose number is nearest, by search; ties by rule.
std::uint32_t nearest(MiniFloat f, Rounding rule, double y) {
  std::uint32_t best = 0;
  double least = std::numeric_limits<double>::infinity();
  for (std::uint32_t c = 0; c <= static_cast<std::uint32_t>(f.top); ++c) {
    const double far = std::abs(std::abs(y) - defined(f, c));
    const bool tie = far == least && (rule == Rounding::half_away || c % 2 == 0);
    if (far < least || tie) best = c, least = far;
  }
  return best | (std::signbit(y) ? 1u << (f.bits() - 1) : 0u);
}

template <MiniFloat F, Rounding Rule>
void require_nearest() {
  std::vector<float> tried;
  const auto around = [&](double x) {
    const auto v = static_cast<float>(x);
    for (const float y : {std::nextafter(v, -1e9f), v, std::nextafter(v, 1e9f)}) tried.push_back(y), tried.push_back(-y);
  };
  for (std::uint32_t c = 0; c <= static_cast<std::uint32_t>(F.top); ++c) {
    around(defined(F, c));
    around((defined(F, c) + defined(F, c + 1)) / 2);  // halfway, beyond the top too
  }
  std::vector<float> random(4096);
  test::fill_normal(random.data(), random.size(), 3);
  for (std::size_t i = 0; i < random.size(); ++i) tried.push_back(random[i] * std::ldexp(1.0f, static_cast<int>(i % 40) - 20));
  for (const float y : {1e-45f, 1e-38f, 3e38f, std::numeric_limits<float>::infinity()}) tried.push_back(y), tried.push_back(-y);
  std::size_t wrong = 0;
  for (const float y : tried) {
    const double limited = std::clamp(static_cast<double>(y), -defined(F, static_cast<std::uint32_t>(F.top)),
                                      defined(F, static_cast<std::uint32_t>(F.top)));
    wrong += mini_float_code<F, Rule>(y) != nearest(F, Rule, std::copysign(limited, y)) ? 1u : 0u;
  }
  REQUIRE(wrong == 0);
}

template <MiniFloat F>
void require_all_codes() {
  std::size_t wrong = 0;
  for (std::uint32_t c = 0; c < (1u << F.bits()); ++c) {
    const float v = mini_float_values<F>[c];
    const bool finite = static_cast<int>(c & ((1u << (F.bits() - 1)) - 1)) <= F.top;
    wrong += std::isfinite(v) != finite ? 1u : 0u;
    if (!finite) continue;
    wrong += static_cast<double>(v) != defined(F, c) || std::signbit(v) != std::signbit(defined(F, c)) ? 1u : 0u;
    wrong += mini_float_code<F, Rounding::half_even>(v) != c || mini_float_code<F, Rounding::half_away>(v) != c ? 1u : 0u;
  }
  REQUIRE(wrong == 0);
  require_nearest<F, Rounding::half_even>();
  require_nearest<F, Rounding::half_away>();
}

}  // namespace

TEST_CASE("mini_float: every code of every format is its number, and every number its nearest code", "[prim][mini_float]") {
  require_all_codes<float_e2m1>();
  require_all_codes<float_e2m3>();
  require_all_codes<float_e3m2>();
  require_all_codes<float_e4m3>();
  require_all_codes<float_e5m2>();
}

TEST_CASE("mini_float: the formats reach as far as their standards say", "[prim][mini_float]") {
  static_assert(largest(float_e2m1) == 6.0f && float_e2m1.top_exponent() == 2);
  static_assert(largest(float_e2m3) == 7.5f && float_e2m3.top_exponent() == 2);
  static_assert(largest(float_e3m2) == 28.0f && float_e3m2.top_exponent() == 4);
  static_assert(largest(float_e4m3) == 448.0f && float_e4m3.top_exponent() == 8);
  static_assert(largest(float_e5m2) == 57344.0f && float_e5m2.top_exponent() == 15);
  REQUIRE(std::isinf(mini_float_value(float_e5m2, 0x7c)));
  REQUIRE(std::isnan(mini_float_value(float_e5m2, 0x7d)));
  REQUIRE(std::isnan(mini_float_value(float_e4m3, 0xff)));
}

TEST_CASE("mini_float: every E8M0 code is its power of two", "[prim][mini_float]") {
  std::size_t wrong = 0;
  for (std::uint32_t c = 0; c < 255; ++c) wrong += e8m0_value(c) != std::ldexp(1.0f, static_cast<int>(c) - 127) ? 1u : 0u;
  REQUIRE(wrong == 0);
  REQUIRE(std::isnan(e8m0_value(255)));
  for (const int top : {0, 2, 8, 15})
    for (int e = -149; e <= 126; ++e)
      for (const float x : {std::ldexp(1.0f, e), std::nextafter(std::ldexp(1.0f, e + 1), 0.0f)}) {
        const int want = std::max(0, std::ilogb(x) - top + 127);
        wrong += static_cast<int>(e8m0_floor(x, top)) != want ? 1u : 0u;
      }
  REQUIRE(wrong == 0);
  REQUIRE(e8m0_floor(0.0f, 2) == 0);
}

TEST_CASE("mini float: where sign, exponent and mantissa lie", "[prim][mini_float]") {
  REQUIRE((float_e2m1.bits() == 4 && float_e2m3.bits() == 6 && float_e3m2.bits() == 6 && float_e4m3.bits() == 8 && float_e5m2.bits() == 8));
  // -1.5: the sign, the bias as exponent, half of the mantissa.
  REQUIRE(mini_float_code<float_e2m1, Rounding::half_even>(-1.5f) == 0xbu);
  REQUIRE(mini_float_code<float_e2m3, Rounding::half_even>(-1.5f) == 0x2cu);
  REQUIRE(mini_float_code<float_e3m2, Rounding::half_even>(-1.5f) == 0x2eu);
  REQUIRE(mini_float_code<float_e4m3, Rounding::half_even>(-1.5f) == 0xbcu);
  REQUIRE(mini_float_code<float_e5m2, Rounding::half_even>(-1.5f) == 0xbeu);
  REQUIRE((largest(float_e2m1) == 6.0f && largest(float_e2m3) == 7.5f && largest(float_e3m2) == 28.0f && largest(float_e4m3) == 448.0f &&
           largest(float_e5m2) == 57344.0f));
  REQUIRE((float_e4m3.top_exponent() == 8 && float_e5m2.top_exponent() == 15));
}
