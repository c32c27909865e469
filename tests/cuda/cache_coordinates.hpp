#pragma once

// What tests of caches on CUDA share whose low-rank stage stores keys and values as coordinates.

#include <string>

#include <support/model_facts.hpp>

#include "cache_methods.hpp"
#include "cache_shapes.hpp"

namespace cuda_cache {

using kvcondense::test::RandomModel;

/// Rows that coordinates are made into again are sums in another order than the CPU's.
inline constexpr float made_again = 2e-6f;

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
    twin.exchange();
  }
  pair.exchange();
  forward(pair, 1);
  pair.compare_reports();
}

template <class... Stages>
void live(const std::string& text, const CacheShape& shape, float within, const RandomModel& model, const Stages&... stages) {
  live_as(text, shape, made_again, within, model.facts(), stages...);
}

}  // namespace cuda_cache
