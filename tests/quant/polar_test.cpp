#include <cmath>
#include <limits>
#include <numbers>
#include <vector>

#include <catch2/catch.hpp>

#include <kvcondense/backend/cpu/polar_pairs.hpp>
#include <kvcondense/quant/polar.hpp>

#include <quant/codec_page.hpp>
#include <support/oracle.hpp>

using namespace kvcondense;
using prim::ParamType;
using prim::PolarPairs;
using prim::RopePairing;
using quant::Polar;

namespace {

template <int R, int T>
using Page = test::CodecPage<PolarPairs<R, T>>;

constexpr double circle = 2.0 * std::numbers::pi;

/// Keys with a direction per pair that turns slowly, as RoPE's slow pairs do, and noise.
std::vector<float> turning(index_t slots, index_t dim, double first) {
  std::vector<float> x = test::normal_rows(slots, dim, 6);
  for (index_t t = 0; t < slots; ++t)
    for (index_t j = 0; j < dim / 2; ++j) {
      const double angle = first + 0.4 * std::sin(0.1 * static_cast<double>(t)), length = 3.0 + 0.01 * static_cast<double>(j);
      float* pair[2] = {&x[static_cast<std::size_t>(t * dim + j)], &x[static_cast<std::size_t>(t * dim + j + dim / 2)]};
      *pair[0] = static_cast<float>(length * std::cos(angle)) + 0.1f * *pair[0];
      *pair[1] = static_cast<float>(length * std::sin(angle)) + 0.1f * *pair[1];
    }
  return x;
}

}  // namespace

TEST_CASE("polar: angles, lengths, codes and numbers are the worked example's", "[quant][polar][oracle]") {
  const auto o = test::load_oracle("quantization.json", "N2_polarquant_rope_pairs");
  const std::vector<float> k = test::floats(o.at("K"));
  const auto at = [&](const char* key, index_t t, index_t j) {
    return o.at(key)[static_cast<std::size_t>(t)][static_cast<std::size_t>(j)].get<double>();
  };
  Page<2, 2> page({.group_size = 4, .params = ParamType::f32}, k, 4);  // the example's parameters are not rounded
  prim::cpu::PolarGroup group;
  prim::cpu::PolarPage<2, 2>{page.codec, page.span()}.read_group(0, group);
  const std::vector<float> back = page.decoded();
  for (index_t j = 0; j < 2; ++j) {
    const auto i = static_cast<std::size_t>(j);
    REQUIRE(group.angle_scale[i] == Approx(o.at("theta_scale")[i].get<double>()).epsilon(1e-6));
    REQUIRE(group.angle_offset[i] == Approx(o.at("theta_min")[i].get<double>()).epsilon(1e-6));
    REQUIRE(group.length_scale[i] == Approx(o.at("rho_scale")[i].get<double>()).epsilon(1e-6));
    REQUIRE(group.length_offset[i] == Approx(o.at("rho_min")[i].get<double>()).epsilon(1e-6));
    for (index_t t = 0; t < 4; ++t) {
      const prim::PolarPoint p = prim::polar_point(k[static_cast<std::size_t>(4 * t + j)], k[static_cast<std::size_t>(4 * t + j + 2)]);
      REQUIRE(p.angle == Approx(at("phi", t, j)).epsilon(1e-6));
      REQUIRE(p.length == Approx(at("rho", t, j)).epsilon(1e-6));
      const int code = static_cast<int>(page.bytes[t]) >> 4 * j & 15;
      REQUIRE(code == static_cast<int>(at("indices", t, j)));
      REQUIRE(back[static_cast<std::size_t>(4 * t + j)] == Approx(at("midpoint_dequant_re", t, j)).margin(1e-5));
      REQUIRE(back[static_cast<std::size_t>(4 * t + j + 2)] == Approx(at("midpoint_dequant_im", t, j)).margin(1e-5));
    }
  }
  // Parameters in fp16 change no code here.
  Page<2, 2> half({.group_size = 4}, k, 4);
  for (index_t t = 0; t < 4; ++t) REQUIRE(half.bytes[t] == page.bytes[t]);
}

TEMPLATE_TEST_CASE_SIG("polar: attention by tables equals attention over what codes decode to", "[quant][polar]",
                       ((int R, int T), R, T), (4, 4), (3, 3), (2, 5), (1, 1)) {
  const index_t dim = GENERATE(2, 64, 80, 96, 112, 128, 256);
  for (const index_t group : {1, 16, 33, 128})
    for (const RopePairing pairing : {RopePairing::half_split, RopePairing::interleaved}) {
      Page<R, T> page({.group_size = group, .pairing = pairing}, test::normal_rows(2 * group, dim, 3), dim);
      CAPTURE(group, static_cast<int>(pairing));
      test::require_folds(page);
      test::require_same_alone(page);
    }
}

TEST_CASE("polar: pairs err by half a bin of their length and angle", "[quant][polar]") {
  for (const bool centered : {false, true}) {
    constexpr index_t dim = 64, slots = 256;
    const std::vector<float> x = test::normal_rows(slots, dim, 4);
    Page<4, 4> page({.centered = centered}, x, dim);
    const std::vector<float> back = page.decoded();
    prim::cpu::PolarGroup group;
    for (index_t t = 0; t < slots; ++t) {
      prim::cpu::PolarPage<4, 4>{page.codec, page.span()}.read_group(t, group);
      for (index_t j = 0; j < dim / 2; ++j) {
        const auto a = static_cast<std::size_t>(t * dim + j), b = a + dim / 2;
        const auto was = prim::polar_point(x[a], x[b]), is = prim::polar_point(back[a], back[b]);
        double turn = std::abs(static_cast<double>(was.angle) - static_cast<double>(is.angle));
        turn = std::min(turn, circle - turn);
        REQUIRE(turn <= 0.5 * static_cast<double>(group.angle_scale[j]) + 5e-3);
        REQUIRE(std::abs(was.length - is.length) <= 0.5f * group.length_scale[j] + 5e-3f);
      }
    }
  }
}

TEST_CASE("polar: a cut opposite to the mean direction keeps angles around 0 together", "[quant][polar]") {
  constexpr index_t dim = 64, slots = 256;
  const auto error = [&](bool centered, double first) {
    const std::vector<float> x = turning(slots, dim, first);
    Page<4, 4> page(Polar<4, 4>{.centered = centered}.key_codec(), x, dim);
    const std::vector<float> back = page.decoded();
    double sum = 0.0;
    for (std::size_t i = 0; i < x.size(); ++i) sum += std::pow(static_cast<double>(x[i]) - static_cast<double>(back[i]), 2);
    return sum / static_cast<double>(x.size());
  };
  REQUIRE(error(true, 3.0) == Approx(error(false, 3.0)).epsilon(0.02));  // far from 0 the cut does not matter
  REQUIRE(error(true, 0.0) < 0.2 * error(false, 0.0));
  REQUIRE(error(true, 0.0) == Approx(error(true, 3.0)).epsilon(0.1));
}

TEST_CASE("polar: a pair of length 0 has no direction, and widens no range of angles", "[quant][polar]") {
  std::vector<float> x;
  for (int t = 0; t < 8; ++t) {
    const double angle = 2.0 + 0.1 * t;
    x.insert(x.end(), {static_cast<float>(2.0 * std::cos(angle)), static_cast<float>(2.0 * std::sin(angle))});
  }
  x[6] = x[7] = 0.0f;
  for (const bool centered : {false, true}) {
    Page<4, 4> page({.group_size = 8, .params = ParamType::f32, .centered = centered}, x, 2);
    prim::cpu::PolarGroup group;
    prim::cpu::PolarPage<4, 4>{page.codec, page.span()}.read_group(0, group);
    REQUIRE(group.angle_scale[0] == Approx(0.7 / 16).epsilon(1e-4));
    REQUIRE(std::hypot(page.decoded()[6], page.decoded()[7]) == Approx(2.0 / 32).epsilon(1e-4));  // the lowest bin's middle
  }
}

TEST_CASE("polar: more bits never err more", "[quant][polar]") {
  const std::vector<float> x = test::normal_rows(256, 128, 7);
  const auto error = [&]<int R, int T>() {
    const auto back = Page<R, T>({}, x, 128).decoded();
    double sum = 0.0;
    for (std::size_t i = 0; i < x.size(); ++i) sum += std::pow(static_cast<double>(x[i]) - static_cast<double>(back[i]), 2);
    return sum;
  };
  REQUIRE(error.operator()<4, 4>() < error.operator()<3, 4>());
  REQUIRE(error.operator()<3, 4>() < error.operator()<3, 3>());
  REQUIRE(error.operator()<3, 3>() < error.operator()<2, 2>());
}

TEST_CASE("polar: every half number, groups of one and numbers that are none", "[quant][polar]") {
  Page<4, 4> all({}, test::all_halves(64), 64);
  for (const float v : all.decoded()) REQUIRE(std::isfinite(v));
  REQUIRE(all.repaired >= 2 * 1024);  // and lengths beyond 65504
  const std::vector<float> x = test::normal_rows(64, 64, 9);
  Page<4, 4> alone({.group_size = 1}, x, 64);  // one angle, one length: what fp16 holds of them
  const auto one = alone.decoded();
  for (std::size_t i = 0; i < x.size(); ++i) REQUIRE(one[i] == Approx(x[i]).margin(0.02));

  std::vector<float> dirty = x;
  dirty[5 * 64 + 20] = std::numeric_limits<float>::quiet_NaN();
  dirty[6 * 64 + 20] = std::numeric_limits<float>::infinity();
  dirty[7 * 64 + 21] = -std::numeric_limits<float>::infinity();
  dirty[8 * 64 + 21] = 3e38f;
  const Polar<4, 4> polar{.group_size = 32};
  Page<4, 4> clean(polar.key_codec(), x, 64), bad(polar.key_codec(), dirty, 64);
  REQUIRE(bad.repaired == 4);
  const auto a = clean.decoded(), b = bad.decoded();
  for (std::size_t i = 0; i < x.size(); ++i) {
    REQUIRE(std::isfinite(b[i]));
    const bool touched = i < 32 * 64 && (i % 32 == 20 || i % 32 == 21);
    if (!touched) REQUIRE(a[i] == b[i]);
  }
  REQUIRE(b[6 * 64 + 20] > 0.0f);  // an infinity keeps its direction as far as the group has it
  Page<4, 4> none(polar.key_codec(), std::vector<float>(32 * 64, std::numeric_limits<float>::quiet_NaN()), 64);
  REQUIRE(none.repaired == 32 * 64);
  for (const float v : none.decoded()) REQUIRE(v == 0.0f);
  Page<4, 4> huge({.group_size = 2, .params = ParamType::f32}, {1e30f, -1e30f, 1e-30f, 1e30f}, 2);
  for (const float v : huge.decoded()) REQUIRE(std::isfinite(v));
}

TEST_CASE("polar: coding group by group equals coding all at once", "[quant][polar]") {
  Page<3, 3> all({.group_size = 16}, test::normal_rows(64, 80, 13), 80), pieces(all.codec, test::normal_rows(64, 80, 14), 80);
  for (index_t at = 0; at < 64; at += 16)
    Page<3, 3>::Codec::encode(pieces.codec, pieces.span(), at, 16, {all.rows.data() + at * 80, 16, 80});
  REQUIRE(std::memcmp(all.bytes.data(), pieces.bytes.data(), all.bytes.size()) == 0);
}

TEST_CASE("polar: bits per number are the published ones", "[quant][polar][oracle]") {
  const auto o = test::load_oracle("quantization.json", "Z_effective_bits");
  REQUIRE(test::bits_per_number(Polar<4, 4>{}.key_codec(), 128) ==
          o.at("PolarQuant RoPE pairs r4 t4 G128, 4 fp16 params per pair-channel").get<double>());
  REQUIRE(test::bits_per_number(Polar<3, 3>{}.key_codec(), 128) == 3.25);
}

TEST_CASE("polar: keys flush in groups, values never, and settings that fit nothing are refused", "[quant][polar]") {
  static_assert(Polar<4, 4>{}.key_flush().block == 128 && Polar<4, 4>{}.value_flush().block == 0);
  static_assert(Polar<4, 4>{.keep_window = 3}.key_flush().keep == 3);
  const auto refused = [](const Polar<4, 4>& p, index_t dim = 64) {
    return p.validate({.head_dim = dim, .value_dim = 64}) == Status::invalid_argument;
  };
  for (const index_t dim : {2, 64, 80, 96, 112, 128, 256}) REQUIRE_FALSE(refused({}, dim));
  for (const index_t dim : {1, 65}) REQUIRE(refused({}, dim));
  for (const index_t group : {-8, 0, 24, 512}) REQUIRE(refused({.group_size = group}));
  REQUIRE(refused({.keep_window = -1}));
  REQUIRE(refused({.sinks = -1}));
  REQUIRE(PolarPairs<4, 4>{}.fingerprint() != PolarPairs<3, 4>{}.fingerprint());
  REQUIRE(PolarPairs<4, 4>{}.fingerprint() != PolarPairs<4, 4>{.pairing = RopePairing::interleaved}.fingerprint());
}
