#include <cmath>
#include <vector>

#include <catch2/catch.hpp>

#include <kvcondense/backend/cpu/group_quant.hpp>
#include <kvcondense/quant/group_int.hpp>

#include <quant/codec_page.hpp>
#include <support/fill.hpp>
#include <support/oracle.hpp>

using namespace kvcondense;
using prim::GroupAxis;
using prim::GroupForm;

namespace {

/// Rows after coding and decoding, in one page.
template <int Bits>
std::vector<float> coded(const prim::GroupInt<Bits>& codec, const std::vector<float>& rows, index_t dim) {
  using Codec = prim::PageCodec<Cpu, prim::GroupInt<Bits>>;
  const index_t slots = static_cast<index_t>(rows.size()) / dim;
  std::vector<std::byte> page(codec.page_bytes(slots, dim));
  std::vector<float> out(rows.size());
  const prim::PageSpan span{page.data(), slots, dim};
  Codec::encode(codec, span, 0, slots, {rows.data(), slots, dim});
  Codec::decode(codec, span, 0, slots, {out.data(), slots, dim});
  return out;
}

/// Four strong channels, one in each quarter of a head of 128.
bool strong(index_t channel) { return channel % 32 == 5; }

double mean_square(const std::vector<float>& a, const std::vector<float>& b, index_t dim, bool skip_strong = false) {
  double sum = 0.0;
  std::size_t n = 0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    if (skip_strong && strong(static_cast<index_t>(i) % dim)) continue;
    sum += (static_cast<double>(a[i]) - static_cast<double>(b[i])) * (static_cast<double>(a[i]) - static_cast<double>(b[i]));
    ++n;
  }
  return sum / static_cast<double>(n);
}

template <int Bits>
double bits_of(const prim::GroupInt<Bits>& codec) {
  return static_cast<double>(codec.page_bytes(128, 128)) * 8.0 / (128.0 * 128.0);
}

}  // namespace

TEST_CASE("group_int: errors on outlier and offset channels follow the published trends", "[quant][group_int][oracle]") {
  const auto tables = test::load_oracle("quantization.json", "Y2_trends").at("tables");
  constexpr index_t tokens = 4096, dim = 128;
  std::vector<float> k(static_cast<std::size_t>(tokens * dim));
  test::fill_normal(k.data(), k.size(), 4);
  std::vector<float> offset = k;
  for (index_t t = 0; t < tokens; ++t)
    for (index_t c = 0; c < dim; ++c) {
      if (!strong(c)) continue;
      k[static_cast<std::size_t>(t * dim + c)] *= 10.0f;
      offset[static_cast<std::size_t>(t * dim + c)] += c < 64 ? 10.0f : -10.0f;
    }
  for (const index_t group : {32, 128})
    for (const GroupAxis axis : {GroupAxis::channel, GroupAxis::token}) {
      CAPTURE(group, static_cast<int>(axis));
      const auto back = coded(prim::GroupInt<2>{axis, group}, k, dim);
      const auto& want = tables.at(group == 32 ? "G32" : "G128").at(axis == GroupAxis::channel ? "per_channel" : "per_token");
      REQUIRE(mean_square(k, back, dim) == Approx(want.at("mse").get<double>()).epsilon(0.1));
      REQUIRE(mean_square(k, back, dim, true) == Approx(want.at("mse_normal_channels").get<double>()).epsilon(0.1));
    }
  const auto back = coded(prim::GroupInt<2>{GroupAxis::channel, 32}, offset, dim);
  REQUIRE(mean_square(offset, back, dim) ==
          Approx(tables.at("constant_offset_channels_G32").at("per_channel").get<double>()).epsilon(0.1));
}

TEST_CASE("group_int: more bits and smaller groups never err more", "[quant][group_int]") {
  std::vector<float> x(1024 * 64);
  test::fill_normal(x.data(), x.size(), 5);
  for (const GroupAxis axis : {GroupAxis::token, GroupAxis::channel})
    for (const GroupForm form : {GroupForm::minimum, GroupForm::float_zero, GroupForm::symmetric, GroupForm::integer_zero, GroupForm::mid_rise}) {
      const auto error = [&]<int Bits>(index_t group) {
        return mean_square(x, coded(prim::GroupInt<Bits>{axis, group, form}, x, 64), 64);
      };
      CAPTURE(static_cast<int>(axis), static_cast<int>(form));
      REQUIRE(error.operator()<8>(32) < error.operator()<4>(32));
      REQUIRE(error.operator()<4>(32) < error.operator()<3>(32));
      REQUIRE(error.operator()<3>(32) < error.operator()<2>(32));
      REQUIRE(error.operator()<4>(16) < error.operator()<4>(32));
      REQUIRE(error.operator()<4>(32) < error.operator()<4>(64));
    }
}

TEST_CASE("group_int: bits per number are the published ones", "[quant][group_int][oracle]") {
  const auto o = test::load_oracle("quantization.json", "Z_effective_bits");
  REQUIRE(bits_of(quant::GroupInt<4>{.group_size = 0}.key_codec()) ==
          o.at("per-token-per-head D128 b4 (QuaRot/Atom/QServe)").get<double>());
  REQUIRE(bits_of(quant::GroupInt<4>{.group_size = 64}.value_codec()) == o.at("FlexGen b4 G64").get<double>());
  REQUIRE(bits_of(quant::GroupInt<8>{.group_size = 0, .form = GroupForm::symmetric}.key_codec()) == 8.0 + 16.0 / 128.0);
}

TEST_CASE("group_int: tokens are coded at once or after a window, channels in blocks", "[quant][group_int]") {
  constexpr quant::GroupInt<4> at_once{};
  static_assert(at_once.key_flush().block == 1 && at_once.key_flush().keep == 0);
  constexpr quant::GroupInt<4> windowed{.residual_window = 64};
  static_assert(windowed.value_flush().block == 1 && windowed.value_flush().keep == 64);
  constexpr quant::GroupInt<4> channels{.key_axis = GroupAxis::channel, .keep_window = 8};
  static_assert(channels.key_flush().block == 32 && channels.key_flush().keep == 8);
  static_assert(channels.value_flush().block == 1 && channels.value_flush().keep == 8);
  constexpr quant::GroupInt<4> blocks{.key_axis = GroupAxis::channel, .residual_window = 128};
  static_assert(blocks.key_flush().block == 128);
}

TEST_CASE("group_int: what is decoded has the codes and parameters that it came from", "[quant][group_int]") {
  // Why a cache that codes everything anew in every flush may as well leave it: groups are a slot's own channels.
  const auto form = GENERATE(GroupForm::minimum, GroupForm::float_zero);
  const auto type = GENERATE(prim::ParamType::f16, prim::ParamType::f32);
  const auto check = [&]<int Bits>() {
    const prim::GroupInt<Bits> codec{.group_size = 64, .form = form, .params = type};
    test::CodecPage<prim::GroupInt<Bits>> page(codec, test::normal_rows(40, 128, 3), 128);
    const auto once = page.decoded();
    test::CodecPage<prim::GroupInt<Bits>> again(codec, once, 128);
    const auto row = static_cast<std::size_t>(codec.row_bytes(128) * 40);
    REQUIRE(std::equal(page.bytes.begin(), page.bytes.begin() + row, again.bytes.begin()));
    const auto twice = again.decoded();
    for (std::size_t i = 0; i < once.size(); ++i) REQUIRE(twice[i] == Approx(once[i]).epsilon(2e-3).margin(2e-3));
  };
  check.template operator()<2>();
  check.template operator()<4>();
}

TEST_CASE("group_int: math reaches the codecs of keys and values, and is not part of what bytes mean", "[quant][group_int]") {
  const quant::GroupInt<4> usual{}, byte{.math = prim::CodeMath::int8};
  REQUIRE((usual.key_codec().math == prim::CodeMath::int16 && usual.value_codec().math == prim::CodeMath::int16));
  REQUIRE((byte.key_codec().math == prim::CodeMath::int8 && byte.value_codec().math == prim::CodeMath::int8));
  REQUIRE(byte.key_codec().fingerprint() == usual.key_codec().fingerprint());
}

TEST_CASE("group_int: groups that fit nothing are refused", "[quant][group_int]") {
  const auto refused = [](const auto& stage, CacheShape shape = {.head_dim = 64}) {
    return stage.validate(shape) == Status::invalid_argument;
  };
  REQUIRE_FALSE(refused(quant::GroupInt<4>{}));
  REQUIRE_FALSE(refused(quant::GroupInt<4>{.group_size = 0}, {.head_dim = 80}));
  REQUIRE(refused(quant::GroupInt<4>{}, {.head_dim = 80}));
  REQUIRE(refused(quant::GroupInt<4>{}, {.head_dim = 64, .value_dim = 80}));
  REQUIRE(refused(quant::GroupInt<4>{.key_axis = GroupAxis::channel, .group_size = 0}));
  REQUIRE(refused(quant::GroupInt<4>{.key_axis = GroupAxis::channel, .group_size = 24}, {.head_dim = 96}));
  REQUIRE(refused(quant::GroupInt<4>{.key_axis = GroupAxis::channel, .residual_window = 40}));
  REQUIRE(refused(quant::GroupInt<1>{.form = GroupForm::symmetric}));
  REQUIRE(refused(quant::GroupInt<4>{.residual_window = -1}));
  REQUIRE(refused(quant::GroupInt<4>{.keep_window = -1}));
  REQUIRE(refused(quant::GroupInt<4>{.sinks = -1}));
  REQUIRE_FALSE(refused(quant::GroupInt<4>{.residual_window = 128, .whole_window = true}));
  REQUIRE(refused(quant::GroupInt<4>{.whole_window = true}));
  REQUIRE(refused(quant::GroupInt<4>{.residual_window = 128, .keep_window = 1, .whole_window = true}));
  REQUIRE(refused(quant::GroupInt<4>{.value_axis = GroupAxis::channel, .residual_window = 128, .whole_window = true}));
}
