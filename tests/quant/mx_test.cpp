#include <cmath>
#include <vector>

#include <catch2/catch.hpp>

#include <kvcondense/quant/mx.hpp>

#include <quant/block_format.hpp>

using namespace kvcondense;
using quant::Mx;
using quant::MxFormat;
using quant::MxScaleRound;

namespace {

constexpr MxFormat formats[] = {MxFormat::fp4,      MxFormat::fp6_e2m3, MxFormat::fp6_e3m2,
                                MxFormat::fp8_e4m3, MxFormat::fp8_e5m2, MxFormat::int8};

std::vector<float> example() { return test::floats(test::load_oracle("quantization.json", "V2_mxfp4_ocp").at("x")); }

}  // namespace

TEST_CASE("mx: codes, bytes and numbers of fp4 are the worked example's", "[quant][mx][oracle]") {
  const auto o = test::load_oracle("quantization.json", "V2_mxfp4_ocp");
  const std::vector<float> x = example();
  test::BlockPage page(Mx{}.key_codec(), x, 32);
  REQUIRE(page.hex(0, 16) == o.at("bytes_low_nibble_first_adjacent").get<std::string>());
  REQUIRE(page.byte(16) == o.at("E8M0_code").get<int>());
  REQUIRE(page.decoded() == test::floats(o.at("dequant")));
  REQUIRE(test::mean_square(x, page.decoded()) == Approx(o.at("mse").get<double>()).epsilon(1e-5));
}

TEST_CASE("mx: bytes of fp8_e4m3 and int8 are the worked examples'", "[quant][mx][oracle]") {
  const auto fp8 = test::load_oracle("quantization.json", "V3_mxfp8_e4m3");
  test::BlockPage a(Mx{.format = MxFormat::fp8_e4m3}.key_codec(), example(), 32);
  REQUIRE(a.hex(0, 32) == fp8.at("bytes").get<std::string>());
  REQUIRE(a.byte(32) == fp8.at("E8M0_code").get<int>());
  REQUIRE(test::mean_square(example(), a.decoded()) == Approx(fp8.at("mse").get<double>()).epsilon(1e-5));
  const auto int8 = test::load_oracle("quantization.json", "V4_mxint8");
  test::BlockPage b(Mx{.format = MxFormat::int8}.key_codec(), example(), 32);
  REQUIRE(b.byte(32) == int8.at("E8M0_code").get<int>());
  for (index_t i = 0; i < 32; ++i) {
    const int code = int8.at("codes")[static_cast<std::size_t>(i)];
    REQUIRE(b.byte(i) == (code & 255));
    REQUIRE(static_cast<double>(b.decoded()[static_cast<std::size_t>(i)]) == std::ldexp(code / 64.0, b.byte(32) - 127));
  }
}

TEST_CASE("mx: numbers within reach err by half a step at most, others become the largest", "[quant][mx]") {
  const std::vector<float> x = test::hard_numbers(64 * 80, 4);
  for (const MxFormat format : formats)
    for (const MxScaleRound round : {MxScaleRound::floor, MxScaleRound::ceil}) {
      const prim::BlockCodes codec = Mx{.format = format, .scale_round = round}.key_codec();
      const bool integer = format == MxFormat::int8;
      const double top = static_cast<double>(prim::largest_of(codec.element));
      test::BlockPage page(codec, x, 80);
      const auto back = page.decoded();
      std::size_t wrong = 0, clipped = 0;
      for (std::size_t row = 0; row < x.size(); row += 80)
        for (std::size_t from = row; from < row + 80; from += 32) {
          const std::size_t end = std::min(from + 32, row + 80);  // the last block of a row is short
          double amax = 0.0;
          for (std::size_t i = from; i < end; ++i) amax = std::max(amax, std::abs(static_cast<double>(x[i])));
          double scale = std::ldexp(1.0, std::ilogb(amax) - prim::top_exponent_of(codec.element));
          if (round == MxScaleRound::ceil && amax / scale > top) scale *= 2.0;
          for (std::size_t i = from; i < end; ++i) {
            const double y = static_cast<double>(x[i]) / scale, z = static_cast<double>(back[i]) / scale;
            const double step = integer ? 1.0 / 64.0 : test::step_at(prim::mini_float_of(codec.element), y);
            clipped += std::abs(y) > top ? 1u : 0u;
            wrong += std::abs(y) > top ? z != std::copysign(top, y) : std::abs(y - z) > step / 2;
          }
        }
      CAPTURE(static_cast<int>(format), static_cast<int>(round));
      REQUIRE(wrong == 0);
      if (round == MxScaleRound::ceil) REQUIRE(clipped == 0);
      else if (!integer) REQUIRE(clipped > 0);
      REQUIRE(page.repaired == 0);
    }
}

TEST_CASE("mx: coding what was decoded changes no byte", "[quant][mx]") {
  const std::vector<float> x = test::hard_numbers(64 * 96, 5);
  for (const MxFormat format : formats) {
    test::BlockPage page(Mx{.format = format}.key_codec(), x, 96), again(page.codec, page.decoded(), 96);
    REQUIRE(page.decoded() == again.decoded());
  }
}

TEST_CASE("mx: a tie goes to the even code, or away from zero", "[quant][mx]") {
  const std::vector<float> x{6.0f, 0.25f, 0.75f, 1.25f, 1.75f, 2.5f, 3.5f, -5.0f};
  REQUIRE(test::BlockPage(Mx{}.key_codec(), x, 8).decoded() ==
          std::vector<float>{6.0f, 0.0f, 1.0f, 1.0f, 2.0f, 2.0f, 4.0f, -4.0f});
  REQUIRE(test::BlockPage(Mx{.rounding = prim::Rounding::half_away}.key_codec(), x, 8).decoded() ==
          std::vector<float>{6.0f, 0.5f, 1.0f, 1.5f, 2.0f, 3.0f, 4.0f, -6.0f});
}

TEST_CASE("mx: signal to noise of Gaussian numbers and bits are the published ones", "[quant][mx][oracle]") {
  const double db[] = {18.8, 30.9, 25.4, 30.6, 25.4, 41.7}, bits[] = {4.25, 6.25, 6.25, 8.25, 8.25, 8.25};
  for (std::size_t i = 0; i < 6; ++i) {
    CAPTURE(i);
    REQUIRE(test::gaussian_db(Mx{.format = formats[i]}.key_codec()) == Approx(db[i]).margin(0.1));
    REQUIRE(test::bits_per_number(Mx{.format = formats[i]}.key_codec()) == bits[i]);
  }
}

TEST_CASE("mx: keys and values may differ, and settings that fit nothing are refused", "[quant][mx]") {
  constexpr Mx both{.format = MxFormat::int8, .value_format = MxFormat::fp4};
  static_assert(both.key_codec().element == prim::BlockElement::int8 && both.value_codec().element == prim::BlockElement::e2m1);
  for (const index_t dim : {1, 80, 96, 112, 256}) REQUIRE(Mx{}.validate({.head_dim = dim}) == Status::ok);
  REQUIRE(Mx{.format = MxFormat::same}.validate({}) == Status::invalid_argument);
  REQUIRE(Mx{.rounding = prim::Rounding::half_up}.validate({}) == Status::invalid_argument);
  REQUIRE(Mx{.residual_window = -1}.validate({}) == Status::invalid_argument);
}
