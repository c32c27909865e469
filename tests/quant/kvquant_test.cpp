#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include <catch2/catch.hpp>

#include <kvcondense/cpu.hpp>
#include <kvcondense/quant/kvquant.hpp>
#include <kvcondense/quant/level_search.hpp>

#include <quant/codec_page.hpp>
#include <support/cache_rig.hpp>
#include <support/naive_cache.hpp>
#include <support/oracle.hpp>

using namespace kvcondense;
using prim::NuqRows;
using quant::KvQuant;

namespace {

using Page = test::CodecPage<NuqRows>;

double mean_square(const std::vector<float>& a, const std::vector<float>& b) {
  double sum = 0;
  for (std::size_t i = 0; i < a.size(); ++i) sum += std::pow(static_cast<double>(a[i]) - static_cast<double>(b[i]), 2);
  return sum / static_cast<double>(a.size());
}

int code(const Page& p, index_t slot, index_t c) {
  const std::byte* row = p.bytes.data() + slot * p.codec.row_bytes(p.dim);
  int out = 0;
  for (int b = 0; b < p.codec.bits; ++b) {
    const index_t bit = c * p.codec.bits + b;
    out |= (static_cast<int>(row[bit / 8]) >> (bit % 8) & 1) << b;
  }
  return out;
}

/// Thresholds that few normal numbers pass, different in every channel.
struct Thresholds {
  std::vector<float> lower, upper;
  explicit Thresholds(index_t dim) {
    for (index_t c = 0; c < dim; ++c) {
      lower.push_back(-2.0f - 0.01f * static_cast<float>(c % 9));
      upper.push_back(1.8f + 0.02f * static_cast<float>(c % 5));
    }
  }
  NuqRows codec(int bits, int outliers) const {
    return {bits, outliers, static_cast<std::int32_t>(lower.size()), lower.data(), upper.data(), prim::normal_levels(bits)};
  }
};

NuqRows dynamic(int bits, int outliers) { return {bits, outliers, 0, nullptr, nullptr, prim::normal_levels(bits)}; }

}  // namespace

TEST_CASE("kvquant: codes, addends and numbers are the worked example's", "[quant][kvquant][oracle]") {
  const auto o = test::load_oracle("quantization.json", "K_kvquant_nuq");
  const auto lower = test::floats(o.at("thr_lower")), upper = test::floats(o.at("thr_upper")), x = test::floats(o.at("X"));
  const auto lut = test::floats(o.at("lut"));
  NuqRows codec{2, 1, 3, lower.data(), upper.data(), {}};
  std::copy(lut.begin(), lut.end(), codec.level.begin());
  for (index_t c = 0; c < 3; ++c) {
    REQUIRE(codec.middle(c) == Approx(o.at("offset")[static_cast<std::size_t>(c)].get<double>()));
    REQUIRE(codec.half(c) == Approx(o.at("half_range")[static_cast<std::size_t>(c)].get<double>()));
  }
  Page page(codec, x, 3);
  REQUIRE(page.repaired == 0);
  const auto total = test::floats(o.at("deployment_total")), addend = test::floats(o.at("deployment_sparse_addend"));
  const auto simulated = test::floats(o.at("simulated_dequant")), back = page.decoded();
  for (index_t t = 0; t < 4; ++t)
    for (index_t c = 0; c < 3; ++c) {
      const auto i = static_cast<std::size_t>(t * 3 + c);
      REQUIRE(code(page, t, c) == o.at("codes_deployment")[static_cast<std::size_t>(t)][static_cast<std::size_t>(c)].get<int>());
      REQUIRE(back[i] == Approx(total[i]).epsilon(1e-3).margin(1e-6));
      REQUIRE(back[i] == Approx(simulated[i]).epsilon(1e-3).margin(1e-6));
      const index_t at = t * codec.row_bytes(3) + codec.addends_at(3);
      if (static_cast<index_t>(page.bytes[at + 2]) == c) REQUIRE(page.half_at(at) == Approx(addend[i]).epsilon(1e-3).margin(1e-6));
      else REQUIRE(addend[i] == 0.0f);
    }
}

TEST_CASE("kvquant: attention over codes and outliers equals attention over what they decode to", "[quant][kvquant]") {
  const index_t dim = GENERATE(9, 64, 80, 96, 112, 128, 256);
  const int bits = GENERATE(1, 2, 3, 4), outliers = GENERATE(0, 2, 6);
  CAPTURE(dim, bits, outliers);
  const Thresholds limits(dim);
  Page keys(limits.codec(bits, outliers), test::normal_rows(37, dim, 3), dim), values(dynamic(bits, outliers), test::normal_rows(37, dim, 4), dim);
  REQUIRE((keys.repaired == 0 && values.repaired == 0));
  test::require_folds(keys), test::require_folds(values);
  test::require_same_alone(keys), test::require_same_alone(values);
}

TEST_CASE("kvquant: what lies outside comes back as fp16 holds it, the farthest first", "[quant][kvquant]") {
  const index_t dim = 64;
  const Thresholds limits(dim);
  auto x = test::normal_rows(300, dim, 7);
  for (std::size_t i = 0; i < x.size(); ++i) x[i] *= i % 41 == 0 ? 5.0f : 1.0f;
  const int outliers = 4;
  const auto back = Page(limits.codec(3, outliers), x, dim).decoded();
  for (index_t t = 0; t < 300; ++t) {
    std::vector<std::pair<float, index_t>> far;
    for (index_t c = 0; c < dim; ++c) {
      const float v = x[static_cast<std::size_t>(t * dim + c)], low = limits.lower[static_cast<std::size_t>(c)], high = limits.upper[static_cast<std::size_t>(c)];
      if (v < low || v > high) far.emplace_back(-std::max(low - v, v - high), c);
    }
    std::sort(far.begin(), far.end());
    for (std::size_t e = 0; e < far.size(); ++e) {
      const auto i = static_cast<std::size_t>(t * dim + far[e].second);
      const auto c = static_cast<std::size_t>(far[e].second);
      if (e < outliers) REQUIRE(back[i] == Approx(x[i]).epsilon(1e-3).margin(2e-3));
      else REQUIRE(back[i] == Approx(x[i] < 0 ? limits.lower[c] : limits.upper[c]).epsilon(1e-5));
    }
  }
}

TEST_CASE("kvquant: a row's own range is that of its middle numbers", "[quant][kvquant]") {
  std::vector<float> x = test::normal_rows(1, 64, 7);
  x[3] = 90.0f, x[50] = 80.0f, x[7] = -70.0f, x[8] = -60.0f;
  Page page(dynamic(4, 4), x, 64);
  auto rest = x;
  for (const std::size_t i : {3, 50, 7, 8}) rest[i] = 0.0f;
  const auto [lo, hi] = std::minmax_element(rest.begin(), rest.end());
  REQUIRE(page.half_at(page.codec.code_bytes(64)) == Approx((*lo + *hi) / 2).margin(1e-3));
  REQUIRE(page.half_at(page.codec.code_bytes(64) + 2) == Approx((*hi - *lo) / 2).epsilon(1e-3));
  const auto back = page.decoded();
  for (const std::size_t i : {3, 50, 7, 8}) REQUIRE(back[i] == Approx(x[i]).epsilon(1e-3));
  REQUIRE(mean_square(x, back) < mean_square(x, Page(dynamic(4, 0), x, 64).decoded()) / 20);
}

TEST_CASE("kvquant: levels found for the numbers err less than normal ones, and those less than even ones", "[quant][kvquant]") {
  const index_t dim = 64;
  std::vector<float> x = test::normal_rows(2000, dim, 11), lower(64), upper(64);
  for (float& v : x) v = v * std::fabs(v);  // heavier tails
  std::vector<std::byte> room(std::size_t{1} << 23);
  REQUIRE(quant::find_thresholds({x.data(), {2000, dim}, {dim, 1}}, 0.02, lower, upper, Scratch{room}) == Status::ok);
  NuqRows codec{3, 2, 64, lower.data(), upper.data(), {}};
  std::vector<float> u;
  for (std::size_t i = 0; i < x.size(); ++i) {
    const auto c = static_cast<index_t>(i % 64);
    if (x[i] >= lower[i % 64] && x[i] <= upper[i % 64]) u.push_back((x[i] - codec.middle(c)) / codec.half(c));
  }
  double last = 0;
  for (const int kind : {0, 1, 2}) {
    if (kind == 0) REQUIRE(quant::fit_levels_1d(u, {}, {codec.level.data(), 8}, Scratch{room}) == Status::ok);
    if (kind == 1) codec.level = prim::normal_levels(3);
    for (std::size_t i = 0; i < 8 && kind == 2; ++i) codec.level[i] = static_cast<float>(i) / 3.5f - 1.0f;
    const double error = mean_square(x, Page(codec, x, dim).decoded());
    REQUIRE(error > last);
    last = error;
  }
}

TEST_CASE("kvquant: normal levels are quantiles", "[quant][kvquant]") {
  for (int bits = 1; bits <= 4; ++bits) {
    const auto level = prim::normal_levels(bits);
    const std::size_t n = std::size_t{1} << bits;
    REQUIRE(level[0] == -1.0f);
    REQUIRE(level[n - 1] == 1.0f);
    const double p = 0.5 / static_cast<double>(n);
    double lo = -9, hi = 9;
    for (int i = 0; i < 100; ++i) (std::erfc(-(lo + hi) / 2 / std::sqrt(2.0)) / 2 < 1 - p ? lo : hi) = (lo + hi) / 2;
    for (std::size_t i = 0; i < n; ++i) {
      REQUIRE(std::erfc(-static_cast<double>(level[i]) * lo / std::sqrt(2.0)) / 2 == Approx((static_cast<double>(i) + 0.5) / static_cast<double>(n)).epsilon(1e-5));
      REQUIRE(level[i] == Approx(-level[n - 1 - i]).margin(1e-7));
    }
  }
}

TEST_CASE("kvquant: constants, every half number and numbers that are none", "[quant][kvquant]") {
  const float inf = std::numeric_limits<float>::infinity(), nan = std::numeric_limits<float>::quiet_NaN();
  REQUIRE(Page(dynamic(3, 2), std::vector<float>(16, 1.5f), 8).decoded() == std::vector<float>(16, 1.5f));
  REQUIRE(Page(dynamic(3, 2), std::vector<float>(16, 0.0f), 8).decoded() == std::vector<float>(16, 0.0f));
  const std::vector<float> at(8, 2.0f);  // a channel that never moved
  REQUIRE(Page({2, 0, 8, at.data(), at.data(), prim::normal_levels(2)}, std::vector<float>(8, 2.0f), 8).decoded() == at);
  const Thresholds limits(8);
  for (const NuqRows& codec : {dynamic(3, 2), limits.codec(3, 2)}) {
    Page bad(codec, {1, nan, -2, inf, 3, -inf, 0, 0.5f}, 8), good(codec, {1, 0, -2, 3, 3, -3, 0, 0.5f}, 8);
    REQUIRE(bad.repaired == 3);
    REQUIRE(good.repaired == 0);
    REQUIRE(bad.decoded() == good.decoded());
    for (const float x : Page(codec, std::vector<float>(8, nan), 8).decoded()) REQUIRE(std::isfinite(x));
  }
  REQUIRE(Page(limits.codec(3, 2), {1e6f, 0, 0, 0, 0, 0, 0, 0}, 8).repaired == 1);  // an addend beyond fp16
  const Thresholds wide(64);
  for (const NuqRows& codec : {dynamic(4, 2), wide.codec(4, 2), dynamic(1, 0), wide.codec(2, 0)}) {
    Page halves(codec, test::all_halves(64), 64);
    for (const float x : halves.decoded()) REQUIRE(std::isfinite(x));
  }
}

TEST_CASE("kvquant: slots move, and damaged places stay inside the row", "[quant][kvquant]") {
  Page a(dynamic(3, 4), test::normal_rows(5, 80, 1), 80), b(dynamic(3, 4), test::normal_rows(7, 80, 2), 80);
  Page::Codec::move(a.codec, b.span(), 6, a.span(), 2);
  REQUIRE(b.decoded(6, 1) == a.decoded(2, 1));
  std::fill(b.bytes.begin(), b.bytes.end(), std::byte{0x3f});
  test::Guarded<float> out(80);
  Page::Codec::decode(b.codec, b.span(), 0, 1, {out.data(), 1, 80});
  std::fill_n(b.bytes.begin(), b.bytes.size(), std::byte{0xff});
  Page::Codec::decode(b.codec, b.span(), 0, 1, {out.data(), 1, 80});
  REQUIRE((out.ok() && b.bytes.ok()));
}

TEST_CASE("kvquant: bits per number are the published ones, with shorter places", "[quant][kvquant][oracle]") {
  const auto z = test::load_oracle("quantization.json", "Z_effective_bits");
  // Published: 32 bits for each of 1 % of all numbers. Ours: 24, for whole numbers of outliers per row.
  for (const int bits : {2, 3, 4}) {
    const Thresholds limits(200);
    const NuqRows codec = limits.codec(bits, 2);
    REQUIRE(test::bits_per_number(codec, 200) + 8.0 * 2 / 200 == Approx(z.at("KVQuant nuq" + std::to_string(bits) + (bits == 4 ? " + 1% (16b value+16b index)" : " + 1%")).get<double>()));
  }
  std::vector<float> low(128, -1.0f), high(128, 1.0f);
  const CacheShape shape{.head_dim = 128};
  const KvQuant stage{.key_lower = {low.data(), 1, 1, 128}, .key_upper = {high.data(), 1, 1, 128}};
  REQUIRE(test::bits_per_number(stage.key_codec(shape, {}), 128) == 4.375);
  REQUIRE(test::bits_per_number(stage.value_codec(shape, {}), 128) == 4.625);
}

TEST_CASE("kvquant: thresholds and levels of each head, in a cache", "[quant][kvquant][cache]") {
  const CacheShape shape{.layers = 2, .q_heads = 4, .kv_heads = 2, .head_dim = 64};
  std::mt19937 random(3);
  std::vector<float> lower(4 * 64), upper(4 * 64), levels(4 * 8), value_levels(4 * 8);
  std::vector<std::byte> room(std::size_t{1} << 23);
  std::vector<test::Tokens> tokens;
  const auto scale = [](index_t layer, index_t head, index_t c) { return std::exp2(static_cast<float>((c + 3 * head + 7 * layer) % 6)); };
  for (index_t l = 0; l < 2; ++l) {
    tokens.emplace_back(shape, 200, random);
    for (index_t h = 0; h < 2; ++h) {
      float* k = tokens.back().k.data() + h * 200 * 64;
      for (index_t i = 0; i < 200; ++i)
        for (index_t c = 0; c < 64; ++c) k[i * 64 + c] *= scale(l, h, c);
      const auto at = static_cast<std::size_t>(l * 2 + h);
      REQUIRE(quant::find_thresholds({k, {200, 64}, {64, 1}}, 0.01, {lower.data() + at * 64, 64}, {upper.data() + at * 64, 64}, Scratch{room}) == Status::ok);
      std::copy_n(prim::normal_levels(3).begin(), 8, levels.begin() + static_cast<std::ptrdiff_t>(at * 8));
      for (std::size_t i = 0; i < 8; ++i) value_levels[at * 8 + i] = static_cast<float>(i) / 3.5f - 1.0f;
    }
  }
  const auto error = [&](const KvQuant& stage) {
    REQUIRE(stage.validate(shape) == Status::ok);
    test::CacheRig rig(shape, recipe(stage), 220, 200);
    double off = 0;
    for (index_t l = 0; l < 2; ++l) {
      const test::Tokens& t = tokens[static_cast<std::size_t>(l)];
      REQUIRE(rig.cache.append(rig.ctx, l, t.keys(shape), t.values(shape)) == Status::ok);
      REQUIRE(rig.cache.step(rig.ctx, l) == Status::ok);
      std::vector<float> k(200 * 64), v = k;
      for (index_t h = 0; h < 2; ++h) {
        REQUIRE(rig.cache.read(l, h, 0, test::view2(k.data(), 200, 64), test::view2(v.data(), 200, 64)) == Status::ok);
        for (index_t i = 4; i < 200; ++i)
          for (index_t c = 0; c < 64; ++c)
            off += std::pow(static_cast<double>((k[static_cast<std::size_t>(i * 64 + c)] - t.k[static_cast<std::size_t>((h * 200 + i) * 64 + c)]) / scale(l, h, c)), 2) / (4 * 196 * 64);
      }
    }
    return off;
  };
  KvQuant stage{.bits = 3, .key_lower = {lower.data(), 2, 2, 64}, .key_upper = {upper.data(), 2, 2, 64}};
  const double own = error(stage);
  REQUIRE(own < 0.06);
  stage.key_levels = {levels.data(), 2, 2, 8};
  REQUIRE(error(stage) == own);  // the same levels, given
  stage.value_levels = {value_levels.data(), 2, 2, 8};
  REQUIRE(stage.value_codec(shape, {1, 1}).level[1] == value_levels[1]);
  // Those of another head fit badly.
  std::swap_ranges(lower.begin(), lower.begin() + 64, lower.begin() + 64);
  std::swap_ranges(upper.begin(), upper.begin() + 64, upper.begin() + 64);
  REQUIRE(error(stage) > 1.5 * own);
}

TEST_CASE("kvquant: settings that fit nothing are refused", "[quant][kvquant]") {
  const CacheShape shape{.head_dim = 64};
  std::vector<float> low(64, -1.0f), high(64, 1.0f), levels = {-1, -0.3f, 0.3f, 1};
  KvQuant good{.bits = 2, .key_lower = {low.data(), 1, 1, 64}, .key_upper = {high.data(), 1, 1, 64}, .key_levels = {levels.data(), 1, 1, 4}};
  REQUIRE(good.validate(shape) == Status::ok);
  REQUIRE(KvQuant{}.validate(shape) == Status::missing_input);
  REQUIRE(std::string(KvQuant{}.missing()) == "key_lower");
  REQUIRE(std::string(KvQuant{.key_lower = good.key_lower}.missing()) == "key_upper");
  const auto refused = [&](auto change) {
    KvQuant k = good;
    change(k);
    REQUIRE(k.validate(shape) == Status::invalid_argument);
  };
  refused([](KvQuant& k) { k.bits = 5; });
  refused([](KvQuant& k) { k.bits = 0; });
  refused([](KvQuant& k) { k.bits = 3; });  // four levels are too few
  refused([](KvQuant& k) { k.outliers = 0.6f; });
  refused([](KvQuant& k) { k.outliers = -0.1f; });
  refused([](KvQuant& k) { k.residual_window = -1; });
  refused([](KvQuant& k) { k.sinks = -1; });
  refused([](KvQuant& k) { k.key_upper.numbers = 32; });
  high[7] = -2.0f;
  refused([](KvQuant&) {});
  high[7] = std::numeric_limits<float>::quiet_NaN();
  refused([](KvQuant&) {});
  high[7] = 1.0f, levels[2] = -0.3f;
  refused([](KvQuant&) {});
}
