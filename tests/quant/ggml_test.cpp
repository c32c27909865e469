#include <cmath>
#include <string>
#include <vector>

#include <catch2/catch.hpp>

#include <kvcondense/quant/ggml.hpp>

#include <quant/block_format.hpp>

using namespace kvcondense;
using quant::Ggml;
using quant::GgmlFormat;

namespace {

constexpr GgmlFormat formats[] = {GgmlFormat::q4_0, GgmlFormat::q4_1, GgmlFormat::q5_0, GgmlFormat::q5_1,
                                  GgmlFormat::q8_0, GgmlFormat::mxfp4, GgmlFormat::nvfp4};
const char* const keys[] = {"q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "mxfp4_ggml", "nvfp4_ggml"};

/// The one element whose name ends in what every block of this format has: its bytes.
std::string bytes_of(const nlohmann::json& o) {
  for (const auto& [key, value] : o.items())
    if (key.rfind("block_hex", 0) == 0) return value.get<std::string>();
  return "";
}

/// Step of a block of 32, in double, from its definition.
double step(GgmlFormat f, const float* x) {
  double lo = x[0], hi = x[0], amax = 0.0;
  for (int i = 0; i < 32; ++i) {
    lo = std::min(lo, static_cast<double>(x[i]));
    hi = std::max(hi, static_cast<double>(x[i]));
    amax = std::max(amax, std::abs(static_cast<double>(x[i])));
  }
  switch (f) {
    case GgmlFormat::q4_0: return amax / 8.0;
    case GgmlFormat::q4_1: return (hi - lo) / 15.0;
    case GgmlFormat::q5_0: return amax / 16.0;
    case GgmlFormat::q5_1: return (hi - lo) / 31.0;
    default: return amax / 127.0;
  }
}

}  // namespace

TEST_CASE("ggml: every block is byte for byte the reference's", "[quant][ggml][oracle]") {
  const auto o = test::load_oracle("quantization.json", "W_ggml_blocks");
  for (std::size_t i = 0; i < 7; ++i) {
    const auto& want = o.at(keys[i]);
    const std::vector<float> x = test::floats(formats[i] == GgmlFormat::nvfp4 ? want.at("x64") : o.at("x"));
    const auto dim = static_cast<index_t>(x.size());
    test::BlockPage page(Ggml{.format = formats[i]}.key_codec(), x, dim);
    CAPTURE(keys[i]);
    REQUIRE(page.hex(0, static_cast<index_t>(page.bytes.size())) == bytes_of(want));
    REQUIRE(test::mean_square(x, page.decoded()) == Approx(want.at("mse").get<double>()).epsilon(1e-5));
    if (!want.contains("dequant")) continue;
    const std::vector<float> back = page.decoded(), numbers = test::floats(want.at("dequant"));
    for (std::size_t k = 0; k < back.size(); ++k) REQUIRE(back[k] == Approx(numbers[k]).epsilon(1e-6));
  }
}

TEST_CASE("ggml: rows of several blocks hold them one after another", "[quant][ggml]") {
  const std::vector<float> x = test::hard_numbers(3 * 256, 6);
  for (const GgmlFormat f : formats) {
    const prim::BlockCodes codec = Ggml{.format = f}.key_codec();
    const index_t n = prim::ggml_shape(codec.ggml).numbers;
    test::BlockPage rows(codec, x, 256), blocks(codec, x, n);
    REQUIRE(rows.bytes == blocks.bytes);
    REQUIRE(rows.decoded() == blocks.decoded());
  }
}

TEST_CASE("ggml: an error is at most half a step, a whole one at the far end of q4_0 and q5_0", "[quant][ggml]") {
  const std::vector<float> x = test::hard_numbers(64 * 96, 7);
  for (const GgmlFormat f : {GgmlFormat::q4_0, GgmlFormat::q4_1, GgmlFormat::q5_0, GgmlFormat::q5_1, GgmlFormat::q8_0}) {
    const auto back = test::BlockPage(Ggml{.format = f}.key_codec(), x, 96).decoded();
    const bool signed_extreme = f == GgmlFormat::q4_0 || f == GgmlFormat::q5_0;
    double worst = 0.0;
    for (std::size_t from = 0; from < x.size(); from += 32) {
      const double s = step(f, &x[from]);
      double amax = 0.0;
      for (std::size_t i = from; i < from + 32; ++i) amax = std::max(amax, std::abs(static_cast<double>(x[i])));
      // Stored as fp16: half a unit in its last place, 2^-25 for subnormals, times the largest code.
      const double levels = f == GgmlFormat::q8_0 ? 127.0 : 32.0;
      const double rounding = levels * (s * 0x1p-11 + 0x1p-25) + amax * 0x1p-11 + 0x1p-25;
      for (std::size_t i = from; i < from + 32; ++i) {
        const double far = std::abs(static_cast<double>(x[i]) - static_cast<double>(back[i]));
        worst = std::max(worst, far / (s * (signed_extreme ? 1.0 : 0.5) + rounding));
      }
    }
    CAPTURE(static_cast<int>(f));
    REQUIRE(worst <= 1.0);
  }
}

TEST_CASE("ggml: a scale beyond fp16 is stored as the largest and counted", "[quant][ggml]") {
  std::vector<float> x(64, 1e8f);
  x[0] = -1e8f;
  for (const GgmlFormat f : {GgmlFormat::q4_0, GgmlFormat::q4_1, GgmlFormat::q5_0, GgmlFormat::q5_1, GgmlFormat::q8_0}) {
    test::BlockPage page(Ggml{.format = f}.key_codec(), x, 64);
    CAPTURE(static_cast<int>(f));
    REQUIRE(page.repaired == 2);
    for (const float v : page.decoded()) REQUIRE(std::isfinite(v));
  }
}

TEST_CASE("ggml: the smallest scales of nvfp4 and its ties are the reference's", "[quant][ggml]") {
  using prim::ue4m3_code;
  REQUIRE(ue4m3_code(0.0f) == 0);
  REQUIRE(ue4m3_code(0x1p-10f) == 1);           // a tie goes up
  REQUIRE(ue4m3_code(7.9f * 0x1p-9f) == 7);     // no carry into the normal numbers
  REQUIRE(ue4m3_code(0x1p-6f) == 8);
  REQUIRE(ue4m3_code(1.0625f) == 0x39);
  REQUIRE(ue4m3_code(247.9f) == 0x77);
  REQUIRE(ue4m3_code(248.0f) == 0x7e);          // the last binade is not used but for its largest number
  REQUIRE(ue4m3_code(1e9f) == 0x7e);
}

TEST_CASE("ggml: constant rows of q4_1 and q5_1 are exact as fp16 holds them", "[quant][ggml]") {
  for (const GgmlFormat f : {GgmlFormat::q4_1, GgmlFormat::q5_1})
    for (const float v : test::BlockPage(Ggml{.format = f}.key_codec(), std::vector<float>(64, -3.25f), 64).decoded())
      REQUIRE(v == -3.25f);
}

TEST_CASE("ggml: signal to noise of Gaussian numbers and bits are the published ones", "[quant][ggml][oracle]") {
  const double bits[] = {4.5, 5.0, 5.5, 6.0, 8.5, 4.25, 4.5};
  for (std::size_t i = 0; i < 7; ++i) REQUIRE(test::bits_per_number(Ggml{.format = formats[i]}.key_codec()) == bits[i]);
  REQUIRE(test::gaussian_db(Ggml{.format = GgmlFormat::q4_0}.key_codec()) == Approx(21.32).margin(0.1));
  REQUIRE(test::gaussian_db(Ggml{.format = GgmlFormat::q4_1}.key_codec()) == Approx(22.13).margin(0.1));
}

TEST_CASE("ggml: rows that are no whole blocks are refused", "[quant][ggml]") {
  for (const GgmlFormat f : formats) {
    REQUIRE(Ggml{.format = f}.validate({.head_dim = 128}) == Status::ok);
    for (const index_t dim : {1, 16, 80, 112}) {
      REQUIRE(Ggml{.format = f}.validate({.head_dim = dim}) == Status::invalid_argument);
      REQUIRE(Ggml{.format = f}.validate({.head_dim = 128, .value_dim = dim}) == Status::invalid_argument);
    }
  }
  REQUIRE(Ggml{.format = GgmlFormat::same}.validate({}) == Status::invalid_argument);
  constexpr Ggml both{.format = GgmlFormat::q8_0, .value_format = GgmlFormat::q4_0};
  static_assert(both.key_codec().ggml == prim::GgmlType::q8_0 && both.value_codec().ggml == prim::GgmlType::q4_0);
}
