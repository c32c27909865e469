#include <cmath>
#include <vector>

#include <catch2/catch.hpp>

#include <kvcondense/quant/nvfp4.hpp>

#include <quant/block_format.hpp>

using namespace kvcondense;
using quant::Nvfp4;

TEST_CASE("nvfp4: scales and codes are the worked example's", "[quant][nvfp4][oracle]") {
  const auto o = test::load_oracle("quantization.json", "V5_nvfp4_two_level");
  const std::vector<float> x = test::floats(o.at("x"));
  const Nvfp4 stage{.key_scale = o.at("global_scale").get<float>()};
  const auto dim = static_cast<index_t>(x.size());
  test::BlockPage page(stage.key_codec(), x, dim);
  for (index_t b = 0; b < dim / 16; ++b) {
    const auto& block = o.at("blocks")[static_cast<std::size_t>(b)];
    CAPTURE(b);
    REQUIRE(page.byte(dim / 2 + b) == std::stoi(block.at("scale_code").get<std::string>(), nullptr, 16));
    for (index_t i = 0; i < 16; ++i)
      REQUIRE(((page.byte(b * 8 + i / 2) >> (4 * (i % 2))) & 15) == block.at("codes")[static_cast<std::size_t>(i)].get<int>());
  }
  REQUIRE(test::mean_square(x, page.decoded()) == Approx(o.at("mse").get<double>()).epsilon(1e-5));
}

TEST_CASE("nvfp4: numbers within reach err by half a step of the stored scale at most", "[quant][nvfp4]") {
  const std::vector<float> x = test::hard_numbers(64 * 88, 4);
  for (const float given : {64.0f, 0.37f, 0.001f}) {
    test::BlockPage page(Nvfp4{.value_scale = given}.value_codec(), x, 88);
    const auto back = page.decoded();
    const index_t row_bytes = page.codec.row_bytes(88);
    std::size_t wrong = 0;
    index_t too_large = 0;
    for (index_t slot = 0; slot < 64; ++slot)
      for (index_t j = 0; j < 6; ++j) {  // five whole blocks and one of eight numbers
        const double stored = static_cast<double>(prim::mini_float_value(prim::float_e4m3, static_cast<std::uint32_t>(page.byte(slot * row_bytes + 44 + j))));
        const double scale = stored * static_cast<double>(given);
        double amax = 0.0;
        for (index_t c = j * 16; c < std::min<index_t>(88, j * 16 + 16); ++c) {
          const auto i = static_cast<std::size_t>(slot * 88 + c);
          const double v = static_cast<double>(x[i]), z = static_cast<double>(back[i]);
          amax = std::max(amax, std::abs(v));
          if (stored == 0.0) wrong += z != 0.0 ? 1u : 0u;
          else if (std::abs(v) >= 6.0 * scale) wrong += std::abs(z - std::copysign(6.0 * scale, v)) > 1e-6 * scale ? 1u : 0u;
          else wrong += std::abs(v - z) > test::step_at(prim::float_e2m1, v / scale) * scale * 0.500001 ? 1u : 0u;
        }
        const double want = amax / (6.0 * static_cast<double>(given));
        too_large += want > 448.0 ? 1 : 0;
        wrong += std::abs(stored - std::min(want, 448.0)) > test::step_at(prim::float_e4m3, want) * 0.500001 ? 1u : 0u;
      }
    CAPTURE(given);
    REQUIRE(wrong == 0);
    REQUIRE(page.repaired == too_large);
    REQUIRE((given > 10.0f) == (too_large == 0));
  }
}

TEST_CASE("nvfp4: signal to noise of Gaussian numbers and bits are the published ones", "[quant][nvfp4][oracle]") {
  REQUIRE(test::gaussian_db(Nvfp4{.key_scale = 5.0f / 2688.0f}.key_codec()) == Approx(20.43).margin(0.1));
  REQUIRE(test::bits_per_number(Nvfp4{}.key_codec()) == 4.5);
}

TEST_CASE("nvfp4: short last blocks are stored, scales that are none refused", "[quant][nvfp4]") {
  for (const index_t dim : {1, 80, 100, 112, 256}) REQUIRE(Nvfp4{}.validate({.head_dim = dim}) == Status::ok);
  for (const float scale : {0.0f, -1.0f, 1e30f}) {
    REQUIRE(Nvfp4{.key_scale = scale}.validate({}) == Status::invalid_argument);
    REQUIRE(Nvfp4{.value_scale = scale}.validate({}) == Status::invalid_argument);
  }
  REQUIRE(Nvfp4{.sinks = -1}.validate({}) == Status::invalid_argument);
}
