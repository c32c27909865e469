#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <string>

#include <catch2/catch.hpp>

#include <kvcondense/core/dtype.hpp>

using namespace kvcondense;

namespace {

/// The value of a half by its definition.
double half_by_definition(std::uint32_t h) {
  const double sign = h & 0x8000u ? -1.0 : 1.0;
  const int exponent = static_cast<int>(h >> 10 & 31u), mantissa = static_cast<int>(h & 1023u);
  if (exponent == 31) return mantissa == 0 ? sign * INFINITY : NAN;
  return exponent == 0 ? sign * std::ldexp(mantissa, -24) : sign * std::ldexp(1024 + mantissa, exponent - 25);
}

}  // namespace

TEST_CASE("half: all 65,536 values mean what the standard says and survive a round trip", "[core][half]") {
  for (std::uint32_t h = 0; h < 65536; ++h) {
    const float got = detail::half_value(static_cast<std::uint16_t>(h));
    const double want = half_by_definition(h);
    if (std::isnan(want)) {
      REQUIRE(std::isnan(got));
      REQUIRE(std::isnan(detail::half_value(detail::half_bits(got))));
      continue;
    }
    REQUIRE(static_cast<double>(got) == want);
    REQUIRE(detail::half_bits(got) == h);
  }
}

TEST_CASE("half: numbers between two halves go to the nearer, ties to the even one", "[core][half]") {
  for (std::uint32_t h = 0; h < 0x7bff; ++h) {
    const float a = detail::half_value(static_cast<std::uint16_t>(h)), b = detail::half_value(static_cast<std::uint16_t>(h + 1));
    const float middle = (a + b) / 2;  // exact in float
    REQUIRE(detail::half_bits(middle) == (h % 2 == 0 ? h : h + 1));
    REQUIRE(detail::half_bits(std::nextafter(middle, 0.0f)) == h);
    REQUIRE(detail::half_bits(std::nextafter(middle, INFINITY)) == h + 1);
    REQUIRE(detail::half_bits(-middle) == ((h % 2 == 0 ? h : h + 1) | 0x8000u));
  }
  REQUIRE(detail::half_bits(65519.996f) == 0x7bff);
  REQUIRE(detail::half_bits(65520.0f) == 0x7c00);
}

TEST_CASE("bfloat16: every value survives, rounding is to nearest even, NaN stays NaN", "[core][bfloat16]") {
  for (std::uint32_t b = 0; b < 65536; ++b) {
    const float x = detail::bfloat16_value(static_cast<std::uint16_t>(b));
    if (std::isnan(x)) REQUIRE(std::isnan(detail::bfloat16_value(detail::bfloat16_bits(x))));
    else REQUIRE(detail::bfloat16_bits(x) == b);
  }
  for (std::uint32_t b = 0; b < 0x7f7f; ++b) {
    const float middle = std::bit_cast<float>(b << 16 | 0x8000u);
    REQUIRE(detail::bfloat16_bits(middle) == (b % 2 == 0 ? b : b + 1));
    REQUIRE(detail::bfloat16_bits(std::nextafter(middle, 0.0f)) == b);
  }
}

TEST_CASE("types: sizes and names", "[core][half]") {
  REQUIRE((size_of(DType::f32) == 4 && size_of(DType::f16) == 2 && size_of(DType::bf16) == 2));
  REQUIRE(std::string(to_string(DType::f32)) == "f32");
  REQUIRE(std::string(to_string(DType::f16)) == "f16");
  REQUIRE(std::string(to_string(DType::bf16)) == "bf16");
  REQUIRE(static_cast<float>(bfloat16(1.0078125f)) == 1.0078125f);
}

TEST_CASE("types: views of keys and values of one of three types enter a cache, and no others", "[core]") {
  REQUIRE((StoredNumbers<float, const float> && StoredNumbers<const half, half> && StoredNumbers<const bfloat16, const bfloat16>));
  REQUIRE_FALSE(StoredNumbers<float, half>);
  REQUIRE_FALSE(StoredNumbers<bfloat16, half>);
  REQUIRE_FALSE(StoredNumbers<double, double>);
  REQUIRE_FALSE(StoredNumbers<std::uint16_t, std::uint16_t>);
}
