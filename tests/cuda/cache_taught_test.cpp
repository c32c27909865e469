// Retrieval stages in a cache on CUDA that learn from a prompt: centroids, clusters with thresholds, columns of a basis.

#include <vector>

#include <kvcondense/budget/head_table.hpp>
#include <kvcondense/budget/ratio.hpp>
#include <kvcondense/evict/h2o.hpp>
#include <kvcondense/quant/group_int.hpp>
#include <kvcondense/retrieve/infinigen.hpp>
#include <kvcondense/retrieve/pqcache.hpp>
#include <kvcondense/retrieve/squeezed.hpp>

#include "cache_retrieval.hpp"

using namespace kvcondense;
using cuda_cache::of;
using cuda_cache::Pair;
using cuda_cache::parity;

namespace {

/// A long first prompt teaches what later tokens, queries between steps and a second prompt find by; taken back, removed, forked, from a file of the other side.
template <class Make>
void taught(Make&& make, const std::string& text, const CacheShape& shape, bool moves = false, float within = 0.0f) {
  INFO(text << ", head_dim " << shape.head_dim);
  test::Device device;
  cuda_cache::Model model(device, shape);
  const auto method = make(model.on_device());
  Pair pair(method, text, shape, model.on_host());
  const float near = within > 0.0f ? within : pair.near;
  const auto forward = [&](auto& p, index_t tokens, Phase phase = Phase::automatic) { p.forward(tokens, prim::AttendMath::f32, near, phase), p.look(near); };
  forward(pair, 37, Phase::prefill_chunk);
  CHECK(pair.look(near).units_scored == 0);  // nothing is known yet
  pair.exchange();
  forward(pair, 34, Phase::prefill_end);
  CHECK(pair.look(near).units_scored > 0);
  for (int i = 0; i < 3; ++i) forward(pair, 1);
  forward(pair, 3), pair.draft(2, near);
  pair.exchange();  // lessons are the file's, codes are made anew
  pair.look(near);
  forward(pair, 20, Phase::prefill_end);  // they stay
  if (!moves) pair.truncate(66), pair.look(near), forward(pair, 2);
  pair.remove(9, 16);
  pair.look(near);
  auto fork = pair.fork();
  forward(fork, 2), forward(pair, 1);
  const ReadCounts reads = pair.look(near);
  CHECK(reads.units_scored > 0);
  CHECK(reads.slots_read < method.retrieve.pipeline().rows(shape) / shape.kv_heads * pair.on_host().total_slots(shape.layers - 1));
  pair.compare_reports();
}

}  // namespace

KVCONDENSE_CUDA_RETRIEVES("squeezed", retrieve::Squeezed{.clusters = 0.2, .coarse = 0.1, .observe = 6, .iterations = 3})
KVCONDENSE_CUDA_RETRIEVES("pqcache", retrieve::PqCache{.bits = 3, .iterations = 3, .keep = 0.4, .sinks = 2})
KVCONDENSE_CUDA_RETRIEVES("infinigen", retrieve::InfiniGen{.query_axes = facts.query_axes, .part = 0.3, .alpha = 1.0, .dense_layers = 0})

TEST_CASE("cuda cache retrieves: what a prompt teaches, in every group and head_dim") {
  for (CacheShape shape : cuda_cache::shapes()) {
    shape.layers = 1;
    taught(of(retrieve::PqCache{.bits = 3, .iterations = 3, .keep = 0.4, .sinks = 2}), cuda_cache::setting("pqcache"), shape);
    taught(of(retrieve::Squeezed{.clusters = 0.2, .coarse = 0.1, .observe = 6, .iterations = 3}), cuda_cache::setting("squeezed"), shape);
    taught([](const any::ModelFacts& facts) { return recipe(retrieve::InfiniGen{.query_axes = facts.query_axes, .part = 0.3, .alpha = 1.0, .dense_layers = 0}); },
           cuda_cache::setting("infinigen"), shape);
  }
}
TEST_CASE("cuda cache retrieves: codes of two bytes, clusters of one level, a threshold of all heads") {
  taught(of(retrieve::PqCache{.parts = 4, .bits = 9, .iterations = 2, .keep = 0.4, .sinks = 2}), "pqcache(parts=4, bits=9, iterations=2, keep=40%, sinks=2)", cuda_cache::shapes()[0]);
  taught(of(retrieve::Squeezed{.clusters = 0.3, .quantile = 0.6, .observe = 10, .iterations = 5}), "squeezed(clusters=30%, quantile=60%, observe=10, iterations=5)",
         cuda_cache::shapes()[1]);
  taught(of(retrieve::Squeezed{.clusters = 0.3, .threshold = 0.015, .observe = 10, .iterations = 5}), "squeezed(clusters=30%, threshold=1.5%, observe=10, iterations=5)",
         cuda_cache::shapes()[2]);
}
TEST_CASE("cuda cache retrieves: what a prompt teaches where slots leave, and of what is stored") {
  taught(of(evict::H2O{.heavy = 30, .recent = 20}, retrieve::PqCache{.bits = 3, .iterations = 3, .keep = 0.4, .sinks = 2}),
         "h2o(heavy=30, recent=20) + pqcache(bits=3, iterations=3, keep=40%, sinks=2)", cuda_cache::shapes()[1], true);
  taught(of(evict::H2O{.heavy = 30, .recent = 20}, retrieve::Squeezed{.clusters = 0.2, .observe = 6, .iterations = 3}),
         "h2o(heavy=30, recent=20) + squeezed(clusters=20%, observe=6, iterations=3)", cuda_cache::shapes()[0], true);
  taught(of(quant::GroupInt<2>{.group_size = 16, .residual_window = 6}, retrieve::PqCache{.bits = 3, .iterations = 3, .keep = 0.4, .sinks = 2}),
         "group_int(bits=2, group_size=16, residual_window=6) + pqcache(bits=3, iterations=3, keep=40%, sinks=2)", cuda_cache::shapes()[0], false, 4e-4f);
}
TEST_CASE("cuda cache retrieves: a prompt teaches the heads that keep enough of it, the next one the others") {
  const CacheShape shape{.q_heads = 4, .kv_heads = 2, .head_dim = 32, .page_slots = 8};
  const std::vector<float> shares{0.15f, 0.85f};
  any::ModelFacts facts;
  facts.shares = {shares.data(), 1, 2};
  constexpr retrieve::Squeezed method{.clusters = 0.3, .observe = 16, .iterations = 3};
  Pair pair(recipe(budget::HeadTableBudget{budget::Ratio{evict::H2O{.heavy = 20, .recent = 8}, 0.5}, 1.01, facts.shares}, method),
            "head_table(ratio(h2o(heavy=20, recent=8), keep=50%), beta=1.01) + squeezed(clusters=30%, observe=16, iterations=3)", shape, facts);
  const auto forward = [&](auto& to, index_t tokens, Phase phase = Phase::automatic) { to.forward(tokens, prim::AttendMath::f32, pair.near, phase), to.look(), to.draft(2); };
  const auto short_heads = [&] { return (pair.on_host().slots(0, 0) <= method.observe) + (pair.on_host().slots(0, 1) <= method.observe); };
  forward(pair, 40, Phase::prefill_end);
  CHECK(short_heads() == 1);
  const index_t scored = pair.look().units_scored;
  CHECK(scored > 0);
  for (int i = 0; i < 2; ++i) forward(pair, 1);
  pair.exchange(), pair.look();  // one head of the file knows nothing
  auto fork = pair.fork();
  for (auto* p : {&pair, &fork}) forward(*p, 60, Phase::prefill_end);
  CHECK(short_heads() == 0);
  CHECK(pair.look().units_scored > scored);
  pair.exchange(), pair.look();
  forward(pair, 1);
  pair.compare_reports();
}
