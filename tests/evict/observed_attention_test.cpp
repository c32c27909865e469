#include <algorithm>
#include <numeric>

#include <evict/properties.hpp>
#include <kvcondense/core/random.hpp>
#include <kvcondense/evict/observed_attention.hpp>
#include <support/naive_cache.hpp>

using namespace kvcondense;
using namespace kvcondense::test;

namespace {

std::vector<float> means(const std::vector<float>& sum, const std::vector<float>& rows) {
  std::vector<float> mean;
  for (std::size_t j = 0; j < sum.size(); ++j) mean.push_back(sum[j] / rows[j]);
  return mean;
}

}  // namespace

TEST_CASE("observed_attention: scores and kept sets equal the oracle", "[evict][observed_attention]") {
  const auto oracle = eviction_oracle("observed_attention");
  const FX1 fx;
  const double keep = 1.0 - oracle["params"]["compression_ratio"].get<double>();
  const bool chunks = GENERATE(false, true);
  CAPTURE(chunks);
  auto all = drive(fx.shape, evict::ObservedAttention{.keep = 1.0, .recent = 0});  // its lanes show all scores
  auto d = drive(fx.shape, evict::ObservedAttention{.keep = keep, .recent = 0});
  const auto step = [&](auto& driver) {
    index_t first = 0;
    if (chunks) {
      REQUIRE(driver.step(3, Phase::prefill_chunk, fx.mass(0, 3, with_new(driver.held, 0, 3))) == Status::ok);
      REQUIRE(!driver.fired);
      first = 3;
    }
    REQUIRE(driver.step(8 - first, Phase::prefill_end,
                        fx.mass(first, 8, with_new(driver.held, first, 8 - first))) == Status::ok);
  };
  step(all), step(d);
  for (index_t g = 0; g < 2; ++g) {
    const auto scores = means(all.lane[0][at(g)], all.exposed(1, g));
    for (index_t t = 0; t < 8; ++t) {
      REQUIRE(all.exposed(1, g)[at(t)] == static_cast<float>(8 - t));
      REQUIRE(scores[at(t)] == Approx(oracle["scores"][at(g)][at(t)].get<double>()).margin(2e-5));
    }
    REQUIRE(d.held[at(g)] == oracle["kept"][at(g)].get<Ints>());
  }
}

TEST_CASE("observed_attention: padding that is never appended is no row and no slot", "[evict][observed_attention]") {
  const auto oracle = eviction_oracle("block_left_padding");
  const FX1 fx;
  auto d = drive({}, evict::ObservedAttention{.keep = 1.0});
  const Ints real{2, 3, 4, 5, 6, 7};
  REQUIRE(d.step(6, Phase::prefill_end, [&](index_t, index_t token) {
    double sum = 0;
    for (index_t i = 2; i < 8; ++i) sum += fx.probabilities(0, i, real)[at(token)];
    return sum;
  }) == Status::ok);
  for (index_t t = 0; t < 6; ++t) {
    REQUIRE(d.exposed(1, 0)[at(t)] == oracle["exposures"][at(t + 2)].get<float>());
    REQUIRE(d.lane[0][0][at(t)] / d.exposed(1, 0)[at(t)] == Approx(oracle["exposure_mean"][at(t + 2)].get<double>()).margin(2e-5));
  }
}

TEST_CASE("observed_attention: in a cache, every group and head size keeps what the plain formula keeps",
          "[evict][observed_attention][cache]") {
  const index_t dim = GENERATE(64, 80, 128), group = GENERATE(1, 3, 4, 7);
  CAPTURE(dim, group);
  const CacheShape shape{.q_heads = 2 * group, .kv_heads = 2, .head_dim = dim, .dtype = DType::f32};
  const index_t n = 41;
  auto cache = make_cache<Cpu>(shape, recipe(evict::ObservedAttention{.keep = 0.3, .sinks = 1, .recent = 4}));
  REQUIRE(cache);
  std::mt19937 random(3);
  const Tokens t(shape, n, random);
  Workspace work;
  REQUIRE(work.reserve(cache->workspace_bytes(n, n)) == Status::ok);
  Context<Cpu> ctx(work.bytes());
  std::vector<float> out(at(shape.q_heads * n * dim));
  REQUIRE(cache->forward(ctx, 0, t.queries(shape), t.keys(shape), t.values(shape),
                         dense_view(out.data(), shape.q_heads, n, dim)) == Status::ok);
  for (index_t g = 0; g < 2; ++g) {
    std::vector<NaiveSlot> slots(at(n));
    for (index_t j = 0; j < n; ++j)
      for (index_t d = 0; d < dim; ++d) {
        slots[at(j)].k.push_back(t.keys(shape)(g, j, d));
        slots[at(j)].v.push_back(0.0);
      }
    std::vector<double> score(at(n));
    for (index_t h = g * group; h < (g + 1) * group; ++h)
      for (index_t i = 0; i < n; ++i) {
        std::vector<double> q;
        for (index_t d = 0; d < dim; ++d) q.push_back(t.queries(shape)(h, i, d));
        naive_attention(q, slots, i + 1, 1.0 / std::sqrt(static_cast<double>(dim)), 1, &score);
      }
    for (index_t j = 0; j < n; ++j) score[at(j)] /= static_cast<double>(n - j);
    Ints want(at(n - 5));
    std::iota(want.begin(), want.end(), 1);
    std::stable_sort(want.begin(), want.end(), [&](index_t a, index_t b) { return score[at(a)] > score[at(b)]; });
    want.resize(12 - 5);
    for (const index_t j : {0, 37, 38, 39, 40}) want.push_back(j);
    std::sort(want.begin(), want.end());
    Ints kept;
    for (index_t s = 0; s < cache->slots(0, g); ++s) kept.push_back(cache->token(0, g, s));
    REQUIRE(kept == want);
  }
}

TEST_CASE("observed_attention: generated tokens stay, and each is one more row for those before",
          "[evict][observed_attention]") {
  auto d = drive({}, evict::ObservedAttention{.keep = 0.5, .recent = 1});
  const PerToken mass = [](index_t, index_t t) { return t == 1 ? 9.0 : 1.0; };
  REQUIRE(d.step(6, Phase::prefill_end, mass) == Status::ok);
  REQUIRE(d.held[0] == Ints{1, 4, 5});  // 9/5, 1/2, and the newest
  REQUIRE(d.step(1, Phase::decode, mass) == Status::ok);
  REQUIRE(d.step(2, Phase::decode, mass) == Status::ok);
  REQUIRE(d.held[0] == Ints{1, 4, 5, 6, 7, 8});
  REQUIRE(d.exposed(1, 0) == std::vector<float>{8, 5, 4, 3, 2, 1});
}

TEST_CASE("observed_attention: ties keep the smaller slot, an empty head and one token are no trouble",
          "[evict][observed_attention]") {
  auto d = drive({.q_heads = 2, .kv_heads = 2}, evict::ObservedAttention{.keep = 0.5, .recent = 0});
  const PerToken level = [](index_t, index_t t) { return static_cast<double>(8 - t); };  // the same from every row
  REQUIRE(d.step(8, Phase::prefill_end, level) == Status::ok);
  REQUIRE(d.held == Rows{{0, 1, 2, 3}, {0, 1, 2, 3}});
  auto one = drive({}, evict::ObservedAttention{.keep = 0.5, .recent = 0});
  REQUIRE(one.step(1, Phase::prefill_end, level) == Status::ok);
  REQUIRE(one.held == Rows{{0}});
  auto none = drive({}, evict::ObservedAttention{});
  REQUIRE(none.step(0, Phase::prefill_end, level) == Status::ok);
  REQUIRE(none.held == Rows{{}});
}

TEST_CASE("observed_attention: keeps the promises of a pipeline", "[evict][observed_attention]") {
  check_promises(evict::ObservedAttention{.keep = 0.08, .sinks = 2, .recent = 4},
                 evict::ObservedAttention{.keep = 1.0, .sinks = 2, .recent = 4}, {.mark_lane = 1});
}

TEST_CASE("observed_attention: ratios and ends out of range are refused", "[evict][observed_attention]") {
  using O = evict::ObservedAttention;
  for (const double keep : {0.0, -0.5, 1.5, std::nan("")})
    REQUIRE(O{.keep = keep}.validate({}) == Status::invalid_argument);
  REQUIRE(O{.sinks = -1}.validate({}) == Status::invalid_argument);
  REQUIRE(O{.recent = -1}.validate({}) == Status::invalid_argument);
  REQUIRE(O{.keep = 1.0, .recent = 0}.validate({}) == Status::ok);
}
