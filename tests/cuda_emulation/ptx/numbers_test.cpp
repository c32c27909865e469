// The interpreter's rounding against rounding by search.

#include "instruction.hpp"
#include "numbers.hpp"
#include "reference.hpp"

using namespace ptx;
using namespace ptx::test;

TEST_CASE("ptx: every f16 and bf16 has its value") {
  for (u32 h = 0; h < 65536; ++h) {
    auto const x = static_cast<u16>(h);
    float const f = widen_f16(x), b = widen_bf16(x);
    if (ref_f16.is_nan(h))
      CHECK(std::isnan(f));
    else if (static_cast<long double>(f) != ref_f16.value(h))
      FAIL("f16 " << h);
    if (!ref_bf16.is_nan(h) && static_cast<long double>(b) != ref_bf16.value(h)) FAIL("bf16 " << h);
  }
}

TEST_CASE("ptx: narrowing rounds once, in every direction") {
  Numbers numbers(31);
  char const modes[] = {'n', 'z', 'm', 'p'};
  for (int i = 0; i < 40000; ++i) {
    u64 const bits = i % 2 ? numbers.f64() : 0;
    float const f = std::bit_cast<float>(static_cast<u32>(numbers.f32()));
    double const x = i % 2 ? std::bit_cast<double>(bits) : static_cast<double>(f);
    auto const mode = static_cast<Rounding>(i / 2 % 4);
    bool const negative = std::signbit(x);
    for (auto const& [ours, theirs] : {std::pair{f16_format, ref_f16}, std::pair{bf16_format, ref_bf16},
                                       std::pair{f32_format, ref_f32}}) {
      u64 const want = theirs.round(static_cast<long double>(x), modes[i / 2 % 4], negative);
      if (narrow(ours, x, mode) != want) FAIL(x << " in mode " << modes[i / 2 % 4]);
    }
    if (round_f16(x) != ref_f16.round(static_cast<long double>(x), 'n', negative)) FAIL("f16 of " << x);
    if (round_bf16(x) != ref_bf16.round(static_cast<long double>(x), 'n', negative)) FAIL("bf16 of " << x);
    if (narrow_f16(f) != ref_f16.round(static_cast<long double>(f), 'n', std::signbit(f))) FAIL("f16 of " << f);
    if (narrow_bf16(f) != ref_bf16.round(static_cast<long double>(f), 'n', std::signbit(f))) FAIL("bf16 of " << f);
  }
  SUCCEED();
}

TEST_CASE("ptx: halfway cases of f16 go to even, and what is a hair beyond does not") {
  for (u32 h = 0; h < 0x7bff; ++h) {
    double const low = static_cast<double>(widen_f16(static_cast<u16>(h)));
    double const high = static_cast<double>(widen_f16(static_cast<u16>(h + 1)));
    double const half = (low + high) / 2;
    u16 const even = static_cast<u16>(h % 2 ? h + 1 : h);
    if (round_f16(half) != even || narrow_f16(static_cast<float>(half)) != even) FAIL(h);
    if (round_f16(std::nextafter(half, 1e9)) != h + 1 || round_f16(std::nextafter(half, 0)) != h) FAIL(h);
  }
  SUCCEED();
}
