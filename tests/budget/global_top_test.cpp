#include <algorithm>
#include <cmath>
#include <tuple>

#include <catch2/catch.hpp>

#include <evict/driver.hpp>
#include <kvcondense/budget/global_top.hpp>
#include <kvcondense/evict/blocks/allocate.hpp>
#include <kvcondense/evict/blocks/frozen.hpp>
#include <kvcondense/evict/blocks/pool.hpp>
#include <kvcondense/evict/blocks/protect.hpp>
#include <kvcondense/evict/blocks/select.hpp>
#include <kvcondense/evict/blocks/trigger.hpp>
#include <kvcondense/evict/expected_attention.hpp>
#include <kvcondense/evict/h2o.hpp>
#include <kvcondense/evict/knorm.hpp>
#include <kvcondense/evict/sink_window.hpp>
#include <kvcondense/evict/snapkv.hpp>
#include <support/cache_rig.hpp>
#include <support/naive_cache.hpp>

using namespace kvcondense;
using namespace kvcondense::test;

namespace {

/// Scores are what the test says.
struct Given {
  static constexpr Descriptor about{"given", Stage::evict, "test"};
  static constexpr Inputs needs = Input::gates;
  index_t sinks = 0;

  constexpr auto pipeline() const {
    return evict::Pipeline{evict::Frozen<evict::Gate>{}, evict::NoPool{}, evict::Sinks{sinks}, evict::Absolute{8}, evict::TopK{}, evict::EveryStep{}};
  }
  Status validate(const CacheShape&) const { return Status::ok; }
};

/// Feeds n tokens to every layer; score(layer, head, token).
template <class R, class F>
void feed(R& r, const CacheShape& shape, index_t n, F&& score) {
  std::mt19937 random(1);
  for (index_t l = 0; l < shape.layers; ++l) {
    const Tokens t(shape, n, random);
    std::vector<float> gates;
    for (index_t h = 0; h < shape.kv_heads; ++h)
      for (index_t i = 0; i < n; ++i) gates.push_back(score(l, h, i));
    REQUIRE(r.cache.append(r.ctx, l, t.keys(shape), t.values(shape)) == Status::ok);
    REQUIRE(r.cache.step(r.ctx, l, StepInputs{.gates = dense_view(static_cast<const float*>(gates.data()), shape.kv_heads, n)}) == Status::ok);
  }
}

}  // namespace

TEST_CASE("global_top: the oracle's threshold, exact and as the published code has it", "[budget][global_top]") {
  const auto o = eviction_oracle("kvzip")["threshold_rule"];
  const auto all = o["all_scores"].get<std::vector<float>>();
  const CacheShape shape{.q_heads = 1, .kv_heads = 1, .head_dim = 8};
  for (const bool strict : {false, true}) {
    CacheRig r(shape, recipe(budget::GlobalTop<Given>{.policy = {}, .keep = o["ratio"], .strict = strict}), 64, 64);
    feed(r, shape, 10, [&](index_t, index_t, index_t t) { return all[at(t)]; });
    REQUIRE(r.cache.slots(0, 0) == 10);
    REQUIRE(r.cache.turn(r.ctx) == Status::ok);
    REQUIRE(r.cache.slots(0, 0) == (strict ? static_cast<index_t>(o["kept_strictly_greater"].size()) : 3));
    REQUIRE(r.cache.token(0, 0, 1) == 1);
  }
}

TEST_CASE("global_top: what stays is the best of all layers and heads, to the slot", "[budget][global_top]") {
  const CacheShape shape{.layers = 3, .q_heads = 4, .kv_heads = 2, .head_dim = 8};
  for (const index_t sinks : {0, 2})
    for (const index_t levels : {5, 1000}) {  // many ties, and nearly none
      const auto score = [&](index_t l, index_t h, index_t t) {
        return static_cast<float>((t * 7919 + l * 104729 + h * 31) % levels) + static_cast<float>(l);  // later layers score more
      };
      CacheRig r(shape, recipe(budget::GlobalTop<Given>{.policy = {.sinks = sinks}, .keep = 0.31}), 64, 64);
      feed(r, shape, 37, score);
      REQUIRE(r.cache.turn(r.ctx) == Status::ok);
      using Place = std::tuple<float, index_t, index_t, index_t>;
      std::vector<Place> order;
      for (index_t l = 0; l < 3; ++l)
        for (index_t h = 0; h < 2; ++h)
          for (index_t t = 0; t < 37; ++t) order.emplace_back(t < sinks ? -1e9f : -score(l, h, t), l, h, t);
      std::sort(order.begin(), order.end());
      order.resize(at(static_cast<index_t>(std::floor(0.31 * 37 * 6))));
      index_t total = 0;
      for (index_t l = 0; l < 3; ++l)
        for (index_t h = 0; h < 2; ++h) {
          Ints want, got;
          for (const auto& [s, a, b, t] : order)
            if (a == l && b == h) want.push_back(t);
          std::sort(want.begin(), want.end());
          for (index_t s = 0; s < r.cache.slots(l, h); ++s) got.push_back(r.cache.token(l, h, s));
          REQUIRE(got == want);
          total += r.cache.slots(l, h);
        }
      REQUIRE(total == static_cast<index_t>(order.size()));
      REQUIRE(r.cache.report().budget_asked == total);
      REQUIRE(r.cache.turn(r.ctx) == Status::ok);  // again: nothing more leaves
      REQUIRE(r.cache.report().slots == total);
    }
}

TEST_CASE("global_top: all kept changes nothing, NaN leaves first, +inf never", "[budget][global_top]") {
  const CacheShape shape{.layers = 2, .q_heads = 2, .kv_heads = 1, .head_dim = 8};
  CacheRig all(shape, recipe(budget::GlobalTop<Given>{.policy = {}, .keep = 1.0}), 64, 64);
  feed(all, shape, 20, [](index_t, index_t, index_t t) { return static_cast<float>(t); });
  REQUIRE(all.cache.turn(all.ctx) == Status::ok);
  REQUIRE(all.cache.report().slots == 40);
  CacheRig r(shape, recipe(budget::GlobalTop<Given>{.policy = {}, .keep = 0.25}), 64, 64);
  feed(r, shape, 20, [](index_t l, index_t, index_t t) { return l == 0 ? NAN : t < 15 ? INFINITY : 1.0f; });
  REQUIRE(r.cache.turn(r.ctx) == Status::ok);
  REQUIRE(r.cache.slots(0, 0) == 0);
  REQUIRE(r.cache.slots(1, 0) == 15);
}

TEST_CASE("global_top: policies it cannot serve are refused, and steps of one layer", "[budget][global_top]") {
  const CacheShape shape{.layers = 2, .q_heads = 4, .kv_heads = 2, .head_dim = 8};
  REQUIRE(budget::GlobalTop<evict::SnapKV>{}.validate(shape) == Status::incompatible);
  REQUIRE(budget::GlobalTop<evict::SinkWindow>{}.validate(shape) == Status::incompatible);
  REQUIRE(budget::GlobalTop<evict::H2O>{}.validate(shape) == Status::ok);
  REQUIRE(budget::GlobalTop<evict::ExpectedAttention>{}.validate(shape) == Status::incompatible);  // moments come with a step
  REQUIRE(budget::GlobalTop<evict::Knorm>{}.validate(shape) == Status::ok);
  REQUIRE(budget::GlobalTop<evict::Knorm>{.policy = {}, .keep = 0}.validate(shape) == Status::invalid_argument);
  REQUIRE(budget::GlobalTop<evict::Knorm>{.policy = {}, .keep = 2}.validate(shape) == Status::invalid_argument);
  CacheRig r(shape, recipe(budget::GlobalTop<Given>{}), 64, 64);
  feed(r, shape, 8, [](index_t, index_t, index_t t) { return static_cast<float>(t); });
  REQUIRE(r.cache.step(r.ctx, 0, StepInputs{}, Phase::turn) == Status::order_violation);
  REQUIRE(r.cache.turn(r.ctx, -1) == Status::invalid_argument);
  Context<Cpu> none;
  REQUIRE(r.cache.turn(none) == Status::workspace_too_small);
  REQUIRE(r.cache.report().slots == 32);
  REQUIRE(r.cache.turn(r.ctx) == Status::ok);
  REQUIRE(r.cache.report().slots == 9);  // floor(0.3 * 32)
}
