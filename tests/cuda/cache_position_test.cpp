// Keys that are stored without rotation and turn by slot order as they are read: a cache on CUDA beside the one on the CPU.

#include <string_view>
#include <vector>

#include <kvcondense/evict/compensate.hpp>
#include <kvcondense/evict/expected_attention.hpp>
#include <kvcondense/evict/h2o.hpp>
#include <kvcondense/evict/sink_window.hpp>
#include <kvcondense/evict/snapkv.hpp>
#include <kvcondense/merge/d2o.hpp>
#include <kvcondense/merge/ems.hpp>
#include <kvcondense/position/reindex.hpp>
#include <kvcondense/position/rerotate.hpp>
#include <kvcondense/quant/fp8.hpp>
#include <kvcondense/quant/kivi.hpp>

#include "cache_methods.hpp"

using namespace kvcondense;
using cuda_cache::Pair;

namespace {

template <class... Stages>
void turns(std::string_view text, const CacheShape& shape, float stored, float within, const any::ModelFacts& facts, const Stages&... stages) {
  INFO(text << ", head_dim " << shape.head_dim);
  Pair pair(recipe(stages...), text, shape, facts);
  pair.allow(stored);
  const auto feed = [&](auto& to, index_t n, Phase phase = Phase::automatic) { to.forward(n, prim::AttendMath::f32, within, phase); };
  feed(pair, 1, Phase::prefill_chunk);
  feed(pair, 20, Phase::prefill_chunk);
  feed(pair, 30, Phase::prefill_end);
  for (int i = 0; i < 4; ++i) feed(pair, 1);
  pair.exchange();
  feed(pair, 1);
  {
    Pair other = pair.fork();
    feed(other, 2);
    feed(pair, 1);
    feed(other, 1);
  }
  pair.truncate(pair.on_device().length() - 3);
  feed(pair, 2);
  pair.turn(4);
  feed(pair, 4, Phase::prefill_end);
  pair.remove(pair.on_device().length() - 5, pair.on_device().length() - 3);
  feed(pair, 1);
  pair.truncate(0);
  feed(pair, 300);  // more than travel with one launch
  feed(pair, 1);
  pair.compare_reports();
}

constexpr evict::SinkWindow ends{.recent = 26, .sinks = 3};

}  // namespace

TEST_CASE("cuda cache position: reindex") {
  for (const CacheShape& shape : cuda_cache::shapes())
    turns("sink_window(sinks=3, recent=26) + reindex", shape, 0.0f, 3e-5f, {}, ends, position::Reindex{});
}

TEST_CASE("cuda cache position: rerotate") {
  for (const CacheShape& shape : cuda_cache::shapes()) {
    // What is turned back is rounded where it is stored.
    const float step = shape.dtype == DType::f32 ? 1e-5f : shape.dtype == DType::f16 ? 0x1p-9f : 0x1p-6f;
    turns("sink_window(sinks=3, recent=26) + rerotate", shape, step, 3e-5f + 2.0f * step, {}, ends, position::Rerotate{});
  }
}

TEST_CASE("cuda cache: every position stage is tried, or it is said what lacks") {
  cuda_cache::every_word_is_tried({Stage::position}, "cuda cache position: ", {{"absolute", "nothing: it is the recipe without a position stage"}});
}

TEST_CASE("cuda cache: raw keys of interleaved pairs, some components, and a scaling with a factor") {
  any::ModelFacts facts;
  facts.rope = {.pairing = prim::RopePairing::interleaved, .rotary_dim = 36, .base = 5000.0, .scaling = prim::RopeScaling::yarn, .factor = 4.0, .original_length = 64};
  const CacheShape shape{.layers = 2, .q_heads = 10, .kv_heads = 2, .head_dim = 96, .value_dim = 32, .dtype = DType::f32, .page_slots = 7};
  turns("sink_window(sinks=3, recent=26) + reindex", shape, 0.0f, 4e-5f, facts, ends, position::Reindex{.rope = facts.rope});
  turns("sink_window(sinks=3, recent=26) + rerotate", shape, 2e-5f, 6e-5f, facts, ends, position::Rerotate{.rope = facts.rope});
}

TEST_CASE("cuda cache: raw keys behind policies that look at attention, beside codes and merging") {
  const CacheShape shape{.layers = 2, .q_heads = 6, .kv_heads = 2, .head_dim = 64, .dtype = DType::f32, .page_slots = 16};
  turns("h2o(heavy=14, recent=14) + reindex", shape, 0.0f, 3e-5f, {}, evict::H2O{.heavy = 14, .recent = 14}, position::Reindex{});
  turns("snapkv(tokens=30, window=6, kernel=3) + reindex", shape, 0.0f, 3e-5f, {}, evict::SnapKV{.tokens = 30, .window = 6, .kernel = 3}, position::Reindex{});
  turns("snapkv(tokens=30, window=6, kernel=3) + rerotate", shape, 1e-5f, 4e-5f, {}, evict::SnapKV{.tokens = 30, .window = 6, .kernel = 3}, position::Rerotate{});
  turns("sink_window(sinks=3, recent=26) + reindex + fp8(residual=8)", shape, 0.0f, 1e-4f, {}, ends, position::Reindex{}, quant::Fp8{.residual_window = 8});
  turns("sink_window(sinks=3, recent=26) + reindex + kivi4(group=8, residual=8)", shape, 0.0f, 4e-4f, {}, ends, position::Reindex{},
        quant::Kivi<4>{.group_size = 8, .residual_window = 8});
  turns("sink_window(sinks=3, recent=26) + d2o(mass=log_count, place=pivot) + reindex", shape, 2e-5f, 1e-4f, {}, ends,
        merge::D2O{.mass = merge::Mass::log_count, .place = merge::Place::pivot}, position::Reindex{});
}

TEST_CASE("cuda cache: what raw keys cannot be beside") {
  const CacheShape shape{.q_heads = 2, .kv_heads = 2, .head_dim = 16, .page_slots = 4};
  const auto status = [&](const auto& r) { return make_cache<Cuda>(shape, r).status(); };
  CHECK(status(recipe(ends, position::Reindex{.rope = {.rotary_dim = 18}})) == Status::invalid_argument);
  CHECK(status(recipe(ends, position::Rerotate{.rope = {.scaling = prim::RopeScaling::dynamic_ntk}})) == Status::not_supported);
  CHECK(status(recipe(evict::Compensate{ends}, position::Reindex{})) == Status::incompatible);
  CHECK(status(recipe(ends, merge::D2O{.mass = merge::Mass::exact}, position::Reindex{})) == Status::incompatible);
  CHECK(status(recipe(ends, merge::D2O{.place = merge::Place::latest}, position::Reindex{})) == Status::incompatible);
  CHECK(status(recipe(evict::ExpectedAttention{}, position::Reindex{})) == Status::incompatible);
}
