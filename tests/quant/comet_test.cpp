#include <cmath>
#include <limits>
#include <vector>

#include <catch2/catch.hpp>

#include <kvcondense/backend/cpu/group_quant.hpp>
#include <kvcondense/quant/comet.hpp>
#include <kvcondense/prim/pack_bits.hpp>
#include <kvcondense/quant/kivi.hpp>

#include <quant/codec_page.hpp>
#include <support/oracle.hpp>

using namespace kvcondense;
using quant::Comet;

TEST_CASE("comet: keys and values are those of KIVI in four bits, byte for byte", "[quant][comet]") {
  const std::vector<float> x = test::normal_rows(256, 128, 2);
  const quant::Kivi<4> kivi{.group_size = 128};
  for (const bool key : {true, false}) {
    test::CodecPage mine(key ? Comet{}.key_codec() : Comet{}.value_codec(), x, 128);
    test::CodecPage other(key ? kivi.key_codec() : kivi.value_codec(), x, 128);
    REQUIRE(mine.bytes.size() == other.bytes.size());
    REQUIRE(std::memcmp(mine.bytes.data(), other.bytes.data(), mine.bytes.size()) == 0);
  }
}

TEST_CASE("comet: the worked example of the minimum form in four bits", "[quant][comet][oracle]") {
  const auto o = test::load_oracle("quantization.json", "A1_asym_float_min");
  const auto& four = o.at("cases").at("bits4");
  const std::vector<float> x = test::floats(o.at("x"));
  const auto n = static_cast<index_t>(x.size());
  test::CodecPage keys(Comet{.group_size = n}.key_codec(), x, 1), values(Comet{}.value_codec(), x, n);
  for (index_t i = 0; i < n; ++i) {
    const int code = four.at("codes")[static_cast<std::size_t>(i)];
    REQUIRE(static_cast<int>(prim::DenseLe<4>{}.get(keys.bytes.data() + i, 0)) == code);
    REQUIRE(static_cast<int>(prim::DenseLe<4>{}.get(values.bytes.data(), i)) == code);
  }
}

TEST_CASE("comet: attention over codes equals attention over what they decode to", "[quant][comet]") {
  const index_t dim = GENERATE(64, 80, 96, 112, 128, 256);
  test::CodecPage keys(Comet{}.key_codec(), test::normal_rows(256, dim, 3), dim);
  test::require_folds(keys, 1e-5);  // multipliers are rounded where the processor multiplies codes
  test::require_same_alone(keys);
  for (const index_t group : {index_t{0}, dim / 2}) {
    test::CodecPage values(Comet{.value_group = group}.value_codec(), test::normal_rows(40, dim, 4), dim);
    test::require_folds(values);
  }
}

TEST_CASE("comet: every half number goes through both codecs and stays finite", "[quant][comet]") {
  test::CodecPage keys(Comet{}.key_codec(), test::all_halves(64), 64), values(Comet{}.value_codec(), test::all_halves(64), 64);
  REQUIRE(keys.repaired == 2 * 1024);
  REQUIRE(values.repaired == 2 * 1024);
  for (const float v : keys.decoded()) REQUIRE(std::isfinite(v));
  for (const float v : values.decoded()) REQUIRE(std::isfinite(v));
}

TEST_CASE("comet: bits per number, and when slots are coded", "[quant][comet]") {
  REQUIRE(test::bits_per_number(Comet{}.key_codec(), 128) == 4.25);
  REQUIRE(test::bits_per_number(Comet{}.value_codec(), 128) == 4.25);
  static_assert(Comet{}.key_flush().block == 128 && Comet{}.key_flush().keep == 0 && Comet{}.value_flush().block == 1);
  static_assert(Comet{.keep_window = 8}.key_flush().keep == 8 && Comet{.keep_window = 8}.value_flush().keep == 8);
}

TEST_CASE("comet: groups that fit nothing are refused", "[quant][comet]") {
  const auto refused = [](const Comet& c) { return c.validate({.head_dim = 80}) == Status::invalid_argument; };
  for (const index_t dim : {1, 64, 80, 96, 112, 128, 256}) REQUIRE(Comet{}.validate({.head_dim = dim}) == Status::ok);
  REQUIRE_FALSE(refused({.value_group = 40}));
  for (const index_t group : {-8, 0, 24, 512}) REQUIRE(refused({.group_size = group}));
  for (const index_t group : {-8, 32, 128}) REQUIRE(refused({.value_group = group}));
  REQUIRE(refused({.keep_window = -1}));
  REQUIRE(refused({.sinks = -1}));
}
