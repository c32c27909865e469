// A retrieval stage that steps tell what slots draw, in a cache of raw keys on CUDA beside the same on the CPU.

#include <cmath>
#include <string>
#include <vector>

#include <kvcondense/evict/sink_window.hpp>
#include <kvcondense/position/reindex.hpp>
#include <kvcondense/position/rerotate.hpp>
#include <kvcondense/quant/kivi.hpp>
#include <kvcondense/retrieve/alisa_window.hpp>
#include <kvcondense/retrieve/infllm.hpp>

#include "cache_retrieval.hpp"

using namespace kvcondense;
using cuda_cache::of;
using cuda_cache::Pair;
using cuda_cache::parity;

namespace {

constexpr retrieve::AlisaWindow near_and_far{.ratio = 0.4, .history = 5};
constexpr retrieve::InfLlm method{.block = 5, .blocks = 3, .init = 3, .local = 9, .representatives = 2, .chunk = 20};

void of_raw_keys(const CacheShape& shape) {
  parity([](const any::ModelFacts&) { return recipe(position::Reindex{}, method); }, "reindex + " + cuda_cache::setting("infllm"), shape, false, 5e-5f);
}

}  // namespace

KVCONDENSE_CUDA_RETRIEVES("alisa_window", near_and_far)

TEST_CASE("cuda cache retrieves: what the newest queries look at, beside eviction, codes and raw keys") {
  const CacheShape shape{.layers = 2, .q_heads = 6, .kv_heads = 2, .head_dim = 64, .page_slots = 16};
  const std::string text = cuda_cache::setting("alisa_window");
  parity(of(evict::SinkWindow{.recent = 36, .sinks = 3}, near_and_far), "sink_window(recent=36, sinks=3) + " + text, shape, true);
  parity(of(position::Reindex{}, quant::Kivi<4>{.group_size = 16, .residual_window = 16}, near_and_far), "reindex + kivi(bits=4, group_size=16, residual_window=16) + " + text,
         shape, false, 4e-4f, 1e-4f);
}

TEST_CASE("cuda cache retrieves: infllm") { of_raw_keys(cuda_cache::shape_of("infllm")); }
TEST_CASE("cuda cache retrieves in every shape: infllm", "[.][sweep]") {
  for (const CacheShape& shape : cuda_cache::shapes()) of_raw_keys(shape);
}

TEST_CASE("cuda cache retrieves: what slots drew stays with them, beside eviction and codes") {
  const CacheShape shape{.layers = 2, .q_heads = 6, .kv_heads = 2, .head_dim = 64, .page_slots = 16};
  const std::string text = cuda_cache::setting("infllm");
  parity(of(evict::SinkWindow{.recent = 36, .sinks = 3}, position::Reindex{}, method), "sink_window(recent=36, sinks=3) + reindex + " + text, shape, true, 5e-5f);
  parity(of(position::Reindex{}, quant::Kivi<4>{.group_size = 16, .residual_window = 16}, method), "reindex + kivi(bits=4, group_size=16, residual_window=16) + " + text, shape,
         false, 4e-4f);
}

TEST_CASE("cuda cache retrieves: blocks behind a window, of keys that come rotated") {
  const CacheShape shape{.layers = 2, .q_heads = 6, .kv_heads = 2, .head_dim = 64, .dtype = DType::f32, .page_slots = 16};
  parity(of(position::Rerotate{}, method), "rerotate + " + cuda_cache::setting("infllm"), shape, false, 7e-5f, 1e-5f);
}

TEST_CASE("cuda cache retrieves: steps of more tokens than are told of together, and queries that are no numbers") {
  const CacheShape shape{.layers = 1, .q_heads = 4, .kv_heads = 2, .head_dim = 32, .page_slots = 16};
  Pair pair(recipe(position::Reindex{}, method), "reindex + " + cuda_cache::setting("infllm"), shape);
  pair.forward(300, prim::AttendMath::f32, 5e-5f, Phase::prefill_end);
  pair.look(5e-5f);
  for (int i = 0; i < 3; ++i) pair.forward(7, prim::AttendMath::f32, 5e-5f), pair.look(5e-5f);
  pair.look(5e-5f, [](std::vector<float>& q) { q[3] = NAN; });
  pair.exchange();
  pair.look(5e-5f);
}

TEST_CASE("cuda cache retrieves: a step that is refused memory leaves what slots drew") {
  const retrieve::InfLlm small{.block = 2, .blocks = 2, .init = 1, .local = 3, .representatives = 1, .chunk = 8};
  cuda_cache::refuse_a_step(recipe(position::Reindex{}, small), 9, {0, 1, 2, 3, 4, 5, 6, -1}, 1, [](auto&&...) {});
  cuda_cache::refuse_a_step(recipe(retrieve::AlisaWindow{.ratio = 0.6, .history = 2}), 9, {0, 1, 2, 3, 4, 5, 6, -1}, 1, [](auto&&...) {});
}
