#include <cmath>
#include <numeric>

#include <evict/properties.hpp>
#include <kvcondense/budget/head_table.hpp>
#include <kvcondense/budget/ratio.hpp>
#include <kvcondense/evict/h2o.hpp>
#include <kvcondense/evict/knorm.hpp>
#include <kvcondense/evict/sink_window.hpp>
#include <kvcondense/evict/snapkv.hpp>
#include <kvcondense/evict/tova.hpp>

using namespace kvcondense;
using namespace kvcondense::test;

namespace {

using budget::HeadTableBudget;

std::vector<float> shares(std::uint64_t seed, index_t n) {
  std::vector<float> p;
  for (index_t i = 0; i < n; ++i) p.push_back(std::pow(random_uniform(seed, static_cast<std::uint64_t>(i)), 4.0f) + 1e-4f);
  const float sum = std::accumulate(p.begin(), p.end(), 0.0f);
  for (float& x : p) x /= sum;
  return p;
}

const PerToken mass = [](index_t h, index_t t) { return number(1, h, t); };

/// Budgets of all heads, layer by layer, after one prompt.
template <class P>
Ints budgets(const P& policy, const CacheShape& shape, index_t tokens) {
  Ints all;
  for (index_t l = 0; l < shape.layers; ++l) {
    auto d = drive(shape, policy);
    d.layer = l;
    REQUIRE(d.step(tokens, Phase::prefill_end, mass) == Status::ok);
    for (index_t h = 0; h < shape.kv_heads; ++h) {
      REQUIRE(static_cast<index_t>(d.held[at(h)].size()) == d.budget[at(h)]);
      all.push_back(d.budget[at(h)]);
    }
  }
  return all;
}

index_t sum(const Ints& x) { return std::accumulate(x.begin(), x.end(), index_t{0}); }

}  // namespace

TEST_CASE("head_table: heads get round(p * pool + minimum), and the total is exact", "[budget][head_table]") {
  const std::uint64_t seed = GENERATE(range(0, 12));
  const double beta = GENERATE(1.0, 1.01, 2.0, 20.0);
  const index_t group = GENERATE(1, 7);
  const CacheShape shape{.layers = 5, .q_heads = 3 * group, .kv_heads = 3};
  const auto p = shares(seed, 15);
  constexpr index_t window = 8, capacity = 52;
  const Ints got = budgets(HeadTableBudget{evict::SnapKV{.tokens = capacity + window, .window = window}, beta, HeadTable{p.data(), 5, 3}},
                           shape, 3000);
  REQUIRE(sum(got) == 15 * (capacity + window));
  const double own = std::floor(capacity / beta + 1e-6), pool = own * 15, least = capacity - own;
  for (std::size_t i = 0; i < 15; ++i)
    REQUIRE(std::abs(static_cast<double>(got[i]) - window - (static_cast<double>(p[i]) * pool + least)) <= 1.0);
}

TEST_CASE("head_table: equal shares change nothing, a share of all takes all", "[budget][head_table]") {
  const CacheShape shape{.layers = 2, .q_heads = 2, .kv_heads = 2};
  const evict::H2O base{.heavy = 20, .recent = 4};
  const float even[] = {0.25f, 0.25f, 0.25f, 0.25f}, one[] = {0, 0, 1, 0};
  REQUIRE(budgets(HeadTableBudget{base, 1.0, HeadTable{even, 2, 2}}, shape, 200) == Ints{24, 24, 24, 24});
  REQUIRE(budgets(HeadTableBudget{base, 1.0, HeadTable{one, 2, 2}}, shape, 200) == Ints{4, 4, 84, 4});
  REQUIRE(budgets(HeadTableBudget{base, 2.0, HeadTable{one, 2, 2}}, shape, 200) == Ints{14, 14, 54, 14});
}

TEST_CASE("head_table: what a head cannot hold goes to the others", "[budget][head_table]") {
  const CacheShape shape{.layers = 2, .q_heads = 2, .kv_heads = 2};
  const evict::H2O base{.heavy = 20, .recent = 4};
  const float p[] = {0.1f, 0.1f, 0.7f, 0.1f};
  for (const index_t tokens : {23, 24, 25, 30, 40, 200}) {
    CAPTURE(tokens);
    const Ints got = budgets(HeadTableBudget{base, 1.01, HeadTable{p, 2, 2}}, shape, tokens);
    REQUIRE(sum(got) == 4 * std::min<index_t>(tokens, 24));
    if (tokens <= 40) REQUIRE(got[2] == tokens);
  }
}

TEST_CASE("head_table: decoding goes on with the same shares, under a ratio too", "[budget][head_table]") {
  const CacheShape shape{.layers = 2, .q_heads = 2, .kv_heads = 2};
  const auto p = shares(3, 4);
  index_t all = 0, of_ratio = 0;
  for (index_t l = 0; l < 2; ++l) {
    auto d = drive(shape, HeadTableBudget{evict::H2O{.heavy = 20, .recent = 4}, 1.5, HeadTable{p.data(), 2, 2}});
    auto r = drive(shape, HeadTableBudget{budget::Ratio{evict::H2O{.heavy = 20, .recent = 4}, 0.3}, 1.5, HeadTable{p.data(), 2, 2}});
    d.layer = r.layer = l;
    REQUIRE(d.step(100, Phase::prefill_end, mass) == Status::ok);
    REQUIRE(r.step(100, Phase::prefill_end, mass) == Status::ok);
    const Rows before = d.held;
    for (int i = 0; i < 30; ++i) {
      REQUIRE(d.step(1, Phase::decode, mass) == Status::ok);
      REQUIRE(r.step(1, Phase::decode, mass) == Status::ok);
    }
    for (index_t h = 0; h < 2; ++h) {
      REQUIRE(d.held[at(h)].size() == before[at(h)].size());
      all += static_cast<index_t>(d.held[at(h)].size());
      of_ratio += r.budget[at(h)];
    }
  }
  REQUIRE(all == 4 * 24);
  REQUIRE((of_ratio > 4 * 36 && of_ratio <= 4 * 39));  // a head grows by one slot a step at most
}

TEST_CASE("head_table: keeps the promises", "[budget][head_table]") {
  const auto p = shares(9, 16);
  for (index_t heads = 1; heads <= 4; ++heads) {
    const std::vector<float> mine = shares(9, 4 * heads);
    const auto with = [&](index_t tokens) {
      return HeadTableBudget{evict::Knorm{.tokens = tokens, .recent = 4}, 1.2, HeadTable{mine.data(), 4, heads}};
    };
    for (std::uint32_t seed = static_cast<std::uint32_t>(heads - 1); seed < 24; seed += 4)
      check_promises_once(with(24), with(400), {.heads_alone = false}, seed, 2);
  }
}

TEST_CASE("head_table: what does not fit the model is refused", "[budget][head_table]") {
  const CacheShape shape{.layers = 2, .q_heads = 6, .kv_heads = 3};
  auto p = shares(1, 6);
  const auto with = [&](double beta) { return HeadTableBudget{evict::H2O{}, beta, HeadTable{p.data(), 2, 3}}; };
  REQUIRE(with(1.01).validate(shape) == Status::ok);
  REQUIRE(std::string(HeadTableBudget<evict::H2O>{}.missing()) == "shares");
  REQUIRE(HeadTableBudget<evict::H2O>{}.validate(shape) == Status::missing_input);
  REQUIRE(with(1.01).validate({.layers = 3, .q_heads = 6, .kv_heads = 2}) == Status::shape_mismatch);
  REQUIRE(with(1e6).validate(shape) == Status::ok);
  for (const double beta : {0.99, 0.0, -2.0, 1.1e6, std::nan("")}) REQUIRE(with(beta).validate(shape) == Status::invalid_argument);
  p[0] += 0.01f;
  REQUIRE(with(2).validate(shape) == Status::invalid_argument);
  p[0] -= 0.02f;
  REQUIRE(with(2).validate(shape) == Status::invalid_argument);
  p[0] += 0.01f;
  p[1] = std::nanf("");
  REQUIRE(with(2).validate(shape) == Status::invalid_argument);
  p = {1.5f, -0.5f, 0, 0, 0, 0};
  REQUIRE(with(2).validate(shape) == Status::invalid_argument);
  p = {1, 0, 0, 0, 0, 0};
  REQUIRE(with(2).validate(shape) == Status::ok);
}

TEST_CASE("head_table: a policy that keeps one set per layer is refused", "[budget][head_table]") {
  const auto p = shares(1, 6);
  const CacheShape shape{.layers = 2, .q_heads = 3, .kv_heads = 3};
  REQUIRE(HeadTableBudget{evict::Tova{}, 1.01, HeadTable{p.data(), 2, 3}}.validate(shape) == Status::incompatible);
  const HeadTableBudget window{evict::SinkWindow{}, 1.01, HeadTable{p.data(), 2, 3}};  // one set, and nothing measured: all heads alike
  REQUIRE(window.validate(shape) == Status::ok);
  REQUIRE(window.missing() == nullptr);
}
