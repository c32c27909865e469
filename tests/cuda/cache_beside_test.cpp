// Retrieval stages whose attention reads something of a list of chosen slots, beside merging and codes, in a cache on CUDA.

#include <kvcondense/evict/h2o.hpp>
#include <kvcondense/merge/d2o.hpp>
#include <kvcondense/position/reindex.hpp>
#include <kvcondense/position/rerotate.hpp>
#include <kvcondense/quant/fp8.hpp>
#include <kvcondense/quant/kivi.hpp>
#include <kvcondense/retrieve/landmark.hpp>
#include <kvcondense/retrieve/quest.hpp>
#include <kvcondense/retrieve/rekv.hpp>

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

TEST_CASE("cuda cache retrieves: raw keys that came rotated, by list") {
  const CacheShape shape{.layers = 2, .q_heads = 6, .kv_heads = 2, .head_dim = 96, .value_dim = 32, .dtype = DType::f32, .page_slots = 7};
  parity(of(position::Rerotate{}, retrieve::ReKv{.frame = 5, .frames = 3, .init = 2, .question = 8}), "rerotate + rekv(frame=5, frames=3, init=2, question=8)", shape, false, 6e-5f, 2e-5f);
}
