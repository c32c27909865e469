// Coordinates of small heads in a cache on CUDA: every kernel that low-rank stages have of their own, in little.

#include <string>

#include <kvcondense/evict/sink_window.hpp>
#include <kvcondense/lowrank/eigen_attention.hpp>
#include <kvcondense/lowrank/online_pca.hpp>
#include <kvcondense/lowrank/palu.hpp>
#include <kvcondense/lowrank/pca.hpp>
#include <kvcondense/lowrank/think.hpp>
#include <kvcondense/position/reindex.hpp>
#include <support/model_facts.hpp>

#include "cache_pair.hpp"

using namespace kvcondense;
using cuda_cache::Pair;
using kvcondense::test::RandomModel;

namespace {

const CacheShape little{.q_heads = 6, .kv_heads = 2, .head_dim = 16, .value_dim = 12, .dtype = DType::f32, .page_slots = 4};

template <class... Stages>
void live(const std::string& text, const any::ModelFacts& facts, const Stages&... stages) {
  INFO(text);
  Pair pair(recipe(stages...), text, little, facts);
  pair.allow(2e-5f);
  for (const index_t tokens : {14, 1, 2}) pair.forward(tokens, prim::AttendMath::f32, 3e-5f);
  pair.exchange();
  pair.truncate(15);
  pair.forward(3, prim::AttendMath::f32, 3e-5f);
  pair.compare_reports();
}

/// Of which tensor cores can take the rows.
const CacheShape halves{.q_heads = 6, .kv_heads = 2, .head_dim = 32, .value_dim = 16, .page_slots = 8};

/// As `live`, products made on tensor cores.
template <class... Stages>
void live_in_halves(const std::string& text, const any::ModelFacts& facts, const Stages&... stages) {
  INFO(text);
  Pair pair(recipe(stages...), text, halves, facts);
  pair.allow(2e-3f);
  for (const index_t tokens : {20, 1, 2}) pair.forward(tokens, prim::AttendMath::halves, 8e-3f);
  pair.exchange();
  pair.truncate(18);
  pair.forward(3, prim::AttendMath::halves, 8e-3f);
  pair.compare_reports();
}

}  // namespace

TEST_CASE("cuda: keys and values of small heads as coordinates, in bases that are known or found") {
  const RandomModel model(little);
  live("pca(window=2)", model.facts(), lowrank::Pca{.window = 2, .bases = model.facts().bases});
  live("palu(keep=10%, tile=1, window=3) + reindex", model.facts(), lowrank::Palu{.keep = 0.1, .tile = 1, .window = 3, .bases = model.facts().bases}, position::Reindex{});
  live("online_pca(tile=1, window=2, least=8)", model.facts(), lowrank::OnlinePca{.tile = 1, .window = 2, .least = 8});
  live("think(recent=2, least=8)", model.facts(), lowrank::Think{.recent = 2, .least = 8});
  // Heads of their own ranks, of which slots leave.
  live("sink_window(sinks=2, recent=10) + eigen_attention(rule=table, window=3)", model.facts(), evict::SinkWindow{.recent = 10, .sinks = 2},
       lowrank::EigenAttention{.rule = lowrank::RankRule::table, .window = 3, .bases = model.facts().bases});
}

TEST_CASE("cuda: coordinates of small heads on tensor cores") {
  const RandomModel model(halves);
  live_in_halves("pca(window=2)", model.facts(), lowrank::Pca{.window = 2, .bases = model.facts().bases});
  live_in_halves("online_pca(tile=1, window=2, least=8)", model.facts(), lowrank::OnlinePca{.tile = 1, .window = 2, .least = 8});
  // Heads of their own ranks, of which slots leave.
  live_in_halves("sink_window(sinks=2, recent=10) + eigen_attention(rule=table, window=3)", model.facts(), evict::SinkWindow{.recent = 10, .sinks = 2},
                 lowrank::EigenAttention{.rule = lowrank::RankRule::table, .window = 3, .bases = model.facts().bases});
}
