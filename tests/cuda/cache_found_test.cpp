// Caches on CUDA whose low-rank stage finds its maps in the rows that are coded first, beside those of the CPU.

#include <string>

#include <kvcondense/evict/sink_window.hpp>
#include <kvcondense/lowrank/online_pca.hpp>
#include <kvcondense/lowrank/pca.hpp>
#include <kvcondense/lowrank/shadowkv.hpp>
#include <kvcondense/lowrank/think.hpp>
#include <kvcondense/position/reindex.hpp>

#include "cache_coordinates.hpp"

using namespace kvcondense;
using namespace cuda_cache;

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
  CHECK(pair.on_device().layers()[0].keys.most(0).coded == 3);
  REQUIRE(pair.on_device().reset(pair.device()) == Status::ok);
  pair.on_host().reset();
  pair.forward(15, prim::AttendMath::f32, 3e-5f);
  pair.forward(4, prim::AttendMath::f32, 3e-5f);
  pair.exchange();
}

TEST_CASE("cuda cache: while slots leave before there are enough of them, no map is found") {
  Pair pair(recipe(evict::SinkWindow{.recent = 10, .sinks = 2}, lowrank::OnlinePca{.window = 4, .least = 12}), "sink_window(recent=10, sinks=2) + online_pca(window=4, least=12)", small, {});
  for (const index_t tokens : {11, 1, 1, 2, 1, 3}) pair.forward(tokens);
  CHECK(pair.on_device().layers()[0].keys.most(0).coded == 0);
  pair.exchange();
  pair.forward(14, prim::AttendMath::f32, 4e-3f, Phase::prefill_chunk);
}

TEST_CASE("cuda cache: memory that is refused to sums of first rows changes nothing") {
  cuda_cache::refuse_a_step(recipe(evict::SinkWindow{.recent = 24, .sinks = 2}, lowrank::OnlinePca{.window = 2, .least = 14}), 8, {-1, 0, 1, 2, 3, 4, 5, 6, 8, 10, 14}, 2,
                            [](auto&, auto&, auto&) {});
}

TEST_CASE("cuda cache: memory that is refused to tables of maps makes no cache") {
  const RandomModel model(small);
  test::RefusingMemory memory(0);
  int refused = 0;
  for (;; ++refused) {
    REQUIRE(refused < 100);
    memory.left = refused;
    const auto cache = make_cache<Cuda>(small, recipe(lowrank::Pca{.bases = model.facts().bases}), memory);
    if (cache) break;
    REQUIRE(cache.status() == Status::out_of_memory);
    REQUIRE(memory.out == 0);
  }
  CHECK(refused > 8);  // two tables of two layers, and what every cache has
}
