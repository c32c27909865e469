// Caches on CUDA whose low-rank stage stores keys and values as coordinates, beside those of the CPU.

#include <map>
#include <string>
#include <string_view>
#include <vector>

#include <kvcondense/evict/knorm.hpp>
#include <kvcondense/evict/sink_window.hpp>
#include <kvcondense/evict/snapkv.hpp>
#include <kvcondense/lowrank/cskv.hpp>
#include <kvcondense/lowrank/eigen_attention.hpp>
#include <kvcondense/lowrank/lorc.hpp>
#include <kvcondense/lowrank/matryoshka.hpp>
#include <kvcondense/lowrank/palu.hpp>
#include <kvcondense/lowrank/pca.hpp>
#include <kvcondense/lowrank/recalkv.hpp>
#include <kvcondense/lowrank/weight_svd.hpp>
#include <kvcondense/merge/d2o.hpp>
#include <kvcondense/position/reindex.hpp>
#include <kvcondense/quant/group_int.hpp>
#include <kvcondense/quant/turboquant.hpp>
#include <kvcondense/retrieve/quest.hpp>

#include "cache_coordinates.hpp"

using namespace kvcondense;
using namespace cuda_cache;

namespace {

constexpr evict::SnapKV seen{.tokens = 30, .window = 8, .kernel = 5};

}  // namespace

TEST_CASE("cuda cache coordinates: pca", "[ways]") {
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

TEST_CASE("cuda cache: coordinates become codes") {
  const RandomModel model(common), other(small);
  // The CPU multiplies these codes as integers.
  live("h2o(heavy=20, recent=8) + pca(window=4) + int4(group=32, residual=4)", common, 2e-4f, model, heavy, lowrank::Pca{.window = 4, .bases = model.facts().bases},
       quant::GroupInt<4>{.group_size = 32, .residual_window = 4});
  live("pca(window=4) + turboquant(residual=4)", small, 1e-4f, other, lowrank::Pca{.window = 4, .bases = other.facts().bases},
       quant::TurboQuant{.residual_window = 4});
}

TEST_CASE("cuda cache: coordinates beside merging, and of chosen slots") {
  const RandomModel model(common);
  const lowrank::Pca pca{.window = 16, .bases = model.facts().bases};
  live_as("sink_window(sinks=3, recent=30) + d2o + pca(window=16)", common, 1e-5f, 6e-5f, model.facts(), evict::SinkWindow{.recent = 30, .sinks = 3}, merge::D2O{}, pca);
  live("pca(window=16) + quest(page=4, tokens=12, dense_layers=0)", common, 2e-5f, model, pca, retrieve::Quest{.page = 4, .tokens = 12, .dense_layers = 0});
}

TEST_CASE("cuda cache: what coordinates are not made for is refused") {
  const RandomModel model(small);
  const BasisList bases = model.facts().bases;
  const auto status = [&](const auto&... stages) { return make_cache<Cuda>(small, recipe(stages...)).status(); };
  CHECK(status(lowrank::Pca{}) == Status::missing_input);
  CHECK(status(lowrank::Palu{.bases = bases}) == Status::incompatible);  // of raw keys
  CHECK(status(lowrank::Pca{.bases = bases}, position::Reindex{}) == Status::incompatible);
  // Codes of heads of their own ranks.
  CHECK(status(lowrank::Pca{.rule = lowrank::RankRule::table, .bases = bases}, quant::GroupInt<4>{.group_size = 16}) == Status::not_supported);
}

TEST_CASE("cuda cache: every low-rank stage is tried, or it is said what lacks") {
  cuda_cache::every_word_is_tried({Stage::lowrank}, "cuda cache coordinates: ", {});
}
