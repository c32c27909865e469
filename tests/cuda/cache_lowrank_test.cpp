// Caches on CUDA whose low-rank stage stores keys and values as coordinates, beside those of the CPU.

#include <cmath>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include <kvcondense/evict/h2o.hpp>
#include <kvcondense/evict/knorm.hpp>
#include <kvcondense/evict/snapkv.hpp>
#include <kvcondense/lowrank/cskv.hpp>
#include <kvcondense/lowrank/eigen_attention.hpp>
#include <kvcondense/lowrank/joint_heads.hpp>
#include <kvcondense/lowrank/lorc.hpp>
#include <kvcondense/lowrank/matryoshka.hpp>
#include <kvcondense/lowrank/online_pca.hpp>
#include <kvcondense/lowrank/palu.hpp>
#include <kvcondense/lowrank/pca.hpp>
#include <kvcondense/lowrank/recalkv.hpp>
#include <kvcondense/lowrank/shadowkv.hpp>
#include <kvcondense/lowrank/think.hpp>
#include <kvcondense/lowrank/weight_svd.hpp>
#include <kvcondense/lowrank/xkv.hpp>
#include <kvcondense/position/reindex.hpp>
#include <kvcondense/quant/group_int.hpp>
#include <kvcondense/quant/kivi.hpp>
#include <kvcondense/quant/turboquant.hpp>
#include <support/model_facts.hpp>

#include "cache_methods.hpp"

using namespace kvcondense;
using cuda_cache::Pair;
using kvcondense::test::RandomModel;

namespace {

/// Rows that coordinates are made into again are sums in another order than the CPU's.
constexpr float made_again = 2e-6f;

/// A prompt, tokens, a roll back, a removal, files that change sides, a fork. `again`: how near rows are that are made of coordinates again.
template <class... Stages>
void live_as(const std::string& text, const CacheShape& shape, float again, float within, const any::ModelFacts& facts, const Stages&... stages) {
  INFO(text << ", heads of " << shape.head_dim);
  Pair pair(recipe(stages...), text, shape, facts);
  pair.allow(again);
  const auto forward = [&](auto& to, index_t tokens) { to.forward(tokens, prim::AttendMath::f32, within); };
  forward(pair, 40);
  for (int i = 0; i < 3; ++i) forward(pair, 1);
  forward(pair, 3);
  pair.look(within);
  pair.compare_reports();
  pair.truncate(44);
  pair.remove(3, 9);
  pair.exchange();
  forward(pair, 6);
  {
    Pair twin = pair.fork();
    forward(twin, 4);
    forward(pair, 3);
  }
  pair.exchange();
  forward(pair, 1);
  pair.compare_reports();
}

template <class... Stages>
void live(const std::string& text, const CacheShape& shape, float within, const RandomModel& model, const Stages&... stages) {
  live_as(text, shape, made_again, within, model.facts(), stages...);
}

// Query heads a KV head: 3, 7, 4, 1; heads of 64, 80, 128 and 256.
const CacheShape small{.layers = 2, .q_heads = 6, .kv_heads = 2, .head_dim = 64, .page_slots = 16};
const CacheShape odd{.q_heads = 7, .kv_heads = 1, .head_dim = 80, .value_dim = 48, .page_slots = 5};
const CacheShape common{.layers = 2, .q_heads = 8, .kv_heads = 2, .head_dim = 128, .dtype = DType::f32, .page_slots = 64};
const CacheShape wide{.q_heads = 2, .kv_heads = 2, .head_dim = 256, .dtype = DType::bf16, .page_slots = 8};

constexpr evict::H2O heavy{.heavy = 20, .recent = 8};
constexpr evict::SnapKV seen{.tokens = 30, .window = 8, .kernel = 5};

}  // namespace

TEST_CASE("cuda cache coordinates: pca") {
  const RandomModel model(small), other(odd), broad(wide);
  live("pca(window=5, sinks=3)", small, 2e-5f, model, lowrank::Pca{.window = 5, .sinks = 3, .bases = model.facts().bases});
  // One coordinate a key, all of a value.
  live("h2o(heavy=20, recent=8) + pca(keep=0.2%, value_keep=1, tile=1, window=0)", odd, 2e-5f, other, heavy,
       lowrank::Pca{.keep = 0.002, .value_keep = 1.0, .tile = 1, .window = 0, .bases = other.facts().bases});
  live("h2o(heavy=20, recent=8) + pca(value_keep=1, window=2)", wide, 2e-5f, broad, heavy, lowrank::Pca{.value_keep = 1.0, .window = 2, .bases = broad.facts().bases});
  live("pca(keys=false, window=2)", small, 2e-5f, model, lowrank::Pca{.window = 2, .keys = false, .bases = model.facts().bases});
}

TEST_CASE("cuda cache coordinates: eigen_attention") {
  // Every head has a rank of its own.
  const RandomModel model(common), other(small);
  live("h2o(heavy=20, recent=8) + eigen_attention(rule=table, window=3)", common, 2e-5f, model, heavy,
       lowrank::EigenAttention{.rule = lowrank::RankRule::table, .window = 3, .bases = model.facts().bases});
  live("snapkv(tokens=30, window=8, kernel=5) + eigen_attention(rule=table)", small, 2e-5f, other, seen,
       lowrank::EigenAttention{.rule = lowrank::RankRule::table, .bases = other.facts().bases});
}

TEST_CASE("cuda cache coordinates: matryoshka") {
  const RandomModel model(wide);
  live("knorm(tokens=30, recent=6) + matryoshka", wide, 2e-5f, model, evict::Knorm{.tokens = 30, .recent = 6}, lowrank::Matryoshka{.bases = model.facts().bases});
}

TEST_CASE("cuda cache coordinates: cskv") {
  // Columns that are not orthonormal, a window that tumbles.
  const RandomModel model(small);
  live("h2o(heavy=20, recent=8) + cskv(window=8)", small, 2e-5f, model, heavy, lowrank::Cskv{.window = 8, .bases = model.facts().bases});
}

TEST_CASE("cuda cache coordinates: palu") {
  const RandomModel model(common);
  live("palu + reindex", common, 3e-5f, model, lowrank::Palu{.bases = model.facts().bases}, position::Reindex{});
}

TEST_CASE("cuda cache coordinates: weight_svd") {
  const RandomModel model(odd);
  live("h2o(heavy=20, recent=8) + weight_svd(window=3) + reindex", odd, 3e-5f, model, heavy, lowrank::WeightSvd{.window = 3, .bases = model.facts().bases}, position::Reindex{});
}

TEST_CASE("cuda cache coordinates: lorc") {
  const RandomModel model(small);
  live("lorc + reindex", small, 3e-5f, model, lowrank::Lorc{.bases = model.facts().bases}, position::Reindex{});
}

TEST_CASE("cuda cache coordinates: recalkv") {
  const RandomModel model(small);
  live("snapkv(tokens=30, window=8, kernel=5) + recalkv + reindex", small, 3e-5f, model, seen, lowrank::ReCalKV{.bases = model.facts().bases}, position::Reindex{});
}

// Coordinates in a basis that was found are sums in another order than the CPU's, and rounded where they are stored.

TEST_CASE("cuda cache coordinates: online_pca") {
  const lowrank::OnlinePca pca{.keep = 0.5, .value_keep = 0.25, .window = 6, .least = 20, .sinks = 2};
  live_as("online_pca(keep=50%, value_keep=25%, window=6, least=20, sinks=2)", common, 2e-5f, 3e-5f, {}, pca);
  live_as("h2o(heavy=20, recent=8) + online_pca(keep=50%, value_keep=25%, window=6, least=20, sinks=2)", common, 2e-5f, 3e-5f, {}, heavy, pca);
  const lowrank::OnlinePca centred{.keep = 0.25, .window = 3, .least = 24, .center = true};
  live_as("h2o(heavy=20, recent=8) + online_pca(keep=25%, window=3, least=24, center=true)", small, 4e-3f, 4e-3f, {}, heavy, centred);
}

TEST_CASE("cuda cache coordinates: shadowkv") {
  const lowrank::ShadowKV shadow{.keep = 0.5, .chunk = 4, .local_chunks = 2, .least = 16};
  live_as("shadowkv(keep=50%, chunk=4, local_chunks=2, least=16) + reindex", common, 2e-5f, 3e-5f, {}, shadow, position::Reindex{});
}

TEST_CASE("cuda cache coordinates: think") {
  live_as("think(ratio=50%, recent=6, least=8)", small, 0.0f, 2e-5f, {}, lowrank::Think{.ratio = 0.5, .recent = 6, .least = 8});
  const lowrank::Think pairs{.ratio = 0.3, .observe = 5, .recent = 4, .least = 16, .sinks = 2, .pairs = true};
  live_as("h2o(heavy=20, recent=8) + think(ratio=30%, observe=5, recent=4, least=16, sinks=2, pairs=true)", wide, 0.0f, 2e-5f, {}, heavy, pairs);
  live_as("think(ratio=30%, observe=5, recent=4, least=16, sinks=2, pairs=true) + reindex", common, 0.0f, 3e-5f, {}, pairs, position::Reindex{});
}

TEST_CASE("cuda cache: a map is found from enough rows, of every head when it has them, and forgotten by reset") {
  Pair pair(recipe(lowrank::OnlinePca{.window = 4, .least = 12}), "online_pca(window=4, least=12)", common, {});
  pair.allow(2e-5f);
  const auto coded = [&] {
    const auto report = pair.on_device().report(pair.device());
    REQUIRE(report);
    return report->coded_bytes;
  };
  pair.forward(15, prim::AttendMath::f32, 3e-5f);
  CHECK(coded() == 0);
  pair.exchange();  // nothing was found yet
  pair.forward(1, prim::AttendMath::f32, 3e-5f);
  CHECK(coded() > 0);
  pair.exchange();
  pair.truncate(2);  // what was found stays
  pair.forward(5, prim::AttendMath::f32, 3e-5f);
  CHECK(pair.on_device().layers()[0].keys.settled(0) < 7);
  REQUIRE(pair.on_device().reset(pair.device()) == Status::ok);
  pair.on_host().reset();
  pair.forward(15, prim::AttendMath::f32, 3e-5f);
  pair.forward(4, prim::AttendMath::f32, 3e-5f);
  pair.exchange();
}

TEST_CASE("cuda cache: coordinates become codes") {
  const RandomModel model(common), other(small);
  live("h2o(heavy=20, recent=8) + pca(window=4) + int4(group=32, residual=4)", common, 1e-4f, model, heavy, lowrank::Pca{.window = 4, .bases = model.facts().bases},
       quant::GroupInt<4>{.group_size = 32, .residual_window = 4});
  live("pca(window=4) + turboquant(residual=4)", small, 1e-4f, other, lowrank::Pca{.window = 4, .bases = other.facts().bases},
       quant::TurboQuant{.residual_window = 4});
}

TEST_CASE("cuda cache: what coordinates are not made for is refused") {
  const RandomModel model(small);
  const BasisList bases = model.facts().bases;
  const auto status = [&](const auto&... stages) { return make_cache<Cuda>(small, recipe(stages...)).status(); };
  CHECK(status(lowrank::Pca{}) == Status::missing_input);
  CHECK(status(lowrank::Palu{.bases = bases}) == Status::incompatible);  // of raw keys
  CHECK(status(lowrank::Pca{.bases = bases}, position::Reindex{}) == Status::incompatible);
  CHECK(status(lowrank::JointHeads{.bases = bases}, position::Reindex{}) == Status::not_supported);  // rows that heads share
  CHECK(status(lowrank::XKv{}) == Status::not_supported);  // and layers
  CHECK(status(lowrank::Pca{.bases = bases}, quant::Kivi<2>{.group_size = 32, .residual_window = 32}) == Status::not_supported);  // groups along slots
  // Codes of heads of their own ranks.
  CHECK(status(lowrank::Pca{.rule = lowrank::RankRule::table, .bases = bases}, quant::GroupInt<4>{.group_size = 16}) == Status::not_supported);
}

TEST_CASE("cuda cache: every low-rank stage is tried, or it is said what lacks") {
  const std::map<std::string, std::string> lacking{
      {"xkv", "rows that layers share"},
      {"joint_heads", "rows that heads share"},
  };
  cuda_cache::every_word_is_tried({Stage::lowrank}, "cuda cache coordinates: ", lacking);
}
