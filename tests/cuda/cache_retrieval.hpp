#pragma once

// One line makes a retrieval method a test: its choice, its attention and its counts in a cache on CUDA beside those of the CPU.

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "cache_methods.hpp"

namespace cuda_cache {

/// A recipe that needs nothing of a model.
template <class... Stages>
auto of(const Stages&... stages) {
  return [=](const any::ModelFacts&) { return recipe(stages...); };
}

/// Every number of a query, of all queries, or one channel of every KV head's first query, is none: the choice is the CPU's.
template <class P>
void look_at_nothing(P& pair, const CacheShape& shape, float near) {
  pair.look(near, [](std::vector<float>& q) { std::fill(q.begin(), q.end(), NAN); });
  pair.look(near, [&](std::vector<float>& q) {
    for (index_t h = 0; h < shape.q_heads; h += shape.q_heads / shape.kv_heads) q[test::at(h * shape.head_dim + 5)] = NAN;
  });
}

/// A prompt in chunks, tokens one by one, drafts; between steps one more query; tokens that are taken back, in part and to the last.
template <class Make>
void parity(Make&& make, const std::string& text, const CacheShape& shape, bool moves = false, float within = 0.0f, float rounding = 0.0f) {
  INFO(text << ", head_dim " << shape.head_dim);
  test::Device device;
  cuda_cache::Model model(device, shape);
  const auto method = make(model.on_device());
  Pair pair(method, text, shape, model.on_host());
  pair.allow(rounding);
  const float near = within > 0.0f ? within : pair.near;
  const auto forward = [&](auto& p, index_t tokens, Phase phase = Phase::automatic) { p.forward(tokens, prim::AttendMath::f32, near, phase), p.look(near); };
  pair.look();  // of an empty cache
  for (int i = 0; i < 3; ++i) forward(pair, 1);  // fewer slots than are chosen
  forward(pair, 20, Phase::prefill_chunk);
  forward(pair, 29, Phase::prefill_end);
  for (int i = 0; i < 4; ++i) forward(pair, 1);
  forward(pair, 3);      // several tokens that choose
  pair.draft(3, near);   // the same, told what they read
  pair.exchange();       // the index is made anew from a file
  pair.look(near);
  if (!moves) pair.truncate(41), pair.look(near), forward(pair, 2);
  pair.remove(7, 13);
  pair.look(near);
  for (int i = 0; i < 3; ++i) forward(pair, 1);
  auto fork = pair.fork();
  forward(fork, 2), forward(pair, 1);
  const ReadCounts reads = pair.look(near);
  const auto pipeline = method.retrieve.pipeline();
  const index_t rows = pipeline.rows(shape), last = shape.layers - 1;
  CHECK((reads.units_scored > 0 || pipeline.holds()));  // what is held was scored by a step
  CHECK(reads.slots_read < rows / shape.kv_heads * pair.on_host().total_slots(last));
  CHECK(reads.slots_touched <= reads.slots_read);
  look_at_nothing(pair, shape, near);
  pair.compare_reports();
  CHECK(pair.on_device().report(pair.device())->index_bytes > 0);
}

}  // namespace cuda_cache

/// KVCONDENSE_CUDA_RETRIEVES(word, the stages): `facts` are those of the model. One of the shapes, and hidden behind [sweep] all of them.
#define KVCONDENSE_CUDA_RETRIEVES(word, ...)                                                                                                    \
  TEST_CASE("cuda cache retrieves: " word) {                                                                                                     \
    cuda_cache::parity([&]([[maybe_unused]] const any::ModelFacts& facts) { return recipe(__VA_ARGS__); }, cuda_cache::setting(word), cuda_cache::shape_of(word)); \
  }                                                                                                                                             \
  TEST_CASE("cuda cache retrieves in every shape: " word, "[.][sweep]") {                                                                       \
    for (const CacheShape& shape : cuda_cache::shapes())                                                                                        \
      cuda_cache::parity([&]([[maybe_unused]] const any::ModelFacts& facts) { return recipe(__VA_ARGS__); }, cuda_cache::setting(word), shape);            \
  }
