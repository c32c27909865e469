// Coordinates in a cache on CUDA of whose heads, layers or columns each has another map, beside the same on the CPU.

#include <string>
#include <vector>

#include <kvcondense/budget/head_table.hpp>
#include <kvcondense/lowrank/eigen_attention.hpp>
#include <kvcondense/lowrank/online_pca.hpp>
#include <kvcondense/lowrank/pca.hpp>
#include <kvcondense/lowrank/think.hpp>
#include <kvcondense/quant/group_int.hpp>
#include <kvcondense/retrieve/quest.hpp>

#include "cache_coordinates.hpp"

using namespace kvcondense;
using namespace cuda_cache;

namespace {

constexpr CacheShape little{.q_heads = 4, .kv_heads = 2, .head_dim = 16, .value_dim = 12, .dtype = DType::f32, .page_slots = 16};

}  // namespace

TEST_CASE("cuda cache: heads of a layer find their maps in different steps") {
  const std::vector<float> shares{0.02f, 0.98f};
  any::ModelFacts facts;
  facts.shares = {shares.data(), 1, 2};
  const budget::HeadTableBudget uneven{evict::H2O{.heavy = 10, .recent = 4}, 1.01, facts.shares};
  const std::string text = "head_table(h2o(heavy=10, recent=4), beta=1.01)";
  const auto part = [&](const auto& method, const std::string& stage, float again) {
    INFO(stage);
    Pair pair(method, text + " + " + stage, little, facts);
    pair.allow(again);
    const auto coded = [&](index_t h) { return pair.on_device().layers()[0].keys.most(h).coded; };
    pair.forward(10, prim::AttendMath::f32, 3e-5f);
    for (int i = 0; i < 9; ++i) pair.forward(1, prim::AttendMath::f32, 3e-5f);
    pair.exchange();
    REQUIRE(coded(0) == 0);
    REQUIRE(coded(1) > 0);
    {
      Pair twin = pair.fork();
      twin.forward(2, prim::AttendMath::f32, 3e-5f);
    }
    pair.burst(3);
    const int waits = pair.waits();
    pair.forward(18, prim::AttendMath::f32, 3e-5f, Phase::prefill_chunk);
    pair.exchange();
    CHECK(coded(0) > 0);
    pair.forward(2, prim::AttendMath::f32, 3e-5f);
    pair.exchange();
    pair.burst(3);
    CHECK(waits == pair.waits());  // that one head has no map yet costs steps of the other nothing
  };
  part(recipe(uneven, lowrank::OnlinePca{.keep = 0.5, .tile = 1, .window = 2, .least = 14}), "online_pca(keep=50%, tile=1, window=2, least=14)", 2e-5f);
  part(recipe(uneven, lowrank::Think{.ratio = 0.5, .recent = 2, .least = 14}), "think(ratio=50%, recent=2, least=14)", 0.0f);
}

TEST_CASE("cuda cache: coordinates of one column beside codes, and layers of their own ranks") {
  const CacheShape shape{.layers = 2, .q_heads = 6, .kv_heads = 2, .head_dim = 32, .dtype = DType::f32, .page_slots = 4};
  const CacheShape single{.layers = 2, .q_heads = 3, .kv_heads = 1, .head_dim = 64, .dtype = DType::f32, .page_slots = 8};
  const RandomModel model(shape), other(single);
  const quant::GroupInt<4> codes{.group_size = 16, .residual_window = 2};
  live("pca(keys=false, window=2) + int4(group=16, residual=2)", shape, 1e-4f, model, lowrank::Pca{.window = 2, .keys = false, .bases = model.facts().bases}, codes);
  live("pca(rule=table, window=2) + int4(group=16, residual=2)", single, 1e-4f, other,
       lowrank::Pca{.rule = lowrank::RankRule::table, .window = 2, .bases = other.facts().bases}, codes);
}

TEST_CASE("cuda cache: chosen slots of heads of their own ranks") {
  const CacheShape shape{.layers = 2, .q_heads = 6, .kv_heads = 2, .head_dim = 32, .dtype = DType::f32, .page_slots = 4};
  const RandomModel model(shape);
  live("eigen_attention(rule=table, window=3) + quest(page=4, tokens=12, dense_layers=0)", shape, 2e-5f, model,
       lowrank::EigenAttention{.rule = lowrank::RankRule::table, .window = 3, .bases = model.facts().bases}, retrieve::Quest{.page = 4, .tokens = 12, .dense_layers = 0});
}
