#include <cmath>
#include <limits>
#include <vector>

#include <catch2/catch.hpp>

#include <kvcondense/prim/pack_bits.hpp>
#include <kvcondense/quant/bfp.hpp>

#include <quant/block_format.hpp>

// Folding, moves and repairs of these codes are in tests/prim/block_codes_codec_test.cpp.

using namespace kvcondense;
using quant::Bfp;

namespace {

nlohmann::json example() { return test::load_oracle("quantization.json", "H_bfp_ksort"); }

double squares(const std::vector<float>& a, const std::vector<float>& b) {
  return test::mean_square(a, b) * static_cast<double>(a.size());
}

}  // namespace

TEST_CASE("bfp: exponent, codes and numbers of a block are the worked example's", "[quant][bfp][oracle]") {
  const auto o = example().at("block_example");
  const std::vector<float> x = test::floats(o.at("x"));
  test::BlockPage page(Bfp{.block = 8}.key_codec(), x, 8);
  for (index_t i = 0; i < 8; ++i)
    REQUIRE(prim::integer_value(4, prim::DenseLe<4>{}.get(page.bytes.data(), i)) == o.at("codes")[static_cast<std::size_t>(i)].get<int>());
  REQUIRE(page.byte(4) - 127 == o.at("shared_exponent").get<int>());
  REQUIRE(page.decoded() == test::floats(o.at("dequant")));
}

TEST_CASE("bfp: sorting channels lowers the error as in the worked example", "[quant][bfp][oracle]") {
  const auto o = example();
  const std::vector<float> k = test::floats(o.at("k"));
  std::vector<float> sorted;
  for (const std::size_t c : o.at("perm_by_channel_norm_desc").get<std::vector<std::size_t>>()) sorted.push_back(k[c]);
  const auto& want = o.at("sum_sq_err");
  const auto error = [](const std::vector<float>& row, index_t block) {  // blocks as short rows
    return squares(row, test::BlockPage(Bfp{.block = 8}.key_codec(), row, block).decoded());
  };
  REQUIRE(error(k, 8) == Approx(want.at("block8_original").get<double>()).epsilon(1e-5));
  REQUIRE(error(sorted, 8) == Approx(want.at("block8_sorted").get<double>()).epsilon(1e-5));
  REQUIRE(error(k, 4) == Approx(want.at("block4_original").get<double>()).epsilon(1e-5));
  REQUIRE(error(sorted, 4) == Approx(want.at("block4_sorted").get<double>()).epsilon(1e-5));
  // One row with blocks inside is the same as many rows.
  REQUIRE(squares(sorted, test::BlockPage(Bfp{.block = 8}.key_codec(), sorted, 16).decoded()) == error(sorted, 8));
}

TEST_CASE("bfp: numbers within reach err by half a step at most, others become the last code", "[quant][bfp]") {
  const index_t dim = GENERATE(64, 80, 96, 112, 128, 256);
  const std::vector<float> x = test::hard_numbers(static_cast<std::size_t>(48 * dim), 4);
  for (index_t bits = 2; bits <= 8; ++bits)
    for (const index_t block : {8, 32, 64, 128}) {
      test::BlockPage page(Bfp{.bits = bits, .block = block}.key_codec(), x, dim);
      const auto back = page.decoded();
      std::size_t wrong = 0;
      for (std::size_t row = 0; row < x.size(); row += static_cast<std::size_t>(dim))
        for (std::size_t from = row; from < row + static_cast<std::size_t>(dim); from += static_cast<std::size_t>(block)) {
          const std::size_t end = std::min(from + static_cast<std::size_t>(block), row + static_cast<std::size_t>(dim));
          double amax = 0.0;
          for (std::size_t i = from; i < end; ++i) amax = std::max(amax, std::abs(static_cast<double>(x[i])));
          const double step = std::ldexp(1.0, std::ilogb(amax) - static_cast<int>(bits - 2));
          const double top = step * static_cast<double>((1 << (bits - 1)) - 1);
          for (std::size_t i = from; i < end; ++i) {
            const auto v = static_cast<double>(x[i]), y = static_cast<double>(back[i]);
            wrong += std::abs(v) > top ? y != std::copysign(top, v) : std::abs(v - y) > step / 2;
          }
        }
      CAPTURE(dim, bits, block);
      REQUIRE(wrong == 0);
      REQUIRE(page.repaired == 0);
    }
}

TEST_CASE("bfp: every half number is coded, alone and beside a large one", "[quant][bfp]") {
  std::vector<float> x;
  for (std::uint32_t h = 0; h < 65536; ++h) {  // one per block, then 60000 in the same block
    x.push_back(kvcondense::detail::half_value(static_cast<std::uint16_t>(h)));
    x.insert(x.end(), {0.0f, 0.0f, 0.0f, 0.0f, 0.0f, 0.0f, h % 2 == 0 ? 0.0f : 60000.0f});
  }
  for (const index_t bits : {2, 4, 8}) {
    test::BlockPage page(Bfp{.bits = bits, .block = 8}.key_codec(), x, 8);
    REQUIRE(page.repaired == 2 * 1024);  // infinities and NaN
    const auto back = page.decoded();
    std::size_t wrong = 0;
    for (std::size_t i = 0; i < x.size(); i += 8) {
      const bool alone = i % 16 == 0;
      if (!std::isfinite(x[i])) {
        const double want = alone || std::isnan(x[i]) ? 0.0 : static_cast<double>(std::copysign(back[i + 7], x[i]));
        wrong += static_cast<double>(back[i]) != want;
        continue;
      }
      const auto v = static_cast<double>(x[i]);
      const double amax = alone ? std::abs(v) : std::max(60000.0, std::abs(v));
      const double step = amax == 0.0 ? 1.0 : std::ldexp(1.0, std::ilogb(amax) - static_cast<int>(bits - 2));
      const double top = step * static_cast<double>((1 << (bits - 1)) - 1);
      const auto y = static_cast<double>(back[i]);
      wrong += std::abs(v) > top ? y != std::copysign(top, v) : std::abs(v - y) > step / 2;
    }
    REQUIRE(wrong == 0);
  }
}

TEST_CASE("bfp: eight bits in blocks of 32 are mx int8, byte for byte", "[quant][bfp]") {
  const std::vector<float> x = test::hard_numbers(64 * 96, 8);
  prim::BlockCodes mx;
  mx.element = prim::BlockElement::int8;
  REQUIRE(test::BlockPage(Bfp{.bits = 8}.key_codec(), x, 96).bytes == test::BlockPage(mx, x, 96).bytes);
}

TEST_CASE("bfp: coding what was decoded changes no number", "[quant][bfp]") {
  const std::vector<float> x = test::hard_numbers(64 * 112, 5);
  for (index_t bits = 2; bits <= 8; ++bits) {
    test::BlockPage page(Bfp{.bits = bits}.key_codec(), x, 112), again(page.codec, page.decoded(), 112);
    REQUIRE(page.decoded() == again.decoded());
  }
}

TEST_CASE("bfp: a tie goes to the even code, or away from zero", "[quant][bfp]") {
  const std::vector<float> x{4.0f, 0.5f, 1.5f, 2.5f, -0.5f, -1.5f, 6.5f, 7.9f};
  REQUIRE(test::BlockPage(Bfp{}.key_codec(), x, 8).decoded() == std::vector<float>{4, 0, 2, 2, 0, -2, 6, 7});
  REQUIRE(test::BlockPage(Bfp{.rounding = prim::Rounding::half_away}.key_codec(), x, 8).decoded() ==
          std::vector<float>{4, 1, 2, 3, -1, -2, 7, 7});
}

TEST_CASE("bfp: signal to noise of Gaussian numbers and bits are the published ones", "[quant][bfp][oracle]") {
  REQUIRE(test::gaussian_db(Bfp{}.key_codec()) == Approx(17.55).margin(0.1));
  const auto o = test::load_oracle("quantization.json", "Z_effective_bits");
  const auto bits = [](index_t mantissa, index_t block) {
    return test::bits_per_number(Bfp{.bits = mantissa, .block = block}.key_codec());
  };
  REQUIRE(bits(4, 32) == o.at("BFP12 n=32 (4b mantissa, 8b exponent)").get<double>());
  REQUIRE(bits(4, 64) == o.at("BFP12 n=64").get<double>());
  REQUIRE(bits(4, 128) == o.at("BFP12 n=128").get<double>());
  REQUIRE(bits(8, 32) == o.at("BFP16 n=32").get<double>());
}

TEST_CASE("bfp: settings that fit nothing are refused", "[quant][bfp]") {
  static_assert(Bfp{}.key_codec().element == prim::BlockElement::int4 && Bfp{}.value_codec().element == prim::BlockElement::int8);
  static_assert(Bfp{.residual_window = 5}.key_flush().keep == 5);
  const auto refused = [](const Bfp& b) { return b.validate({.head_dim = 80}) == Status::invalid_argument; };
  for (const index_t dim : {1, 64, 80, 96, 112, 128, 256}) REQUIRE(Bfp{}.validate({.head_dim = dim}) == Status::ok);
  REQUIRE_FALSE(refused({.block = 0}));
  for (const index_t bits : {-1, 0, 1, 9, 16}) REQUIRE(refused({.bits = bits}));
  for (const index_t bits : {0, 1, 9}) REQUIRE(refused({.value_bits = bits}));
  for (const index_t block : {-8, 4, 24, 512}) REQUIRE(refused({.block = block}));
  REQUIRE(refused({.rounding = prim::Rounding::half_up}));
  REQUIRE(refused({.residual_window = -1}));
  REQUIRE(refused({.sinks = -1}));
}
