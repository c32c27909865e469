// Layers whose heads store rows together in groups of which the last has fewer heads, and other ranks.

#include <kvcondense/evict/sink_window.hpp>
#include <kvcondense/lowrank/xkv.hpp>

#include "cache_coordinates.hpp"

using namespace kvcondense;
using namespace cuda_cache;

TEST_CASE("cuda cache across layers: a last group of fewer heads") {
  const CacheShape odd_heads{.layers = 2, .q_heads = 3, .kv_heads = 3, .head_dim = 64, .dtype = DType::f32, .page_slots = 8};
  live_as("sink_window(recent=30, sinks=3) + xkv(layers=2, heads=2, keep=12.5%, value_keep=25%, window=6, least=16, sinks=2)", odd_heads, 2e-5f, 3e-5f, {}, evict::SinkWindow{.recent = 30, .sinks = 3},
          lowrank::XKv{.keep = 0.125, .value_keep = 0.25, .layers = 2, .heads = 2, .window = 6, .least = 16, .sinks = 2});
}
