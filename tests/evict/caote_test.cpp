#include <algorithm>
#include <numeric>

#include <evict/properties.hpp>
#include <kvcondense/budget/ada.hpp>
#include <kvcondense/core/random.hpp>
#include <kvcondense/evict/caote.hpp>
#include <kvcondense/evict/h2o.hpp>
#include <kvcondense/evict/knorm.hpp>
#include <kvcondense/evict/lagkv.hpp>
#include <kvcondense/evict/observed_attention.hpp>
#include <kvcondense/evict/rkv.hpp>
#include <kvcondense/evict/snapkv.hpp>
#include <kvcondense/evict/tova.hpp>

using namespace kvcondense;
using namespace kvcondense::test;
using evict::Caote;

namespace {

/// One head that holds the first seven tokens of the fixture, seen by query head 2.
const CacheShape one{.head_dim = 4};
std::function<float(index_t, index_t, index_t)> fixture_values(const FX1& fx) {
  return [&fx](index_t, index_t t, index_t c) { return static_cast<float>(fx.v(1, t, c)); };
}

/// The base's attention with as many slots as wanted and nothing protected.
evict::Tova base(index_t tokens) { return {.tokens = tokens}; }
evict::H2O summed(index_t tokens) { return {.heavy = tokens, .recent = 0}; }

/// One head of 21 slots with weights of its own, as a policy's pools and choice see it.
struct Weighed {
  static constexpr index_t slots = 21, dim = 8;
  const CacheShape shape{.head_dim = dim};
  std::vector<float> values, weights;
  evict::Protected shield;

  Weighed(std::uint32_t seed, evict::Protected ends) : shield(ends) {
    for (index_t j = 0; j < slots; ++j) {
      weights.push_back(static_cast<float>(number(seed, 0, j)));
      for (index_t c = 0; c < dim; ++c) values.push_back(static_cast<float>(number(seed + 1, j, c)));
      if (j < ends.prefix || j >= slots - ends.suffix) weights.back() *= 8.0f, values[at(j * dim)] += 3.0f;  // they turn the output
    }
  }
  bool competes(index_t j) const { return j >= shield.prefix && j < slots - shield.suffix; }

  /// What the output over `live` moves by without slot j, from the two outputs, in double.
  double error(const Ints& live, index_t j) const {
    double with = 0.0, without = 0.0, square = 0.0;
    for (const index_t i : live) with += weights[at(i)], without += i == j ? 0.0 : static_cast<double>(weights[at(i)]);
    for (index_t c = 0; c < dim; ++c) {
      double x = 0.0, rest = 0.0;
      for (const index_t i : live) {
        const double part = static_cast<double>(weights[at(i)]) * static_cast<double>(values[at(i * dim + c)]);
        x += part / with, rest += i == j ? 0.0 : part / without;
      }
      square += (x - rest) * (x - rest);
    }
    return std::sqrt(square);
  }
  /// Slots of which the output is made: all, or those that compete.
  Ints made_of(bool all) const {
    Ints live;
    for (index_t j = 0; j < slots; ++j)
      if (all || competes(j)) live.push_back(j);
    return live;
  }
  /// The slots that one leaving after the other leaves of them.
  Ints dropped(bool all, index_t total) const {
    Ints live = made_of(all), kept = made_of(true);
    while (static_cast<index_t>(kept.size()) > total) {
      index_t least = -1;
      for (const index_t j : live)
        if (competes(j) && (least < 0 || error(live, j) < error(live, least))) least = j;
      std::erase(live, least), std::erase(kept, least);
    }
    return kept;
  }

  std::vector<float> errors(const auto& policy) const {
    return see(policy, [&](auto& p, auto& ctx, auto& view, auto scores, auto& scratch) {
      return p.pool.run(ctx, view, &shield, scores, scratch);
    });
  }
  Ints chosen(const auto& policy, index_t total) const {
    std::vector<std::int32_t> kept(at(slots));
    index_t count = 0;
    see(policy, [&](auto& p, auto& ctx, auto& view, auto scores, auto& scratch) {
      return p.select.run(ctx, view, scores, &shield, {{kept.data(), view.offset, 1}, &count, &total}, scratch);
    });
    return {kept.begin(), kept.begin() + count};
  }

 private:
  std::vector<float> see(const auto& policy, auto&& run) const {
    const auto p = policy.pipeline();
    const DenseRows rows(dense_view<const float>(values.data(), 1, slots, dim));
    const index_t offset[] = {0, slots};
    StepView<Cpu> view;
    view.shape = shape, view.offset = offset, view.values = &rows;
    std::vector<std::byte> memory(p.workspace_bytes(shape, slots) + Scratch::align);
    Scratch scratch(memory);
    std::vector<float> scores = weights;
    Context<Cpu> ctx;
    REQUIRE(run(p, ctx, view, RaggedView<float>{scores.data(), offset, 1}, scratch) == Status::ok);
    return scores;
  }
};

}  // namespace

TEST_CASE("caote: errors and the evicted token equal the oracle", "[evict][caote]") {
  const auto oracle = eviction_oracle("caote");
  const FX1 fx;
  const auto evicted = [&](const auto& policy, const nlohmann::json& weights, const nlohmann::json& want) {
    auto d = drive(one, policy);
    d.value = fixture_values(fx);
    REQUIRE(d.step(7, Phase::prefill_end, [&](index_t, index_t t) { return weights[at(t)].get<double>(); }) == Status::ok);
    REQUIRE(d.held[0].size() == 6);
    index_t gone = 0;
    while (gone < 6 && d.held[0][at(gone)] == gone) ++gone;
    REQUIRE(gone == want.get<index_t>());
  };
  const auto& alpha = oracle["alpha"];
  const auto& h2o = oracle["h2o_normalised"];
  evicted(Caote{summed(6)}, alpha, oracle["evict_caote"]);
  evicted(Caote{summed(6), true}, alpha, oracle["evict_fast"]);
  evicted(Caote{summed(6), false, true}, alpha, oracle["evict_caote"]);
  evicted(Caote{summed(6), true, true}, alpha, oracle["evict_fast"]);
  evicted(Caote{base(6)}, alpha, oracle["evict_caote"]);
  evicted(summed(6), alpha, oracle["evict_attention_only"]);
  evicted(Caote{summed(6)}, h2o["H"], h2o["evict"]);  // any multiple of the weights

  std::vector<float> values;
  for (index_t t = 0; t < 7; ++t)
    for (index_t c = 0; c < 4; ++c) values.push_back(static_cast<float>(fx.v(1, t, c)));
  const DenseRows rows(dense_view<const float>(values.data(), 1, 7, 4));
  const index_t offset[] = {0, 7};
  StepView<Cpu> view;
  view.shape = one, view.offset = offset, view.values = &rows;
  Context<Cpu> ctx;
  Scratch none;
  const evict::Protected shield[] = {{}};
  for (const bool fast : {false, true}) {
    std::vector<float> scores = floats(alpha);
    REQUIRE(evict::OutputError{{.fast = fast}}.run(ctx, view, shield, {scores.data(), offset, 1}, none) == Status::ok);
    for (index_t j = 0; j < 7; ++j)
      REQUIRE(scores[at(j)] == Approx(oracle[fast ? "fast_caote" : "caote"][at(j)].get<double>()).margin(2e-5));
    if (!fast)
      for (index_t j = 0; j < 7; ++j) REQUIRE(scores[at(j)] == Approx(oracle["brute_force_error"][at(j)].get<double>()).margin(2e-5));
  }
}

TEST_CASE("caote: one slot after the other, as the oracle drops them", "[evict][caote]") {
  const auto oracle = eviction_oracle("caote_greedy");
  const auto alpha = eviction_oracle("caote")["alpha"];
  const FX1 fx;
  for (std::size_t gone = 1; gone <= 3; ++gone) {
    auto d = drive(one, Caote{summed(7 - static_cast<index_t>(gone)), false, true});
    d.value = fixture_values(fx);
    REQUIRE(d.step(7, Phase::prefill_end, [&](index_t, index_t t) { return alpha[at(t)].get<double>(); }) == Status::ok);
    const Ints want = gone == 3 ? oracle["kept"].get<Ints>() : oracle["trace"][gone]["live"].get<Ints>();
    REQUIRE(d.held[0] == want);
  }
}

TEST_CASE("caote: over scores that protected slots have too, these are in the output", "[evict][caote]") {
  for (std::uint32_t seed = 0; seed < 10; ++seed)
    for (const evict::Protected ends : {evict::Protected{}, {0, 4}, {3, 5}}) {
      const Weighed x(2 * seed, ends);
      const auto check = [&](const auto& over, bool all) {
        const auto errors = x.errors(Caote{over});
        const Ints live = x.made_of(all);
        index_t least = -1;
        for (index_t j = 0; j < Weighed::slots; ++j) {
          if (!x.competes(j)) continue;
          REQUIRE(errors[at(j)] == Approx(x.error(live, j)).epsilon(1e-4));
          if (least < 0 || errors[at(j)] < errors[at(least)]) least = j;
        }
        Ints first = x.made_of(true);
        std::erase(first, least);
        REQUIRE(x.dropped(all, Weighed::slots - 1) == first);
        for (const index_t total : {Weighed::slots - 1, index_t{14}, ends.size()})
          REQUIRE(x.chosen(Caote{over, false, true}, total) == x.dropped(all, total));
      };
      check(evict::H2O{.heavy = 8, .recent = 4}, true);
      check(evict::ObservedAttention{.sinks = 3, .recent = 5}, true);
      check(evict::SnapKV{.tokens = 8, .window = 4, .kernel = 1}, false);
    }
}

TEST_CASE("caote: what protected slots draw and hold turns the choice over sums", "[evict][caote]") {
  const bool greedy = GENERATE(false, true);
  // Tokens 0 to 2 are at 0, 1 and -4, and the output of these alone is -1: the first is nearest. With the recent token at 10,
  // which drew seven times as much, it is 6.7, and the second is.
  auto d = drive({.head_dim = 4}, Caote{evict::H2O{.heavy = 2, .recent = 1}, false, greedy});
  d.value = [](index_t, index_t t, index_t c) {
    constexpr float where[] = {0.0f, 1.0f, -4.0f, 10.0f};
    return c == 0 ? where[t] : 0.0f;
  };
  REQUIRE(d.step(4, Phase::prefill_end, [](index_t, index_t t) { return t == 3 ? 7.0 : 1.0; }) == Status::ok);
  REQUIRE(d.held[0] == Ints{0, 2, 3});
}

TEST_CASE("caote: over pooled scores protected slots take no part, and stay", "[evict][caote]") {
  const bool greedy = GENERATE(false, true);
  const CacheShape shape{.q_heads = 6, .kv_heads = 2, .head_dim = 80, .value_dim = 64};
  auto d = drive(shape, Caote{evict::SnapKV{.tokens = 12, .window = 4, .kernel = 3}, false, greedy});
  d.value = noise(3);
  const PerToken mass = [](index_t h, index_t t) { return number(9, h, t); };
  auto other = d;
  other.value = [v = noise(3)](index_t h, index_t t, index_t c) { return t >= 26 ? 100.0f : v(h, t, c); };
  REQUIRE(d.step(30, Phase::prefill_end, mass) == Status::ok);
  REQUIRE(other.step(30, Phase::prefill_end, mass) == Status::ok);
  REQUIRE(d.held == other.held);
  for (index_t h = 0; h < 2; ++h) REQUIRE(Ints(d.held[at(h)].end() - 4, d.held[at(h)].end()) == Ints{26, 27, 28, 29});
}

TEST_CASE("caote: over a policy of one set per layer heads decide together", "[evict][caote]") {
  auto d = drive({.q_heads = 3, .kv_heads = 3, .head_dim = 8}, Caote{base(10)});
  d.value = noise(3);
  REQUIRE(d.step(25, Phase::prefill_end, [](index_t h, index_t t) { return number(9, h, t); }) == Status::ok);
  REQUIRE(d.held[0].size() == 10);
  REQUIRE((d.held[0] == d.held[1] && d.held[0] == d.held[2]));
}

TEST_CASE("caote: what a budget of scores sees", "[evict][caote]") {
  const CacheShape shape{.q_heads = 2, .kv_heads = 2, .head_dim = 8};
  const auto counts = [&](bool greedy) {
    auto d = drive(shape, budget::Ada{Caote{summed(10), false, greedy}, 0.0});
    // Head 1 draws more attention, but all its values are alike: nothing is lost without one of them.
    d.value = [v = noise(3)](index_t h, index_t t, index_t c) { return h == 1 ? 1.0f : v(h, t, c); };
    REQUIRE(d.step(30, Phase::prefill_end, [](index_t h, index_t t) { return number(9, h, t) + static_cast<double>(h); }) == Status::ok);
    return Ints{static_cast<index_t>(d.held[0].size()), static_cast<index_t>(d.held[1].size())};
  };
  REQUIRE(counts(false)[0] == 20);
  REQUIRE(counts(true)[1] == 20);
}

TEST_CASE("caote: weights and values that are no numbers leave first and are counted", "[evict][caote]") {
  const bool greedy = GENERATE(false, true);
  auto d = drive({.head_dim = 4}, Caote{summed(5), false, greedy});
  d.value = [v = noise(3)](index_t h, index_t t, index_t c) { return t == 2 ? INFINITY : v(h, t, c); };
  REQUIRE(d.step(8, Phase::prefill_end, [](index_t h, index_t t) { return t == 6 ? std::nan("") : number(9, h, t); }) == Status::ok);
  for (const index_t bad : {2, 6}) REQUIRE(!std::binary_search(d.held[0].begin(), d.held[0].end(), bad));
  REQUIRE(d.held[0].size() == 5);
  REQUIRE(d.nan == 2);
}

TEST_CASE("caote: tokens all alike keep the first, and a head without attention too", "[evict][caote]") {
  const bool greedy = GENERATE(false, true);
  const double share = GENERATE(0.0, 1.0);
  auto d = drive({.head_dim = 4}, Caote{summed(3), false, greedy});
  d.value = [](index_t, index_t, index_t) { return 0.5f; };
  REQUIRE(d.step(6, Phase::prefill_end, [&](index_t, index_t) { return share; }) == Status::ok);
  REQUIRE(d.held[0] == Ints{0, 1, 2});
}

TEST_CASE("caote: keeps the promises of a pipeline", "[evict][caote]") {
  const evict::SnapKV policy{.tokens = 24, .window = 4}, roomy{.tokens = 300, .window = 4};
  for (const bool fast : {false, true})
    for (const bool greedy : {false, true}) check_promises(Caote{policy, fast, greedy}, Caote{roomy, fast, greedy});
}

TEST_CASE("caote: without values a step that evicts is refused", "[evict][caote]") {
  const bool greedy = GENERATE(false, true);
  auto d = drive({}, Caote{summed(2), false, greedy});
  REQUIRE(d.step(3, Phase::prefill_end, [](index_t, index_t) { return 0.5; }) == Status::missing_input);
}

TEST_CASE("caote: refused over policies whose scores are no shares of attention", "[evict][caote]") {
  const auto over = [](const auto& p, bool greedy = false) { return Caote{p, false, greedy}.validate({}); };
  REQUIRE(over(evict::Knorm{}) == Status::incompatible);
  REQUIRE(over(evict::LagKV{}) == Status::incompatible);
  REQUIRE(over(evict::RKV{}) == Status::incompatible);
  REQUIRE(over(Caote{evict::H2O{}}) == Status::incompatible);
  REQUIRE(over(evict::Tova{}, true) == Status::incompatible);
  REQUIRE(over(evict::Tova{}) == Status::ok);
  REQUIRE(over(evict::H2O{}, true) == Status::ok);
  REQUIRE(over(evict::H2O{.heavy = -1}) == Status::invalid_argument);
}
