#include <cmath>
#include <limits>
#include <vector>

#include <catch2/catch.hpp>

#include <kvcondense/quant/fp8.hpp>

#include <quant/block_format.hpp>

using namespace kvcondense;
using quant::Fp8;
using quant::Fp8Format;
using quant::Fp8Scale;

TEST_CASE("fp8: codes and numbers are the worked example's", "[quant][fp8][oracle]") {
  const auto o = test::load_oracle("quantization.json", "V1_fp8");
  for (const Fp8Format format : {Fp8Format::e4m3, Fp8Format::e5m2})
    for (const auto& one : o.at(format == Fp8Format::e4m3 ? "e4m3fn" : "e5m2")) {
      const float x = one.at("x");
      test::BlockPage page(Fp8{.format = format, .scale = Fp8Scale::tensor}.key_codec(), {x}, 1);
      CAPTURE(x, static_cast<int>(format));
      REQUIRE(page.byte(0) == std::stoi(one.at("code").get<std::string>(), nullptr, 16));
      REQUIRE(page.decoded()[0] == one.at("value").get<float>());
      REQUIRE(page.repaired == (std::abs(x) > (format == Fp8Format::e4m3 ? 448.0f : 57344.0f) ? 1 : 0));
    }
}

TEST_CASE("fp8: an error is at most half a step, with every scale", "[quant][fp8]") {
  const std::vector<float> x = test::hard_numbers(64 * 80, 3);
  for (const Fp8Format format : {Fp8Format::e4m3, Fp8Format::e5m2})
    for (const Fp8Scale scale : {Fp8Scale::token, Fp8Scale::block})
      for (const bool power : {false, true}) {
        test::BlockPage page(Fp8{.format = format, .scale = scale, .block = 16, .power_of_two = power}.key_codec(), x, 80);
        REQUIRE(page.repaired == 0);
        const auto back = page.decoded();
        const prim::MiniFloat f = format == Fp8Format::e4m3 ? prim::float_e4m3 : prim::float_e5m2;
        const std::size_t block = scale == Fp8Scale::token ? 80 : 16;
        double worst = 0.0;
        bool powers = true;
        for (std::size_t from = 0; from < x.size(); from += block) {
          double amax = 1e-6;
          for (std::size_t i = from; i < from + block; ++i) amax = std::max(amax, std::abs(static_cast<double>(x[i])));
          double s = amax / static_cast<double>(prim::largest(f));
          if (power) s = std::exp2(std::ceil(std::log2(s)));
          for (std::size_t i = from; i < from + block; ++i) {
            const double y = static_cast<double>(x[i]) / s, z = static_cast<double>(back[i]) / s;
            worst = std::max(worst, std::abs(y - z) / test::step_at(f, y));
            powers = powers && (!power || z == static_cast<double>(static_cast<float>(z)));
          }
        }
        REQUIRE(worst <= 0.5 + 1e-4);  // half a step, and the rounding of scale and product
        REQUIRE(powers);
      }
}

TEST_CASE("fp8: signal to noise of Gaussian numbers is the published one", "[quant][fp8][oracle]") {
  REQUIRE(test::gaussian_db(Fp8{.scale = Fp8Scale::tensor}.key_codec()) == Approx(31.5).margin(0.1));
  REQUIRE(test::gaussian_db(Fp8{.format = Fp8Format::e5m2, .scale = Fp8Scale::tensor}.key_codec()) == Approx(25.5).margin(0.1));
  REQUIRE(test::gaussian_db(Fp8{.scale = Fp8Scale::block, .block = 32}.key_codec()) == Approx(32.4).margin(0.1));
}

TEST_CASE("fp8: bits per number are 8, and 32 for each scale", "[quant][fp8]") {
  REQUIRE(test::bits_per_number(Fp8{.scale = Fp8Scale::tensor}.key_codec()) == 8.0);
  REQUIRE(test::bits_per_number(Fp8{}.key_codec()) == 8.25);
  REQUIRE(test::bits_per_number(Fp8{.scale = Fp8Scale::block, .block = 32}.key_codec()) == 9.0);
}

TEST_CASE("fp8: a scale given in advance counts what it cannot reach", "[quant][fp8]") {
  const Fp8 stage{.scale = Fp8Scale::tensor, .key_scale = 0.5f, .value_scale = 2.0f};
  test::BlockPage keys(stage.key_codec(), {224.0f, 230.0f, -900.0f, 1.0f, std::numeric_limits<float>::infinity()}, 5);
  REQUIRE(keys.repaired == 3);
  REQUIRE(keys.decoded() == std::vector<float>{224.0f, 224.0f, -224.0f, 1.0f, 224.0f});
  test::BlockPage values(stage.value_codec(), {224.0f, 230.0f, -900.0f, 1.0f, 0.0f}, 5);
  REQUIRE(values.repaired == 1);
}

TEST_CASE("fp8: settings that fit nothing are refused", "[quant][fp8]") {
  const auto refused = [](const Fp8& stage, CacheShape shape = {.head_dim = 80}) {
    return stage.validate(shape) == Status::invalid_argument;
  };
  REQUIRE_FALSE(refused(Fp8{}));
  REQUIRE_FALSE(refused(Fp8{.scale = Fp8Scale::block}, {.head_dim = 1, .value_dim = 256}));
  for (const index_t block : {0, -1, 4, 24, 100, 512}) REQUIRE(refused(Fp8{.scale = Fp8Scale::block, .block = block}));
  for (const float scale : {0.0f, -1.0f, 1e30f}) REQUIRE(refused(Fp8{.scale = Fp8Scale::tensor, .key_scale = scale}));
  REQUIRE(refused(Fp8{.residual_window = -1}));
  REQUIRE(refused(Fp8{.sinks = -1}));
}
