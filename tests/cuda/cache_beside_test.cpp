// Retrieval stages whose attention reads something of a list of chosen slots, beside merging and codes, in a cache on CUDA.

#include <string>

#include <kvcondense/evict/h2o.hpp>
#include <kvcondense/lowrank/palu.hpp>
#include <kvcondense/lowrank/pca.hpp>
#include <kvcondense/merge/d2o.hpp>
#include <kvcondense/position/reindex.hpp>
#include <kvcondense/position/rerotate.hpp>
#include <kvcondense/quant/fp8.hpp>
#include <kvcondense/quant/kivi.hpp>
#include <kvcondense/retrieve/a2ats.hpp>
#include <kvcondense/retrieve/infllm.hpp>
#include <kvcondense/retrieve/landmark.hpp>
#include <kvcondense/retrieve/magicpig.hpp>
#include <kvcondense/retrieve/quest.hpp>
#include <kvcondense/retrieve/rekv.hpp>

#include "cache_coordinates.hpp"
#include "cache_retrieval.hpp"

using namespace kvcondense;
using cuda_cache::of;
using cuda_cache::parity;

TEST_CASE("cuda cache retrieves: numbers of slots that attention reads, by list") {
  // What merging weighs: logarithms of sizes, and scales of values; with biases of units beside them.
  const CacheShape shape{.layers = 2, .q_heads = 6, .kv_heads = 2, .head_dim = 64, .dtype = DType::f32, .page_slots = 8};
  const retrieve::Quest quest{.page = 4, .tokens = 12, .dense_layers = 0};
  parity(of(cuda_cache::inner, merge::D2O{.mass = merge::Mass::log_count}, quest), "h2o(heavy=20, recent=20) + d2o(mass=log_count) + quest(page=4, tokens=12, dense_layers=0)",
         shape, true, 1e-4f, 2e-5f);
  parity(of(cuda_cache::inner, merge::D2O{.mass = merge::Mass::value_scale}, quest), "h2o(heavy=20, recent=20) + d2o(mass=value_scale) + quest(page=4, tokens=12, dense_layers=0)",
         shape, true, 1e-4f, 2e-5f);
  parity(of(cuda_cache::inner, merge::D2O{.mass = merge::Mass::log_count}, retrieve::Landmark{.tokens = 4, .blocks = 3}),
         "h2o(heavy=20, recent=20) + d2o(mass=log_count) + landmark(tokens=4, blocks=3)", shape, true, 1e-4f, 2e-5f);
}

TEST_CASE("cuda cache retrieves: biases and raw keys by list beside codes") {
  const CacheShape shape{.layers = 2, .q_heads = 6, .kv_heads = 2, .head_dim = 64, .page_slots = 16};
  parity(of(quant::Kivi<4>{.group_size = 16, .residual_window = 16}, retrieve::Landmark{.tokens = 4, .blocks = 3}),
         "kivi(bits=4, group_size=16, residual_window=16) + landmark(tokens=4, blocks=3)", shape, false, 4e-4f);
  parity(of(position::Reindex{}, quant::Fp8{.residual_window = 8}, retrieve::ReKv{.frame = 5, .frames = 3, .init = 2, .question = 8}),
         "reindex + fp8(residual=8) + rekv(frame=5, frames=3, init=2, question=8)", shape, false, 1e-4f);
}

namespace {

/// Of coordinates: a prompt, tokens that choose among them, files that change sides.
template <class... Stages>
void of_coordinates(const std::string& text, const CacheShape& shape, const test::RandomModel& model, const Stages&... stages) {
  INFO(text);
  constexpr float near = 5e-5f;
  const auto method = recipe(stages...);
  cuda_cache::Pair pair(method, text, shape, model.facts());
  pair.allow(cuda_cache::made_again);
  pair.forward(50, prim::AttendMath::f32, near, Phase::prefill_end);
  for (int i = 0; i < 3; ++i) pair.forward(1, prim::AttendMath::f32, near), pair.look(near);
  pair.exchange();
  pair.forward(3, prim::AttendMath::f32, near);
  CHECK((pair.look(near).units_scored > 0 || method.retrieve.pipeline().holds()));  // what is held was scored by a step
  pair.compare_reports();
}

}  // namespace

TEST_CASE("cuda cache retrieves: biases, raw keys by list and keys out of reach beside coordinates") {
  const CacheShape& shape = cuda_cache::common;
  const test::RandomModel model(shape);
  of_coordinates("pca(window=16) + landmark(tokens=4, blocks=3)", shape, model, lowrank::Pca{.window = 16, .bases = model.facts().bases}, retrieve::Landmark{.tokens = 4, .blocks = 3});
  const lowrank::Palu palu{.bases = model.facts().bases};
  of_coordinates("palu + reindex + rekv(frame=5, frames=3, init=2, question=8)", shape, model, palu, position::Reindex{},
                 retrieve::ReKv{.frame = 5, .frames = 3, .init = 2, .question = 8});
  of_coordinates("palu + reindex + infllm(block=5, blocks=3, init=3, local=9, representatives=2, chunk=20)", shape, model, palu, position::Reindex{},
                 retrieve::InfLlm{.block = 5, .blocks = 3, .init = 3, .local = 9, .representatives = 2, .chunk = 20});
}

TEST_CASE("cuda cache retrieves: raw keys that came rotated, by list") {
  const CacheShape shape{.layers = 2, .q_heads = 6, .kv_heads = 2, .head_dim = 96, .value_dim = 32, .dtype = DType::f32, .page_slots = 7};
  parity(of(position::Rerotate{}, retrieve::ReKv{.frame = 5, .frames = 3, .init = 2, .question = 8}), "rerotate + rekv(frame=5, frames=3, init=2, question=8)", shape, false, 6e-5f, 2e-5f);
}

TEST_CASE("cuda cache retrieves: what query heads of a group chose is read by all of them") {
  const CacheShape& shape = cuda_cache::shapes()[1];
  const std::string text = "reindex + " + cuda_cache::setting("a2ats");
  parity([](const any::ModelFacts& facts) {
    return recipe(position::Reindex{}, retrieve::A2ats{.key_codes = facts.key_codes, .key_metric = facts.key_metric, .share = 0.1, .sinks = 2, .local = 5, .distance = 30});
  }, text, shape, false, 5e-5f);
}

TEST_CASE("cuda cache retrieves: words are seen from the mean of a prompt of many tokens") {
  const CacheShape shape{.layers = 2, .q_heads = 6, .kv_heads = 2, .head_dim = 64, .page_slots = 16};
  test::Device device;
  const cuda_cache::Model model(device, shape);
  cuda_cache::Pair pair(recipe(retrieve::MagicPig{.hash_planes = model.on_device().hash_planes, .sinks = 2, .local = 6, .dense_every = 0}), cuda_cache::setting("magicpig"),
                        shape, model.on_host());
  pair.forward(50, prim::AttendMath::f32, pair.near, Phase::prefill_end);
  for (int i = 0; i < 3; ++i) pair.forward(1), pair.look();
  pair.exchange();
  pair.forward(1);
  CHECK(pair.look().units_scored > 0);
}
