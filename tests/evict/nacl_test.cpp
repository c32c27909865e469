#include <map>
#include <numeric>

#include <evict/properties.hpp>
#include <kvcondense/evict/nacl.hpp>

using namespace kvcondense;
using namespace kvcondense::test;
using evict::Nacl;

namespace {

/// What stays of n slots by the rule, in double: the best, then draws one after another by their ranks.
Ints plain(const Nacl& p, index_t layer, index_t head, const std::vector<double>& score) {
  const auto n = static_cast<index_t>(score.size());
  Ints kept, order;
  for (index_t j = 0; j < n; ++j) (j < p.sinks || j >= n - p.recent ? kept : order).push_back(j);
  const index_t places = p.tokens - static_cast<index_t>(kept.size());
  const auto drawn = static_cast<index_t>(std::floor(p.drawn * static_cast<double>(places) + 1e-6));
  const auto take = [&](index_t count, const auto& rank) {
    std::stable_sort(order.begin(), order.end(), [&](index_t a, index_t b) { return rank(a) > rank(b); });
    kept.insert(kept.end(), order.begin(), order.begin() + count);
    order.erase(order.begin(), order.begin() + count);
    std::sort(order.begin(), order.end());
  };
  take(places - drawn, [&](index_t j) { return score[at(j)]; });
  const std::uint64_t key = random_bits(random_bits(p.seed, static_cast<std::uint64_t>(layer)), static_cast<std::uint64_t>(head));
  take(drawn, [&](index_t j) {
    const double u = static_cast<double>(random_uniform(key, static_cast<std::uint64_t>(j))) + 0x1p-25;
    return score[at(j)] / static_cast<double>(p.temperature) - std::log(-std::log(u));
  });
  std::sort(kept.begin(), kept.end());
  return kept;
}

}  // namespace

TEST_CASE("nacl: without chance the best stay beside the ends, with nothing else whatever is drawn", "[evict][nacl]") {
  const double mass[] = {0, 5, 1, 4, 2, 3, 0, 0};
  auto d = drive({}, Nacl{.tokens = 5, .window = 2, .sinks = 1, .recent = 2, .drawn = 0.0});
  REQUIRE(d.step(8, Phase::prefill_end, [&](index_t, index_t t) { return mass[t]; }) == Status::ok);
  REQUIRE(d.held[0] == Ints{0, 1, 3, 6, 7});
  REQUIRE(d.pipeline.attention().of(8) == 2);
  for (const std::uint64_t seed : {1u, 2u, 3u, 4u}) {  // one of two places is drawn, the other is the best one's
    auto some = drive({}, Nacl{.tokens = 5, .window = 2, .sinks = 1, .recent = 2, .drawn = 0.5, .temperature = 1000.0f, .seed = seed});
    REQUIRE(some.step(8, Phase::prefill_end, [&](index_t, index_t t) { return mass[t]; }) == Status::ok);
    REQUIRE(some.held[0].size() == 5);
    REQUIRE(std::count(some.held[0].begin(), some.held[0].end(), 1) == 1);
  }
}

TEST_CASE("nacl: kept sets are those of the plain rule, in every group, layer and part", "[evict][nacl]") {
  const index_t group = GENERATE(1, 3, 7), layer = GENERATE(0, 3);
  const double drawn = GENERATE(0.0, 0.3, 1.0);
  const float temperature = GENERATE(0.05f, 2.0f);
  const CacheShape shape{.layers = 4, .q_heads = 2 * group, .kv_heads = 2};
  const Nacl p{.tokens = 21, .window = 4, .sinks = 2, .recent = 5, .drawn = drawn, .temperature = temperature, .seed = 77};
  auto d = drive(shape, p);
  d.layer = layer;
  REQUIRE(d.step(40, Phase::prefill_chunk, [](index_t, index_t) { return 9.0; }) == Status::ok);
  REQUIRE(d.step(20, Phase::prefill_end, [&](index_t h, index_t t) { return static_cast<double>(group) * number(5, h, t); }) == Status::ok);
  for (index_t h = 0; h < 2; ++h) {
    std::vector<double> score;
    for (index_t t = 0; t < 60; ++t) score.push_back(number(5, h, t));
    REQUIRE(d.held[at(h)] == plain(p, layer, h, score));
  }
  REQUIRE(d.step(1, Phase::decode) == Status::ok);
  REQUIRE(d.held[0].size() == 22);  // generated tokens stay
}

TEST_CASE("nacl: pairs are drawn as often as draws one after the other without replacement give them", "[evict][nacl]") {
  // Three slots with weights 1, 2 and 5 of 8: first i, then j of what is left.
  const double weight[] = {1, 2, 5};
  std::map<Ints, int> met;
  constexpr int draws = 6000;
  for (int i = 0; i < draws; ++i) {
    auto d = drive({}, Nacl{.tokens = 2, .window = 1, .sinks = 0, .recent = 0, .drawn = 1.0, .temperature = 0.5f, .seed = static_cast<std::uint64_t>(i)});
    REQUIRE(d.step(3, Phase::prefill_end, [&](index_t, index_t t) { return 0.5 * std::log(weight[t]); }) == Status::ok);
    ++met[d.held[0]];
  }
  REQUIRE(met.size() == 3);
  for (const auto& [pair, count] : met) {
    const double a = weight[pair[0]], b = weight[pair[1]], chance = a / 8 * b / (8 - a) + b / 8 * a / (8 - b);
    REQUIRE(std::fabs(count - draws * chance) < 4 * std::sqrt(draws * chance * (1 - chance)));
  }
}

TEST_CASE("nacl: NaN leaves first, short prompts stay whole, and one seed says one thing", "[evict][nacl]") {
  const Nacl p{.tokens = 6, .window = 2, .sinks = 1, .recent = 1, .drawn = 1.0};
  auto bad = drive({}, p);
  REQUIRE(bad.step(8, Phase::prefill_end, [](index_t, index_t t) { return t == 3 || t == 5 ? std::nan("") : 0.1; }) == Status::ok);
  REQUIRE(bad.held[0] == Ints{0, 1, 2, 4, 6, 7});
  REQUIRE(bad.nan == 2);
  auto brief = drive({}, p);
  REQUIRE(brief.step(0, Phase::prefill_end, [](index_t, index_t) { return 0.1; }) == Status::ok);
  REQUIRE(brief.step(6, Phase::prefill_end, [](index_t, index_t) { return 0.1; }) == Status::ok);
  REQUIRE(brief.held[0].size() == 6);
  const auto held = [](std::uint64_t seed, index_t layer) {
    auto d = drive({.layers = 2}, Nacl{.tokens = 20, .window = 2, .sinks = 1, .recent = 1, .drawn = 1.0, .seed = seed});
    d.layer = layer;
    REQUIRE(d.step(100, Phase::prefill_end, [](index_t, index_t) { return 0.1; }) == Status::ok);
    return d.held;
  };
  REQUIRE(held(1, 0) == held(1, 0));
  REQUIRE(held(1, 0) != held(2, 0));
  REQUIRE(held(1, 0) != held(1, 1));
}

TEST_CASE("nacl: keeps the promises of a pipeline", "[evict][nacl]") {
  // Heads draw apart, so which of them is which tells.
  const Nacl few{.tokens = 24, .window = 4, .sinks = 2, .recent = 4}, all{.tokens = 300, .window = 4, .sinks = 2, .recent = 4};
  check_promises(few, all, {.heads_alone = false});
  Nacl sure = few;
  sure.drawn = 0.0;
  check_promises(sure, all, {});
}

TEST_CASE("nacl: counts, parts and temperatures out of range are refused", "[evict][nacl]") {
  const auto status = [](auto change) {
    Nacl p;
    change(p);
    return p.validate({});
  };
  REQUIRE(status([](Nacl&) {}) == Status::ok);
  REQUIRE(status([](Nacl& p) { p.tokens = 36; }) == Status::invalid_argument);
  REQUIRE(status([](Nacl& p) { p.window = 0; }) == Status::invalid_argument);
  REQUIRE(status([](Nacl& p) { p.sinks = -1; }) == Status::invalid_argument);
  REQUIRE(status([](Nacl& p) { p.recent = -1; }) == Status::invalid_argument);
  REQUIRE(status([](Nacl& p) { p.drawn = 1.01; }) == Status::invalid_argument);
  REQUIRE(status([](Nacl& p) { p.drawn = -0.1; }) == Status::invalid_argument);
  REQUIRE(status([](Nacl& p) { p.temperature = 0.0f; }) == Status::invalid_argument);
  REQUIRE(status([](Nacl& p) { p.temperature = std::nanf(""); }) == Status::invalid_argument);
}
