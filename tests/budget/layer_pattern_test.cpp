#include <evict/properties.hpp>
#include <kvcondense/budget/ada.hpp>
#include <kvcondense/budget/layer_pattern.hpp>
#include <kvcondense/evict/h2o.hpp>
#include <kvcondense/evict/sink_window.hpp>
#include <kvcondense/evict/strided_blocks.hpp>

using namespace kvcondense;
using namespace kvcondense::test;

namespace {

using budget::LayerPattern;

Ints full_layers(double part, index_t layers) {
  Ints full;
  const evict::FullMiddleLayers<evict::Absolute> block{{}, part};
  for (index_t l = 0; l < layers; ++l)
    if (block.full(l, layers)) full.push_back(l);
  return full;
}

/// What the query of every token sees in one layer, tokens as blocks.
template <class P>
Rows visible(const P& policy, index_t layer, index_t tokens, index_t heads, index_t head) {
  auto d = drive({.layers = 12, .q_heads = heads, .kv_heads = heads}, policy);
  d.layer = layer;
  Rows rows;
  for (index_t t = 0; t < tokens; ++t) {
    rows.push_back(with_new(d.held, t, 1)[at(head)]);
    REQUIRE(d.step(1, t == 0 ? Phase::prefill_end : Phase::decode) == Status::ok);
  }
  return rows;
}

}  // namespace

TEST_CASE("layer_pattern: the middle third is full, as in the oracle", "[budget][layer_pattern]") {
  const auto oracle = eviction_oracle("longgen")["layers"];
  REQUIRE(full_layers(1.0 / 3.0, oracle["L"]) == oracle["full"].get<Ints>());
  for (index_t layers = 1; layers < 100; ++layers) {
    Ints want;
    for (index_t l = layers / 3; l < 2 * layers / 3; ++l) want.push_back(l);
    REQUIRE(full_layers(1.0 / 3.0, layers) == want);
  }
  REQUIRE(full_layers(0.0, 12).empty());
  REQUIRE(full_layers(1.0, 12).size() == 12);
  REQUIRE(full_layers(0.5, 12) == Ints{3, 4, 5, 6, 7, 8});
}

TEST_CASE("layer_pattern: outer layers see the oracle's sinks and windows, inner ones everything", "[budget][layer_pattern]") {
  const auto oracle = eviction_oracle("longgen");
  const auto& w = oracle["sink_window_blocks"];
  const LayerPattern window{evict::SinkWindow{.recent = w["local_blocks"].get<index_t>() - 1, .sinks = w["sink_blocks"]}};
  const auto& s = oracle["block_stride"];
  const LayerPattern strided{evict::StridedBlocks{.block = 1, .local = s["local_blocks"], .every = s["vert_stride"]}};
  for (index_t layer = 0; layer < 12; ++layer) {
    const auto full = oracle["layers"]["full"].get<Ints>();
    const bool inner = std::find(full.begin(), full.end(), layer) != full.end();
    Rows all;
    for (index_t t = 0; t < 8; ++t) {
      all.emplace_back();
      for (index_t j = 0; j <= t; ++j) all.back().push_back(j);
    }
    REQUIRE(visible(window, layer, 8, 1, 0) == (inner ? all : w["allowed"].get<Rows>()));
    REQUIRE(visible(strided, layer, 8, 3, 0) == (inner ? all : s["allowed"].get<Rows>()));
    REQUIRE(visible(strided, layer, 8, 3, 1) == (inner ? all : s["head_shifted_h1"].get<Rows>()));
  }
}

TEST_CASE("layer_pattern: goes around or inside other budgets", "[budget][layer_pattern]") {
  const evict::H2O base{.heavy = 4, .recent = 1};
  const PerToken mass = [](index_t h, index_t t) { return number(1, h, t); };
  for (index_t layer = 0; layer < 3; ++layer) {
    auto inside = drive({.layers = 3, .q_heads = 2, .kv_heads = 2}, budget::Ada{LayerPattern{base}, 0.2});
    auto around = drive({.layers = 3, .q_heads = 2, .kv_heads = 2}, LayerPattern{budget::Ada{base, 0.2}});
    inside.layer = around.layer = layer;
    REQUIRE(inside.step(30, Phase::prefill_end, mass) == Status::ok);
    REQUIRE(around.step(30, Phase::prefill_end, mass) == Status::ok);
    REQUIRE(inside.held == around.held);
    REQUIRE(inside.held[0].size() + inside.held[1].size() == (layer == 1 ? 60u : 10u));
  }
}

TEST_CASE("layer_pattern: keeps the promises", "[budget][layer_pattern]") {
  check_promises(LayerPattern{evict::H2O{.heavy = 16, .recent = 8}}, LayerPattern{evict::H2O{.heavy = 300, .recent = 8}});
}

TEST_CASE("layer_pattern: a part out of range is refused", "[budget][layer_pattern]") {
  for (const double part : {-0.1, 1.1, std::nan("")})
    REQUIRE(LayerPattern{evict::H2O{}, part}.validate({}) == Status::invalid_argument);
  REQUIRE(LayerPattern{evict::H2O{.heavy = -1}}.validate({}) == Status::invalid_argument);
  REQUIRE(LayerPattern{evict::H2O{}, 1.0}.validate({}) == Status::ok);
}
