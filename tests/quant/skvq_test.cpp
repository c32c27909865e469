#include <cmath>
#include <limits>
#include <vector>

#include <catch2/catch.hpp>

#include <kvcondense/cpu.hpp>
#include <kvcondense/quant/channel_clusters.hpp>
#include <kvcondense/quant/group_int.hpp>
#include <kvcondense/quant/skvq.hpp>

#include <quant/codec_page.hpp>
#include <support/cache_rig.hpp>
#include <support/naive_cache.hpp>
#include <support/oracle.hpp>

using namespace kvcondense;
using prim::ClusterParam;
using prim::ClusterRows;
using prim::GroupForm;
using quant::Skvq;

namespace {

using Page = test::CodecPage<ClusterRows>;

double mean_square(const std::vector<float>& a, const std::vector<float>& b) {
  double sum = 0;
  for (std::size_t i = 0; i < a.size(); ++i) sum += std::pow(static_cast<double>(a[i]) - static_cast<double>(b[i]), 2);
  return sum / static_cast<double>(a.size());
}

int code(const Page& p, index_t slot, index_t k) {
  const std::byte* row = p.bytes.data() + slot * p.codec.row_bytes(p.dim);
  if (p.codec.levels == 3) return static_cast<int>(prim::Trit5{}.get(row, k));
  int c = 0;
  for (int b = 0; b < p.codec.bits(); ++b) {
    const index_t bit = k * p.codec.bits() + b;
    c |= (static_cast<int>(row[bit / 8]) >> (bit % 8) & 1) << b;
  }
  return c;
}

/// Three groups of uneven sizes, none of neighbours.
std::vector<float> scattered(index_t dim) {
  std::vector<float> c(static_cast<std::size_t>(dim));
  for (std::size_t i = 0; i < c.size(); ++i) c[i] = i % 7 == 3 ? 0.0f : i % 2 == 0 ? 2.0f : 1.0f;
  return c;
}

}  // namespace

TEST_CASE("skvq: clipped codes, ternary codes and their errors are the worked example's", "[quant][skvq][oracle]") {
  const auto o = test::load_oracle("quantization.json", "P_skvq_clip_and_ternary");
  const auto x = test::floats(o.at("x"));
  for (const double clip : {1.0, 0.9, 0.6}) {
    const auto& want = o.at("clip").at("clip" + std::string(clip == 1.0 ? "1.0" : clip == 0.9 ? "0.9" : "0.6"));
    Page page({.levels = 4, .clip = static_cast<float>(clip), .params = ClusterParam::f32}, x, 8);
    float params[2];
    std::memcpy(params, page.bytes.data() + 2, sizeof params);
    REQUIRE(params[0] == Approx(want.at("scale").get<double>()).epsilon(1e-6));
    REQUIRE(params[1] == Approx(want.at("min").get<double>()).epsilon(1e-6));
    for (index_t c = 0; c < 8; ++c) REQUIRE(code(page, 0, c) == want.at("codes")[static_cast<std::size_t>(c)].get<int>());
    REQUIRE(mean_square(x, page.decoded()) == Approx(want.at("mse").get<double>()).epsilon(1e-5));
  }
  const auto& want = o.at("ternary_1.5bit");
  Page page({.levels = 3, .params = ClusterParam::f32}, x, 8);
  float params[2];
  std::memcpy(params, page.bytes.data() + 2, sizeof params);
  REQUIRE(params[0] == Approx(want.at("scale").get<double>()).epsilon(1e-6));
  REQUIRE(params[1] == Approx(want.at("min").get<double>()).epsilon(1e-6));
  for (index_t c = 0; c < 8; ++c) REQUIRE(code(page, 0, c) == want.at("codes")[static_cast<std::size_t>(c)].get<int>());
}

TEST_CASE("skvq: every group of five ternary codes comes back", "[quant][skvq]") {
  for (int n = 0; n < 243; ++n) {
    std::vector<float> x = {0.0f, 1.0f, 2.0f};
    for (int k = 0, rest = n; k < 5; ++k, rest /= 3) x.push_back(static_cast<float>(rest % 3));
    Page page({.levels = 3, .params = ClusterParam::f32}, x, 8);
    REQUIRE(page.decoded() == x);
  }
}

TEST_CASE("skvq: attention over groups of any channels equals attention over what they decode to", "[quant][skvq]") {
  const index_t dim = GENERATE(7, 64, 80, 96, 112, 128, 256);
  const int levels = GENERATE(2, 3, 4, 8, 16);
  const auto params = GENERATE(ClusterParam::f16, ClusterParam::f32, ClusterParam::e4m3);
  const auto clusters = scattered(dim);
  for (const bool scatter : {false, true}) {
    CAPTURE(dim, levels, scatter);
    ClusterRows codec{.levels = levels, .clip = 0.9f, .params = params, .group_size = 24};
    if (scatter) codec.cluster = clusters.data(), codec.channels = static_cast<std::int32_t>(dim);
    Page page(codec, test::normal_rows(21, dim, 3), dim);
    REQUIRE(page.repaired == 0);
    test::require_folds(page);
    test::require_same_alone(page);
    codec.form = GroupForm::integer_zero;
    Page zeros(codec, test::normal_rows(21, dim, 3), dim);
    test::require_folds(zeros);
  }
}

TEST_CASE("skvq: groups of neighbours in fp16 are those of group_int, number for number", "[quant][skvq]") {
  const auto rows = test::normal_rows(40, 96, 8);
  const auto form = GENERATE(GroupForm::minimum, GroupForm::integer_zero);
  test::CodecPage<prim::GroupInt<2>> want({.group_size = 32, .form = form}, rows, 96);
  Page page({.levels = 4, .form = form, .group_size = 32}, rows, 96);
  REQUIRE(page.decoded() == want.decoded());
  // The order in which channels are named changes nothing, whatever lies where.
  std::vector<float> turned(96), moved(rows.size());
  for (std::size_t c = 0; c < 96; ++c) turned[c] = static_cast<float>(c % 3);
  for (std::size_t t = 0; t < 40; ++t)
    for (std::size_t c = 0; c < 96; ++c) moved[t * 96 + c % 32 * 3 + c / 32] = rows[t * 96 + c];
  Page other({.levels = 4, .form = form, .cluster = turned.data(), .channels = 96}, moved, 96);
  const auto a = page.decoded(), b = other.decoded();
  for (std::size_t t = 0; t < 40; ++t)
    for (std::size_t c = 0; c < 96; ++c) REQUIRE(b[t * 96 + c % 32 * 3 + c / 32] == a[t * 96 + c]);
}

TEST_CASE("skvq: scales in e4m3 are rounded up, and numbers are coded by what is stored", "[quant][skvq]") {
  const auto x = test::normal_rows(500, 64, 4);
  for (const int levels : {2, 3, 4, 16}) {
    Page page({.levels = levels, .params = ClusterParam::e4m3, .group_size = 64}, x, 64);
    const auto back = page.decoded();
    for (index_t t = 0; t < 500; ++t) {
      const std::byte* at = page.bytes.data() + t * page.codec.row_bytes(64) + page.codec.code_bytes(64);
      const float scale = prim::mini_float_value(prim::float_e4m3, static_cast<std::uint32_t>(at[0]));
      const float least = prim::mini_float_value(prim::float_e4m3, static_cast<std::uint32_t>(at[1]));
      const auto [lo, hi] = std::minmax_element(x.begin() + t * 64, x.begin() + (t + 1) * 64);
      const double range = (static_cast<double>(*hi) - static_cast<double>(*lo)) / (levels - 1);
      REQUIRE(static_cast<double>(scale) >= range);
      REQUIRE(static_cast<double>(scale) <= range * 1.126);
      for (index_t c = 0; c < 64; ++c) {
        const auto i = static_cast<std::size_t>(t * 64 + c);
        // Nothing but what the rounded minimum cuts off errs by more than half a step.
        const double cut = std::max({0.0, static_cast<double>(least) - static_cast<double>(x[i]),
                                     static_cast<double>(x[i]) - static_cast<double>(least) - (levels - 1) * static_cast<double>(scale)});
        REQUIRE(std::fabs(static_cast<double>(back[i]) - static_cast<double>(x[i])) <= std::max(cut, static_cast<double>(scale) / 2) * (1 + 1e-5));
      }
    }
  }
}

TEST_CASE("skvq: constant groups, every half number and numbers that are none", "[quant][skvq]") {
  const float inf = std::numeric_limits<float>::infinity(), nan = std::numeric_limits<float>::quiet_NaN();
  const ClusterRows codec{.levels = 4, .clip = 0.5f};
  REQUIRE(Page(codec, std::vector<float>(16, 1.5f), 8).decoded() == std::vector<float>(16, 1.5f));
  REQUIRE(Page(codec, std::vector<float>(16, 0.0f), 8).decoded() == std::vector<float>(16, 0.0f));
  REQUIRE(Page({.levels = 3, .params = ClusterParam::e4m3}, std::vector<float>(8, 1.5f), 8).decoded() == std::vector<float>(8, 1.5f));
  Page bad({.levels = 4}, {1, nan, -2, inf, 3, -inf, 0, 0.5f}, 8), good({.levels = 4}, {1, 0, -2, 3, 3, -2, 0, 0.5f}, 8);
  REQUIRE(bad.repaired == 3);
  REQUIRE(good.repaired == 0);
  REQUIRE(bad.decoded() == good.decoded());
  REQUIRE(Page({.levels = 4}, std::vector<float>(8, nan), 8).decoded() == std::vector<float>(8, 0.0f));
  REQUIRE(Page({.levels = 4, .params = ClusterParam::e4m3}, {0, 0, 0, 0, 0, 0, 0, 6e4f}, 8).repaired == 1);
  for (const auto params : {ClusterParam::f16, ClusterParam::e4m3})
    for (const auto form : {GroupForm::minimum, GroupForm::integer_zero})
      for (const int levels : {3, 4}) {
        Page halves({.levels = levels, .clip = 0.9f, .form = form, .params = params}, test::all_halves(64), 64);
        for (const float x : halves.decoded()) REQUIRE(std::isfinite(x));
      }
}

TEST_CASE("skvq: slots move", "[quant][skvq]") {
  Page a({.levels = 3}, test::normal_rows(5, 80, 1), 80), b({.levels = 3}, test::normal_rows(7, 80, 2), 80);
  Page::Codec::move(a.codec, b.span(), 6, a.span(), 2);
  REQUIRE(b.decoded(6, 1) == a.decoded(2, 1));
  REQUIRE(b.bytes.ok());
}

TEST_CASE("skvq: bits per number are the published ones", "[quant][skvq][oracle]") {
  const auto z = test::load_oracle("quantization.json", "Z_effective_bits");
  const CacheShape shape{.head_dim = 128};
  REQUIRE(test::bits_per_number(Skvq{}.key_codec(shape, {}), 128) == z.at("SKVQ b2 G128 fp8 scale+zero").get<double>());
  // Ternary codes are 1.6 bits where five divide a row: of 128 numbers two go without.
  const ClusterRows ternary{.levels = 3, .params = ClusterParam::e4m3, .group_size = 128};
  REQUIRE(static_cast<double>(ternary.code_bytes(125)) * 8 / 125 == 1.6);
  REQUIRE(test::bits_per_number(ternary, 128) - z.at("SKVQ ternary 5-per-byte, G128, fp8").get<double>() == Approx(2 * 1.6 / 128));
}

TEST_CASE("skvq: clusters of each head group its channels, in a cache and in what comes back", "[quant][skvq][cache]") {
  const CacheShape shape{.layers = 2, .q_heads = 6, .kv_heads = 2, .head_dim = 64};
  // Strong channels that differ from head to head.
  const auto strong = [](index_t layer, index_t head, index_t c) { return (c + 5 * head + 11 * layer) % 4 == 0; };
  std::mt19937 random(2);
  const auto error = [&](const HeadRows& clusters) {
    const Skvq skvq{.key_clip = 1.0f, .value_clip = 1.0f, .group_size = 16, .window = 4, .sinks = 2, .key_clusters = clusters, .value_clusters = clusters};
    REQUIRE(skvq.validate(shape) == Status::ok);
    test::CacheRig rig(shape, recipe(skvq), 220, 200);
    double off = 0;
    for (const index_t layer : {0, 1}) {
      std::mt19937 same(3);
      test::Tokens t(shape, 200, same);
      for (index_t h = 0; h < 2; ++h)
        for (index_t i = 0; i < 200; ++i)
          for (index_t c = 0; c < 64; ++c)
            if (strong(layer, h, c)) {
              t.k[static_cast<std::size_t>((h * 200 + i) * 64 + c)] *= 20.0f;
              t.v[static_cast<std::size_t>((h * 200 + i) * 64 + c)] *= 20.0f;
            }
      REQUIRE(rig.cache.append(rig.ctx, layer, t.keys(shape), t.values(shape)) == Status::ok);
      REQUIRE(rig.cache.step(rig.ctx, layer) == Status::ok);
      std::vector<float> k(200 * 64), v = k;
      for (index_t h = 0; h < 2; ++h) {
        REQUIRE(rig.cache.read(layer, h, 0, test::view2(k.data(), 200, 64), test::view2(v.data(), 200, 64)) == Status::ok);
        for (index_t i = 0; i < 200; ++i)
          for (index_t c = 0; c < 64; ++c)
            if (!strong(layer, h, c)) off += std::pow(static_cast<double>(k[static_cast<std::size_t>(i * 64 + c)] - t.k[static_cast<std::size_t>((h * 200 + i) * 64 + c)]), 2);
      }
      REQUIRE(rig.cache.layers()[layer].heads[0].keys.coded().live() == 194);
    }
    return off;
  };
  std::vector<float> table(2 * 2 * 64);
  for (index_t l = 0; l < 2; ++l)
    for (index_t h = 0; h < 2; ++h)
      for (index_t c = 0; c < 64; ++c) table[static_cast<std::size_t>((l * 2 + h) * 64 + c)] = strong(l, h, c) ? 1.0f : 0.0f;
  REQUIRE(error({table.data(), 2, 2, 64}) < error({}) / 10);
  std::swap_ranges(table.begin(), table.begin() + 64, table.begin() + 64);  // those of another head help little
  REQUIRE(error({table.data(), 2, 2, 64}) > error({}) / 10);
}

TEST_CASE("skvq: settings that fit nothing are refused", "[quant][skvq]") {
  const CacheShape shape{.layers = 1, .head_dim = 64};
  REQUIRE(Skvq{}.validate(shape) == Status::ok);
  REQUIRE(Skvq{.key_levels = 5}.validate(shape) == Status::invalid_argument);
  REQUIRE(Skvq{.value_levels = 1}.validate(shape) == Status::invalid_argument);
  REQUIRE(Skvq{.key_clip = 0.0f}.validate(shape) == Status::invalid_argument);
  REQUIRE(Skvq{.value_clip = 1.5f}.validate(shape) == Status::invalid_argument);
  REQUIRE(Skvq{.group_size = 0}.validate(shape) == Status::invalid_argument);
  REQUIRE(Skvq{.group_size = 1}.validate(shape) == Status::invalid_argument);  // more groups than there may be
  REQUIRE(Skvq{.group_size = 2}.validate(shape) == Status::ok);
  REQUIRE(Skvq{.window = -1}.validate(shape) == Status::invalid_argument);
  REQUIRE(Skvq{.sinks = -1}.validate(shape) == Status::invalid_argument);
  std::vector<float> c(64, 0.0f);
  c[3] = 1.0f;
  const auto with = [&](index_t numbers) { return Skvq{.key_clusters = {c.data(), 1, 1, numbers}}.validate(shape); };
  REQUIRE(with(64) == Status::ok);
  REQUIRE(with(32) == Status::invalid_argument);
  c[3] = 2.0f;  // nobody is in group 1
  REQUIRE(with(64) == Status::invalid_argument);
  c[3] = 0.5f;
  REQUIRE(with(64) == Status::invalid_argument);
  c[3] = -1.0f;
  REQUIRE(with(64) == Status::invalid_argument);
  c[3] = 40.0f;
  REQUIRE(with(64) == Status::invalid_argument);
  c[3] = std::numeric_limits<float>::quiet_NaN();
  REQUIRE(with(64) == Status::invalid_argument);
}
