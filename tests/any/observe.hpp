#pragma once

#include <vector>

#include <catch2/catch.hpp>

#include <kvcondense/any/any_cache.hpp>
#include <kvcondense/cpu.hpp>
#include <support/model_facts.hpp>
#include <support/naive_cache.hpp>
#include <support/step_data.hpp>

namespace kvcondense::test {

inline constexpr CacheShape observed_shape{.layers = 3, .q_heads = 4, .kv_heads = 2, .head_dim = 64};

/// What `observe` gives recipes to know of a model.
inline const any::ModelFacts& observed_facts() {
  static const RandomModel model(observed_shape);
  return model.facts();
}

/// What a person could see of a recipe: how slots are stored, how keys turn, which tokens a small
/// cache keeps and what attention makes of them. Empty when a cache of this shape refuses the recipe.
inline std::vector<double> observe(const any::AnyRecipe& recipe) {
  constexpr CacheShape shape = observed_shape;
  auto cache = any::AnyCache::make(recipe, "", shape);
  if (!cache) return {};
  std::vector<double> seen;
  const auto storage = storage_of(recipe);
  for (index_t layer = 0; layer < shape.layers; ++layer)
    for (index_t head = 0; head < shape.kv_heads; ++head) {
      const HeadIndex at{layer, head};
      for (const any::AnyCodec& codec : {storage.key_codec(shape, at), storage.value_codec(shape, at)})
        for (const std::int64_t n : {codec.fingerprint() >> 32, codec.fingerprint() & 0xffffffff, codec.group_slots()})
          seen.push_back(static_cast<double>(n));
      for (const Flush& f : {storage.key_flush(shape, at), storage.value_flush(shape, at)})
        for (const index_t n : {f.block, f.keep, f.first}) seen.push_back(static_cast<double>(n));
    }
  seen.push_back(static_cast<double>(storage.sinks));
  if (recipe.position.raw_keys) {
    const auto angles = prim::rope_angles(recipe.position.rope, shape.head_dim);
    REQUIRE(angles);
    seen.push_back(static_cast<double>(angles->pairing));
    seen.push_back(static_cast<double>(angles->attention_factor));
    for (index_t t = 0; t < angles->pairs; ++t)
      seen.push_back(static_cast<double>(angles->frequency[t]));
  }

  const bool shrinks = cache->capabilities().changes_length;
  // Where every token stays, and is as good, only what attention makes of codes may differ: one generated token shows it.
  const bool steady = !shrinks && !recipe.quant.has_saliency() && !recipe.retrieve.pipeline().active();
  if (steady && !cache->capabilities().lossy_slots) return seen;
  Workspace work;
  REQUIRE(work.reserve(cache->workspace_bytes(256, 160)) == Status::ok);
  Context<Cpu> ctx(work.bytes());
  std::mt19937 random(5);
  for (int pass = 0; pass < (steady ? 3 : 21); ++pass)  // a prompt in two chunks, generated tokens, turns among them
    for (index_t l = 0; l < shape.layers; ++l) {
      const Tokens t(shape, pass == 0 ? 100 : pass == 1 ? 60 : 1, random, 2.0f);
      const StepData data(shape, t.n, random);
      const Phase phase = pass == 0   ? Phase::prefill_chunk
                          : pass == 1 ? Phase::prefill_end
                                      : Phase::decode;
      std::vector<float> out(static_cast<std::size_t>(shape.q_heads * t.n * shape.head_dim));
      REQUIRE(cache->forward(ctx, l, t.queries(shape), t.keys(shape), t.values(shape),
                             dense_view(out.data(), shape.q_heads, t.n, shape.head_dim), {}, phase,
                             data.inputs()) == Status::ok);
      seen.push_back(static_cast<double>(out.front())), seen.push_back(static_cast<double>(out.back()));
      if (pass == 1 && !steady) {  // what is asked about before anything is known of a question
        REQUIRE(cache->append(ctx, l, t.keys(shape), t.values(shape), {}, t.queries(shape)) == Status::ok);
        StepInputs asks{.queries = t.queries(shape), .hidden_norms = data.inputs().hidden_norms, .probe_first = 0, .probe_last = 150};
        REQUIRE(cache->step(ctx, l, asks, Phase::probe) == Status::ok);
      }
      if (pass == 1 && !steady && l == shape.layers - 1) REQUIRE(cache->truncate(160) == Status::ok);
      if (l == shape.layers - 1 && (pass == 10 || pass == 16))
        REQUIRE(cache->turn(ctx, 30) == Status::ok);
      for (index_t h = 0; h < shape.kv_heads; ++h) {
        seen.push_back(static_cast<double>(cache->slots(l, h)));
        for (index_t s = 0; s < cache->slots(l, h); ++s)
          seen.push_back(static_cast<double>(cache->token(l, h, s)));
      }
    }
  return seen;
}

}  // namespace kvcondense::test
