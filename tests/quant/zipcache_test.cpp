#include <algorithm>
#include <limits>
#include <numeric>
#include <vector>

#include <catch2/catch.hpp>

#include <kvcondense/evict/tova.hpp>
#include <kvcondense/quant/zipcache.hpp>

#include <quant/mixed_rows.hpp>
#include <support/cache_rig.hpp>
#include <support/naive_cache.hpp>

using namespace kvcondense;

namespace {

std::vector<float> random_scores(index_t n, std::uint64_t seed) {
  std::vector<float> s(static_cast<std::size_t>(n));
  test::fill_uniform(s.data(), s.size(), seed);
  return s;
}

using KeyCodec = decltype(quant::ZipCache<>{}.key_codec());
using ValueCodec = decltype(quant::ZipCache<>{}.value_codec().codec);

}  // namespace

TEST_CASE("zipcache: the highest scores of every block are in the better class, NaN never, of equal ones the newer", "[quant][zipcache]") {
  const quant::ZipCache<> zip{.salient = 0.25, .block = 16};
  auto scores = random_scores(48, 3);
  scores[5] = std::numeric_limits<float>::quiet_NaN();
  std::fill(scores.begin() + 32, scores.end(), 0.5f);  // the third block: all equal
  const test::MixedPage<ValueCodec> page(zip.value_codec().codec, 64, 48, scores);
  for (index_t b = 0; b < 3; ++b) {
    std::vector<index_t> order(16);
    std::iota(order.begin(), order.end(), b * 16);
    std::stable_sort(order.begin(), order.end(), [&](index_t i, index_t j) {
      const float a = scores[static_cast<std::size_t>(i)], c = scores[static_cast<std::size_t>(j)];
      if (std::isnan(a) || std::isnan(c)) return !std::isnan(a);
      return a != c ? a > c : i > j;
    });
    for (std::size_t i = 0; i < 16; ++i) REQUIRE(page.high(order[i]) == (i < 4));
  }
  double high = 0, low = 0;
  for (index_t s = 0; s < 48; ++s) (page.high(s) ? high : low) += page.error(s);
  REQUIRE(high / 12 < low / 36 / 10);
}

TEST_CASE("zipcache: any part of a page folds to what its rows give, in both layouts", "[quant][zipcache]") {
  const index_t dim = GENERATE(64, 80, 96, 112, 128, 256);
  const index_t queries = GENERATE(1, 3, 7, 16, 32);
  const quant::ZipCache<> zip{.block = 32};
  const auto scores = random_scores(96, 9);
  const test::MixedPage<KeyCodec> keys(zip.key_codec(), dim, 96, scores);
  const test::MixedPage<ValueCodec> values(zip.value_codec().codec, dim, 96, scores);
  for (const auto& [first, count] : {std::pair<index_t, index_t>{0, 96}, {5, 1}, {31, 2}, {40, 50}}) {
    keys.require_fold(first, count, queries);
    values.require_fold(first, count, queries);
  }
}

TEST_CASE("zipcache: bits per number count classes, parameters and the map", "[quant][zipcache]") {
  const quant::ZipCache<> zip{.salient = 0.5, .block = 64};
  // 32 tokens of 4 bits, 32 of 2; per class two halves for each of 128 channels; 64 bits of map.
  REQUIRE(zip.key_codec().page_bytes(128, 128) == 2 * (8 + 32 * 64 + 512 + 32 * 32 + 512));
  REQUIRE(zip.value_codec().page_bytes(128, 128) == 2 * (8 + 32 * 68 + 32 * 36));
}

TEST_CASE("zipcache: what the newest queries look at is stored better, over the whole prompt", "[quant][zipcache][cache]") {
  const auto [heads, groups, dim] = GENERATE(table<index_t, index_t, index_t>({{2, 1, 64}, {1, 3, 80}, {2, 4, 128}, {1, 16, 96}}));
  const CacheShape shape{.q_heads = heads * groups, .kv_heads = heads, .head_dim = dim};
  test::CacheRig rig(shape, recipe(quant::ZipCache<>{.salient = 0.125, .block = 32}), 160, 128);
  std::mt19937 random(6);
  test::Tokens t(shape, 128, random, 0.3f);
  // Every query looks at tokens 3, 40 and 77: they share a direction.
  for (index_t q = 0; q < shape.q_heads; ++q)
    for (index_t i = 0; i < 128; ++i) t.q[static_cast<std::size_t>((q * 128 + i) * dim)] = 9.0f;
  for (index_t h = 0; h < heads; ++h)
    for (const index_t i : {3, 40, 77}) t.k[static_cast<std::size_t>((h * 128 + i) * dim)] = 6.0f;
  std::vector<float> out(static_cast<std::size_t>(shape.q_heads * 128 * dim));
  REQUIRE(rig.cache.forward(rig.ctx, 0, t.queries(shape), t.keys(shape), t.values(shape), dense_view(out.data(), shape.q_heads, 128, dim)) == Status::ok);
  REQUIRE(rig.cache.layers()[0].heads[0].keys.coded().live() == 128);
  std::vector<float> k(static_cast<std::size_t>(128 * dim)), v = k;
  for (index_t h = 0; h < heads; ++h) {
    REQUIRE(rig.cache.read(0, h, 0, test::view2(k.data(), 128, dim), test::view2(v.data(), 128, dim)) == Status::ok);
    double looked = 0, others = 0;
    for (index_t i = 0; i < 128; ++i)
      for (index_t d = 0; d < dim; ++d) {
        const double e = std::pow(static_cast<double>(v[static_cast<std::size_t>(i * dim + d)] - t.values(shape)(h, i, d)), 2);
        (i == 3 || i == 40 || i == 77 ? looked : others) += e;
      }
    REQUIRE(looked / 3 < others / 125 / 5);
  }
}

TEST_CASE("zipcache: the queries of earlier steps judge tokens that come one by one", "[quant][zipcache][cache]") {
  const CacheShape shape{.q_heads = 2, .kv_heads = 1, .head_dim = 64};
  const auto bytes = [&](quant::ZipCache<> zip) {
    test::CacheRig rig(shape, recipe(zip), 120, 8);
    std::mt19937 random(2);
    std::vector<float> out(128);
    for (int i = 0; i < 100; ++i) {
      const test::Tokens t(shape, 1, random);
      REQUIRE(rig.cache.forward(rig.ctx, 0, t.queries(shape), t.keys(shape), t.values(shape), dense_view(out.data(), 2, 1, 64), {}, Phase::decode) == Status::ok);
    }
    REQUIRE(rig.cache.layers()[0].heads[0].keys.coded().live() == 96);
    std::vector<float> k(64 * 100), v = k;
    REQUIRE(rig.cache.read(0, 0, 0, test::view2(k.data(), 100, 64), test::view2(v.data(), 100, 64)) == Status::ok);
    return v;
  };
  const auto usual = bytes({.salient = 0.25, .block = 16, .history = 32});
  REQUIRE(bytes({.salient = 0.25, .block = 16, .history = 32}) == usual);
  REQUIRE(bytes({.salient = 0.5, .block = 16, .history = 32}) != usual);
  REQUIRE(bytes({.salient = 0.25, .block = 16, .newest = 1.0, .history = 32}) != usual);
  REQUIRE(bytes({.salient = 0.25, .block = 16, .history = 32, .scale_values = false}) != usual);
  REQUIRE(bytes({.salient = 0.25, .block = 16, .random = 0.9, .history = 32}) != usual);
  REQUIRE(bytes({.salient = 0.25, .block = 16, .newest = 0.5, .history = 4}) != bytes({.salient = 0.25, .block = 16, .newest = 0.5, .history = 32}));
  REQUIRE(bytes({.salient = 0.25, .block = 16, .random = 0.5, .history = 32, .seed = 9}) != bytes({.salient = 0.25, .block = 16, .random = 0.5, .history = 32}));
}

TEST_CASE("zipcache: bad fields are refused", "[quant][zipcache]") {
  const CacheShape shape{.head_dim = 128};
  using Zip = quant::ZipCache<>;
  REQUIRE(Zip{}.validate(shape) == Status::ok);
  for (const Zip& bad : {Zip{.salient = 0.0}, Zip{.salient = 1.0}, Zip{.salient = 0.99}, Zip{.block = 48}, Zip{.block = 1}, Zip{.block = 512},
                         Zip{.newest = 0.0}, Zip{.newest = 1.5}, Zip{.random = -0.1}, Zip{.history = 0}, Zip{.keep_window = -1}, Zip{.sinks = -1}})
    REQUIRE(bad.validate(shape) == Status::invalid_argument);
  REQUIRE(Zip{.block = 256}.validate({.head_dim = 256}) == Status::invalid_argument);  // more than a coder holds
  REQUIRE(Zip{.block = 128}.validate({.head_dim = 256}) == Status::ok);
  // Queries that nobody gives are missed by name.
  test::CacheRig rig(shape, recipe(Zip{.block = 4}), 20, 8);
  std::mt19937 random(2);
  const test::Tokens t(shape, 8, random);
  REQUIRE(rig.cache.append(rig.ctx, 0, t.keys(shape), t.values(shape)) == Status::ok);
  REQUIRE(std::string(rig.cache.missing(0, StepInputs{})) == "queries");
  REQUIRE(rig.cache.step(rig.ctx, 0, StepInputs{}) == Status::missing_input);
  REQUIRE(rig.cache.pending() == 8);
}
