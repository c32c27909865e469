#include <evict/properties.hpp>
#include <kvcondense/budget/ada.hpp>
#include <kvcondense/budget/ratio.hpp>
#include <kvcondense/evict/h2o.hpp>
#include <kvcondense/evict/knorm.hpp>
#include <kvcondense/evict/sink_window.hpp>
#include <kvcondense/evict/snapkv.hpp>
#include <kvcondense/evict/tova.hpp>

using namespace kvcondense;
using namespace kvcondense::test;

namespace {

/// What each head of the oracle keeps under a floor and a form.
Rows kept(const nlohmann::json& oracle, double floor, evict::HeadShare form) {
  const auto scores = oracle["scores"].get<std::vector<std::vector<double>>>();
  const CacheShape shape{.q_heads = 3, .kv_heads = 3};
  const evict::H2O base{.heavy = oracle["base_capacity"], .recent = 0};
  auto d = drive(shape, budget::Ada{base, floor, form});
  REQUIRE(d.step(6, Phase::prefill_end, [&](index_t h, index_t t) { return scores[at(h)][at(t)]; }) == Status::ok);
  return d.held;
}

}  // namespace

TEST_CASE("ada: budgets and kept sets equal the oracle", "[budget][ada]") {
  const auto oracle = eviction_oracle("adakv");
  const auto rows = [](const nlohmann::json& j) { return j.get<Rows>(); };
  REQUIRE(kept(oracle, 0.0, evict::HeadShare::rounded) == rows(oracle["official"]["kept"]["0.0"]));
  REQUIRE(kept(oracle, 0.2, evict::HeadShare::rounded) == rows(oracle["official"]["kept"]["0.2"]));
  REQUIRE(kept(oracle, 0.5, evict::HeadShare::rounded) == rows(oracle["official"]["kept"]["0.5"]));
  REQUIRE(kept(oracle, oracle["kvpress_variant"]["alpha_safeguard"], evict::HeadShare::safeguard) ==
          rows(oracle["kvpress_variant"]["kept"]));
}

TEST_CASE("ada: largest remainders keep the total that rounding loses", "[budget][ada]") {
  const auto oracle = eviction_oracle("adakv");
  const auto sizes = [](const Rows& r) {
    Ints n;
    for (const auto& head : r) n.push_back(static_cast<index_t>(head.size()));
    return n;
  };
  // exact shares of floor 0.2: 2.2, 5.4, 1.4
  REQUIRE(sizes(kept(oracle, 0.2, evict::HeadShare::exact)) == Ints{2, 6, 1});
  // floor 0.5: 2.5, 4.5, 2.0
  REQUIRE(sizes(kept(oracle, 0.5, evict::HeadShare::exact)) == Ints{3, 4, 2});
  REQUIRE(sizes(kept(oracle, 1.0, evict::HeadShare::exact)) == Ints{3, 3, 3});
  REQUIRE(sizes(kept(oracle, 0.0, evict::HeadShare::exact)) == oracle["global_top_counts"].get<Ints>());
}

TEST_CASE("ada: the layer's total is exactly the base's, on ragged heads", "[budget][ada]") {
  const std::uint32_t seed = GENERATE(range(0u, 40u));
  const double floor = GENERATE(0.0, 0.2, 0.5, 1.0);
  const auto form = GENERATE(evict::HeadShare::exact, evict::HeadShare::safeguard);
  CAPTURE(seed, floor);
  const index_t heads = 1 + static_cast<index_t>(seed % 5);
  const CacheShape shape{.q_heads = heads, .kv_heads = heads, .head_dim = 3};
  Ints same;
  for (index_t h = 0; h < heads; ++h) same.push_back(h);
  const evict::SnapKV base{.tokens = 24, .window = 8};
  auto plain = ragged(base, shape, seed, same, 3);
  auto ada = ragged(budget::Ada{base, floor, form}, shape, seed, same, 3);
  const PerToken mass = [&](index_t h, index_t t) {
    const double x = number(seed, h, t);
    return seed % 2 == 0 ? std::floor(3 * x) : x * static_cast<double>(h + 1);
  };
  REQUIRE(plain.step(3, Phase::prefill_end, mass) == Status::ok);
  REQUIRE(ada.step(3, Phase::prefill_end, mass) == Status::ok);
  index_t want = 0, got = 0, budget = 0;
  for (index_t h = 0; h < heads; ++h) {
    want += static_cast<index_t>(plain.held[at(h)].size());
    got += static_cast<index_t>(ada.held[at(h)].size());
    budget += ada.budget[at(h)];
    const auto own = static_cast<double>(plain.held[at(h)].size()) - 8.0;
    if (own > 0) REQUIRE(static_cast<double>(ada.held[at(h)].size()) >= 8.0 + std::floor(floor * own));
  }
  REQUIRE(got == want);
  REQUIRE(budget == want);
}

TEST_CASE("ada: keeps its promises over every kind of policy", "[budget][ada]") {
  const Promises shared{.heads_alone = false};
  check_promises(budget::Ada{evict::SnapKV{.tokens = 24, .window = 8}, 0.2},
                 budget::Ada{evict::SnapKV{.tokens = 300, .window = 8}, 0.2}, shared);
  check_promises(budget::Ada{evict::H2O{.heavy = 16, .recent = 8}, 0.5},
                 budget::Ada{evict::H2O{.heavy = 300, .recent = 8}, 0.5}, shared);
  check_promises(budget::Ada{evict::Knorm{.tokens = 24, .recent = 4}, 0.0},
                 budget::Ada{evict::Knorm{.tokens = 300, .recent = 4}, 0.0}, shared);
  check_promises(budget::Ada{budget::Ratio{evict::SnapKV{.window = 8}, 0.08}},
                 budget::Ada{budget::Ratio{evict::SnapKV{.window = 8}, 1.0}}, shared);
}

TEST_CASE("ada: floors out of range and policies that score heads alike are refused", "[budget][ada]") {
  for (const double floor : {-0.1, 1.1, std::nan("")})
    REQUIRE(budget::Ada{evict::H2O{}, floor}.validate({}) == Status::invalid_argument);
  REQUIRE(budget::Ada{evict::Tova{}}.validate({}) == Status::incompatible);
  REQUIRE(budget::Ada{evict::SinkWindow{}}.validate({}) == Status::incompatible);
  REQUIRE(budget::Ada{evict::H2O{.heavy = -1}}.validate({}) == Status::invalid_argument);
  REQUIRE(budget::Ada{evict::H2O{}}.validate({}) == Status::ok);
}
