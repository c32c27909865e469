#include <evict/properties.hpp>
#include <kvcondense/budget/ada.hpp>
#include <kvcondense/budget/skip_layers.hpp>
#include <kvcondense/evict/h2o.hpp>
#include <kvcondense/evict/knorm.hpp>

using namespace kvcondense;
using namespace kvcondense::test;

TEST_CASE("skip_layers: the first layers keep everything, the others what the policy says", "[budget][skip_layers]") {
  for (index_t layer = 0; layer < 4; ++layer) {
    auto d = drive({.layers = 4, .head_dim = 1}, budget::SkipLayers{evict::Knorm{.tokens = 5, .recent = 1}, 2});
    d.layer = layer;
    d.key = [](index_t h, index_t t, index_t) { return static_cast<float>(number(1, h, t)); };
    REQUIRE(d.step(30, Phase::prefill_end) == Status::ok);
    REQUIRE(d.held[0].size() == (layer < 2 ? 30u : 5u));
  }
}

TEST_CASE("skip_layers: goes around or inside a budget shared by heads", "[budget][skip_layers]") {
  const evict::H2O base{.heavy = 4, .recent = 1};
  const PerToken mass = [](index_t h, index_t t) { return number(1, h, t); };
  auto inside = drive({.q_heads = 2, .kv_heads = 2}, budget::Ada{budget::SkipLayers{base, 1}, 0.2});
  auto around = drive({.q_heads = 2, .kv_heads = 2}, budget::SkipLayers{budget::Ada{base, 0.2}, 1});
  REQUIRE(inside.step(30, Phase::prefill_end, mass) == Status::ok);
  REQUIRE(around.step(30, Phase::prefill_end, mass) == Status::ok);
  for (index_t h = 0; h < 2; ++h) {
    REQUIRE(inside.held[at(h)].size() == 30);
    REQUIRE(around.held[at(h)].size() == 30);
  }
}

TEST_CASE("skip_layers: keeps its promises", "[budget][skip_layers]") {
  const evict::H2O base{.heavy = 16, .recent = 8}, roomy{.heavy = 300, .recent = 8};
  check_promises(budget::SkipLayers{base, 0}, budget::SkipLayers{roomy, 0});
  check_promises(budget::SkipLayers{base, 1}, budget::SkipLayers{roomy, 1});
}

TEST_CASE("skip_layers: a negative count is refused", "[budget][skip_layers]") {
  REQUIRE(budget::SkipLayers{evict::H2O{}, -1}.validate({}) == Status::invalid_argument);
  REQUIRE(budget::SkipLayers{evict::H2O{.heavy = -1}, 1}.validate({}) == Status::invalid_argument);
  REQUIRE(budget::SkipLayers{evict::H2O{}, 0}.validate({}) == Status::ok);
}
