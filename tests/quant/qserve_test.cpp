#include <cmath>
#include <limits>
#include <vector>

#include <catch2/catch.hpp>

#include <kvcondense/backend/cpu/group_quant.hpp>
#include <kvcondense/quant/qserve.hpp>

#include <quant/codec_page.hpp>
#include <support/oracle.hpp>

using namespace kvcondense;
using prim::GroupForm;
using quant::QServe;

namespace {

template <int Bits>
test::CodecPage<prim::GroupInt<Bits>> coded(const QServe<Bits>& stage, const std::vector<float>& x, index_t dim) {
  return {stage.key_codec(), x, dim};
}

std::vector<int> codes_of(test::CodecPage<prim::GroupInt<4>>& page) {
  std::vector<int> codes;
  for (index_t c = 0; c < page.dim; ++c) codes.push_back(static_cast<int>(page.bytes[static_cast<std::size_t>(c / 2)]) >> (c % 2 * 4) & 15);
  return codes;
}

}  // namespace

TEST_CASE("qserve: scale, zero, bytes and numbers are the worked example's", "[quant][qserve][oracle]") {
  const auto o = test::load_oracle("quantization.json", "A4_qserve_kv4").at("example");
  const std::vector<float> x = test::floats(o.at("x"));
  auto page = coded(QServe<4>{}, x, 8);
  REQUIRE(codes_of(page) == o.at("codes").get<std::vector<int>>());
  for (std::size_t k = 0; k < 4; ++k)
    REQUIRE(static_cast<int>(page.bytes[k]) == std::stoi(o.at("packed_bytes")[k].get<std::string>(), nullptr, 16));
  const auto half = [&](const char* key) {
    return kvcondense::detail::half_value(static_cast<std::uint16_t>(std::stoi(o.at(key).get<std::string>(), nullptr, 16)));
  };
  REQUIRE(page.half_at(4) == half("scale_hex"));
  REQUIRE(page.half_at(6) == half("zero_hex"));
  for (std::size_t i = 0; i < 8; ++i) REQUIRE(page.decoded()[i] == Approx(o.at("dequant")[i].get<double>()).epsilon(1e-5));
}

TEST_CASE("qserve: codes of a row far from zero are limited, not wrapped", "[quant][qserve][oracle]") {
  const auto o = test::load_oracle("quantization.json", "A4_qserve_kv4").at("hazard_large_offset");
  const std::vector<float> x = test::floats(o.at("x"));
  auto page = coded(QServe<4>{}, x, 5);
  REQUIRE(codes_of(page) == o.at("after_clamp_0_15").get<std::vector<int>>());
  REQUIRE(page.half_at(4) == Approx(o.at("scale_fp16").get<double>()).epsilon(1e-7));
  REQUIRE(page.half_at(6) == o.at("zero_fp16").get<float>());
  auto minimum = coded(QServe<4>{.form = GroupForm::minimum}, x, 5);
  for (std::size_t i = 0; i < 5; ++i) {  // half a step, or a worse one where the zero was rounded
    REQUIRE(minimum.decoded()[i] == Approx(x[i]).margin(0.034));
    REQUIRE(page.decoded()[i] == Approx(x[i]).margin(0.3));
  }
}

TEMPLATE_TEST_CASE_SIG("qserve: attention over codes equals attention over what they decode to", "[quant][qserve]",
                       ((int Bits), Bits), 4, 8) {
  const index_t dim = GENERATE(64, 80, 96, 112, 128, 256), slots = GENERATE(1, 40);
  for (const GroupForm form : {GroupForm::float_zero, GroupForm::symmetric, GroupForm::minimum}) {
    auto page = coded(QServe<Bits>{.form = form}, test::normal_rows(slots, dim, 3), dim);
    test::require_folds(page);
    test::require_same_alone(page);
  }
}

TEMPLATE_TEST_CASE_SIG("qserve: numbers err by half a step, and what the rounded zero adds", "[quant][qserve]",
                       ((int Bits), Bits), 4, 8) {
  for (const float offset : {0.0f, 3.0f, -20.0f}) {
    std::vector<float> x = test::normal_rows(64, 128, 5);
    for (float& v : x) v += offset;
    auto page = coded(QServe<Bits>{}, x, 128);
    const auto back = page.decoded();
    for (index_t t = 0; t < 64; ++t) {
      const auto row = std::span(x).subspan(static_cast<std::size_t>(t * 128), 128);
      const auto [lo, hi] = std::minmax_element(row.begin(), row.end());
      const double step = (static_cast<double>(*hi) - static_cast<double>(*lo)) / ((1 << Bits) - 1);
      // fp16 keeps 11 bits of scale and zero; x / scale + zero has both errors.
      const double far = std::max(std::abs(static_cast<double>(*hi)), std::abs(static_cast<double>(*lo)));
      for (std::size_t c = 0; c < 128; ++c)
        REQUIRE(std::abs(static_cast<double>(back[static_cast<std::size_t>(t) * 128 + c]) - static_cast<double>(row[c])) <=
                0.5005 * step + 2.0 * far * 0x1p-11);
    }
  }
}

TEST_CASE("qserve: every half number, constant rows and numbers that are none", "[quant][qserve]") {
  auto all = coded(QServe<4>{}, test::all_halves(64), 64);
  REQUIRE(all.repaired == 2 * 1024);
  for (const float v : all.decoded()) REQUIRE(std::isfinite(v));
  auto finite = coded(QServe<8>{}, test::all_halves(1), 1);  // a row each: its own scale, exact
  std::size_t wrong = 0;
  const auto back = finite.decoded();
  for (std::size_t i = 0; i < back.size(); ++i) wrong += back[i] != (std::isfinite(finite.rows[i]) ? finite.rows[i] : 0.0f);
  REQUIRE(wrong == 0);
  const float nan = std::numeric_limits<float>::quiet_NaN(), inf = std::numeric_limits<float>::infinity();
  auto bad = coded(QServe<4>{}, {0.0f, 3.0f, nan, inf, -inf, 1.0f, nan, nan, nan, nan, inf, -inf}, 6);
  REQUIRE(bad.repaired == 9);
  const auto got = bad.decoded();
  REQUIRE(got[2] == got[0]);
  REQUIRE(got[3] == got[1]);
  REQUIRE(got[4] == got[0]);
  for (std::size_t i = 6; i < 12; ++i) REQUIRE(got[i] == 0.0f);
}

TEST_CASE("qserve: bits per number are the published ones", "[quant][qserve][oracle]") {
  const auto o = test::load_oracle("quantization.json", "Z_effective_bits");
  REQUIRE(test::bits_per_number(QServe<4>{}.key_codec(), 128) == o.at("per-token-per-head D128 b4 (QuaRot/Atom/QServe)").get<double>());
  REQUIRE(test::bits_per_number(QServe<8>{}.value_codec(), 128) == 8.25);
  REQUIRE(test::bits_per_number(QServe<4>{.form = GroupForm::symmetric}.key_codec(), 128) == 4.125);
}

TEST_CASE("qserve: slots are coded at once, and settings that fit nothing are refused", "[quant][qserve]") {
  static_assert(QServe<4>{}.key_flush().block == 1 && QServe<4>{}.value_flush().keep == 0);
  for (const index_t dim : {1, 64, 80, 96, 112, 128, 256}) REQUIRE(QServe<4>{}.validate({.head_dim = dim}) == Status::ok);
  REQUIRE(QServe<8>{.residual_window = -1}.validate({}) == Status::invalid_argument);
  REQUIRE(QServe<8>{.sinks = -1}.validate({}) == Status::invalid_argument);
}
