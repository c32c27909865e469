#include <cmath>
#include <random>
#include <string>
#include <vector>

#include <evict/properties.hpp>
#include <kvcondense/any/any_cache.hpp>
#include <kvcondense/budget/ada.hpp>
#include <kvcondense/budget/ratio.hpp>
#include <kvcondense/evict/h2o.hpp>
#include <kvcondense/evict/knorm.hpp>
#include <kvcondense/evict/sink_window.hpp>
#include <kvcondense/evict/snapkv.hpp>
#include <kvcondense/evict/tova.hpp>
#include <support/naive_cache.hpp>

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

/// A random prompt whose query heads ask in one direction each, as sharply as `sharp` says of their KV head. The first token
/// draws all heads and says nothing, as sinks do.
struct Asked {
  static constexpr CacheShape shape{.q_heads = 8, .kv_heads = 4, .head_dim = 16, .dtype = DType::f32};
  static constexpr index_t prompt = 200;
  Tokens tokens, query;

  Asked(std::uint32_t seed, const std::vector<float>& sharp) : Asked(std::mt19937(seed), sharp) {}
  Asked(std::mt19937 random, const std::vector<float>& sharp) : tokens(shape, prompt, random), query(shape, 1, random) {
    const index_t dim = shape.head_dim;
    const Tokens direction(shape, 1, random);
    for (Tokens* t : {&tokens, &query})
      for (index_t h = 0; h < shape.q_heads; ++h)
        for (index_t i = 0; i < t->n * dim; ++i) {
          float& x = t->q[at(h * t->n * dim + i)];
          x = sharp[at(h / shape.group())] * (direction.q[at(h * dim + i % dim)] + 0.3f * x);
        }
    for (index_t g = 0; g < shape.kv_heads; ++g)
      for (index_t d = 0; d < dim; ++d) {
        tokens.v[at(g * prompt * dim + d)] = 0.0f;
        tokens.k[at(g * prompt * dim + d)] = 1.3f / sharp[at(g)] * (direction.q[at(2 * g * dim + d)] + direction.q[at((2 * g + 1) * dim + d)]);
      }
  }

  struct Answer {
    std::vector<float> out;
    index_t slots = 0;
    double lost = 0;  ///< part of the query's attention, of all query heads together, that went to tokens that have left
  };
  Answer through(const std::string& text) const {
    auto cache = any::make(text, shape, any::on<Cpu>);
    REQUIRE(cache);
    Workspace work;
    REQUIRE(work.reserve(cache->workspace_bytes(prompt, prompt)) == Status::ok);
    Context<Cpu> ctx(work.bytes());
    Answer a;
    a.out.resize(at(shape.q_heads * prompt * shape.head_dim));
    REQUIRE(cache->forward(ctx, 0, tokens.queries(shape), tokens.keys(shape), tokens.values(shape),
                           dense_view(a.out.data(), shape.q_heads, prompt, shape.head_dim), {}, Phase::prefill_end) == Status::ok);
    a.out.resize(at(shape.q_heads * shape.head_dim));
    REQUIRE(cache->attend(ctx, 0, query.queries(shape), dense_view(a.out.data(), shape.q_heads, 1, shape.head_dim)) == Status::ok);
    a.slots = cache->total_slots(0);
    for (index_t h = 0; h < shape.q_heads; ++h) {
      std::vector<double> p;
      double sum = 0, kept = 0;
      for (index_t t = 0; t < prompt; ++t) {
        double dot = 0;
        for (index_t d = 0; d < shape.head_dim; ++d)
          dot += static_cast<double>(query.queries(shape)(h, 0, d)) * static_cast<double>(tokens.keys(shape)(h / shape.group(), t, d));
        sum += p.emplace_back(std::exp(dot / 4));
      }
      for (index_t s = 0; s < cache->slots(0, h / shape.group()); ++s) kept += p[at(cache->token(0, h / shape.group(), s))];
      a.lost += 1 - kept / sum;
    }
    return a;
  }
};

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

// The paper bounds the L1 error of a layer's output by the attention that its heads lose together, and shares the budget so
// that this is least. The error itself follows where a lost part of attention is a lost part of what heads say: beside a
// sink. Without one heads are scaled to what is left, and on random values neither way is better.
TEST_CASE("ada: at the same total heads lose less attention than equal ones, and a layer's output is off by less", "[budget][ada]") {
  for (const auto& sharp : {std::vector<float>{1, 1, 1, 1}, std::vector<float>{0.3f, 0.6f, 1.2f, 2.4f}}) {
    double error[2] = {}, lost[2] = {};  // of equal heads, of shared budgets
    for (std::uint32_t seed = 0; seed < 12; ++seed) {
      const Asked asked(seed, sharp);
      const auto dense = asked.through("keep_all");
      REQUIRE(dense.lost == Approx(0.0).margin(1e-9));
      for (const index_t tokens : {24, 40, 72}) {
        const std::string policy = "snapkv(tokens=" + std::to_string(tokens) + ", window=8, kernel=1)";
        const auto equal = asked.through(policy), shared = asked.through("ada(" + policy + ", floor=0.2)");
        REQUIRE(equal.slots == 4 * tokens);
        REQUIRE(shared.slots == equal.slots);
        lost[0] += equal.lost, lost[1] += shared.lost;
        for (std::size_t i = 0; i < dense.out.size(); ++i) {
          error[0] += static_cast<double>(std::fabs(equal.out[i] - dense.out[i]));
          error[1] += static_cast<double>(std::fabs(shared.out[i] - dense.out[i]));
        }
      }
    }
    CAPTURE(sharp[0], lost[0], lost[1]);
    REQUIRE(lost[1] < lost[0]);
    REQUIRE(error[1] < error[0]);
  }
}
