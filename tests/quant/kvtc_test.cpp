#include <cmath>
#include <vector>

#include <catch2/catch.hpp>

#include <kvcondense/core/random.hpp>
#include <kvcondense/quant/blocks/kvtc_codes.hpp>
#include <kvcondense/quant/kvtc.hpp>
#include <support/fill.hpp>

using namespace kvcondense;
using quant::Kvtc;
using quant::KvtcScale;
using quant::KvtcType;

namespace {

constexpr KvtcType coded[] = {KvtcType::int2, KvtcType::int4, KvtcType::int8, KvtcType::fp8};

/// Mean square error of numbers as they come back.
double error_of(KvtcType type, const std::vector<float>& x) {
  const KvtcScale s = quant::fit_kvtc_scale(type, x);
  double sum = 0;
  for (const float v : x) sum += std::pow(static_cast<double>(v - s.value(type, s.symbol(type, v))), 2);
  return sum / static_cast<double>(x.size());
}

}  // namespace

TEST_CASE("kvtc: what types leave of normal numbers is what the allocation reckons with", "[quant][kvtc]") {
  std::vector<float> x(65536);
  test::fill_normal(x.data(), x.size(), 7);
  const Kvtc method;
  for (const KvtcType t : coded) {
    CAPTURE(static_cast<int>(t));
    REQUIRE(error_of(t, x) == Approx(method.error[static_cast<std::size_t>(t)]).epsilon(t == KvtcType::int8 ? 0.2 : 0.05));
  }
  // It scales with the numbers, and an offset costs no more than the shift's 16 bits.
  for (float& v : x) v = v * 3.0f + 10.0f;
  for (const KvtcType t : coded) REQUIRE(error_of(t, x) / 9.0 == Approx(method.error[static_cast<std::size_t>(t)]).epsilon(t == KvtcType::int8 ? 0.2 : 0.06));
}

TEST_CASE("kvtc: codes are made with scale and shift as 16 bits hold them", "[quant][kvtc]") {
  std::vector<float> x(1000);
  test::fill_normal(x.data(), x.size(), 3);
  for (float& v : x) v = 100.0f + v;  // shifts near 100 are 1/16 apart
  for (const KvtcType t : coded) {
    const KvtcScale s = quant::fit_kvtc_scale(t, x);
    REQUIRE(static_cast<float>(half(s.scale)) == s.scale);
    REQUIRE(static_cast<float>(half(s.shift)) == s.shift);
    for (const float v : x) {
      const int symbol = s.symbol(t, v);
      REQUIRE(symbol < quant::symbols_of(t));
      REQUIRE(quant::kvtc_symbol_counts(t, symbol));
      // No other symbol is nearer.
      const float own = std::fabs(v - s.value(t, symbol));
      for (const int other : {symbol - 1, symbol + 1})
        if (other >= 0 && other < quant::symbols_of(t) && quant::kvtc_symbol_counts(t, other))
          REQUIRE(own <= std::fabs(v - s.value(t, other)) + 1e-4f);
    }
  }
}

TEST_CASE("kvtc: equal numbers, one number, none, and very large ones", "[quant][kvtc]") {
  for (const KvtcType t : coded) {
    REQUIRE(error_of(t, std::vector<float>(50, 1.5f)) == 0.0);
    REQUIRE(error_of(t, {-0.25f}) == 0.0);
    REQUIRE(quant::fit_kvtc_scale(t, {}).scale == 0.0f);
    const std::vector<float> wide{-65504.0f, 65504.0f, 0.0f, 1.0f};
    const KvtcScale s = quant::fit_kvtc_scale(t, wide);
    for (const float v : wide) REQUIRE(std::isfinite(s.value(t, s.symbol(t, v))));
    for (int c = 0; c < quant::symbols_of(t); ++c) REQUIRE(std::isfinite(s.value(t, c)) == quant::kvtc_symbol_counts(t, c));
  }
}

TEST_CASE("kvtc: fields out of range are refused", "[quant][kvtc]") {
  for (int n = 1; n <= Kvtc::levels; ++n) REQUIRE(Kvtc::level(n).validate() == Status::ok);
  const auto refused = [](auto&& change) {
    Kvtc k;
    change(k);
    return k.validate() == Status::invalid_argument;
  };
  REQUIRE(!refused([](Kvtc& k) { k.key_bits = 0.0f; }));
  REQUIRE(!refused([](Kvtc& k) { k.error[4] = HUGE_VAL; }));
  REQUIRE(refused([](Kvtc& k) { k.key_bits = -0.1f; }));
  REQUIRE(refused([](Kvtc& k) { k.value_bits = 8.5f; }));
  REQUIRE(refused([](Kvtc& k) { k.value_bits = std::nanf(""); }));
  REQUIRE(refused([](Kvtc& k) { k.blocks = {0, 0, 0, 0, 0}; }));
  REQUIRE(refused([](Kvtc& k) { k.blocks[2] = -1; }));
  REQUIRE(refused([](Kvtc& k) { k.blocks[4] = 65536; }));
  REQUIRE(refused([](Kvtc& k) { k.error[1] = -1.0; }));
  REQUIRE(refused([](Kvtc& k) { k.error[2] = std::nan(""); }));
  REQUIRE(refused([](Kvtc& k) { k.error[0] = HUGE_VAL; }));
  REQUIRE(refused([](Kvtc& k) { k.sub_chunk = 0; }));
  REQUIRE(refused([](Kvtc& k) { k.sub_chunk = 1025; }));
  REQUIRE(refused([](Kvtc& k) { k.chunk = 0; }));
  REQUIRE(refused([](Kvtc& k) { k.rank = -1; }));
  REQUIRE(refused([](Kvtc& k) { k.sinks = -1; }));
  REQUIRE(refused([](Kvtc& k) { k.window = -1; }));
}
