#pragma once

#include <cstdint>
#include <random>
#include <string>
#include <vector>

#include <catch2/catch.hpp>

#include <any/settings.hpp>
#include <kvcondense/any/any_cache.hpp>
#include <kvcondense/cpu.hpp>
#include <support/model_facts.hpp>
#include <support/naive_cache.hpp>
#include <support/step_data.hpp>

namespace kvcondense::test {

inline constexpr CacheShape eviction_shape{.layers = 3, .q_heads = 4, .kv_heads = 2, .head_dim = 64, .dtype = DType::f32};

inline const any::ModelFacts& eviction_facts() {
  static const RandomModel model(eviction_shape);
  return model.facts();
}

/// Every word that evicts, in each of its settings.
inline std::vector<std::string> eviction_recipes() {
  std::vector<std::string> all;
  for (const any::Entry* e : any::builtin().entries())
    if (e->room == Stage::evict || e->room == Stage::budget)
      for (const std::string& s : stages_to_vary(*e)) all.push_back(with_fields(*e, s));
  return all;
}

/// How a run deals the same numbers out: which of them the first layer gets, and whether heads come in reverse.
struct Dealt {
  index_t first_layer = 0;
  bool heads_reversed = false;
};

/// A sequence of random tokens through a cache, and what the cache made of each.
struct EvictionRun {
  CacheShape shape = eviction_shape;
  any::AnyCache cache;
  std::mt19937 random;
  Dealt dealt;
  std::vector<std::vector<Tokens>> given{std::size_t{3}};  // per layer, in order
  std::vector<float> outputs;

  EvictionRun(const std::string& text, std::uint32_t seed, DType dtype = DType::f32, const any::ModelFacts& facts = eviction_facts())
      : cache(make(text, dtype, facts)), random(seed) {
    shape.dtype = dtype;
  }

  static any::AnyCache make(const std::string& text, DType dtype, const any::ModelFacts& facts) {
    CacheShape shape = eviction_shape;
    shape.dtype = dtype;
    auto made = any::make(text, shape, any::on<Cpu>, heap_memory(), facts);
    CAPTURE(text, std::string(made.message()));
    REQUIRE(made);
    return std::move(*made);
  }

  static constexpr int passes = 18;
  static index_t tokens(int pass) { return pass == 0 ? 70 : pass == 1 ? 50 : 1; }
  static Phase phase(int pass) {
    return pass == 0 ? Phase::prefill_chunk : pass == 1 ? Phase::prefill_end : Phase::decode;
  }

  /// Heads of a view as they are dealt: the first extent.
  template <class T, int Rank>
  TensorView<T, Rank> heads_of(TensorView<T, Rank> x) const {
    if (dealt.heads_reversed) x.data += (x.extent[0] - 1) * x.stride[0], x.stride[0] = -x.stride[0];
    return x;
  }

  void advance(Context<Cpu>& ctx, int pass) {
    std::vector<StepData> data;
    for (index_t l = 0; l < shape.layers; ++l) {
      given[static_cast<std::size_t>(l)].emplace_back(shape, tokens(pass), random, 2.0f);
      data.emplace_back(shape, tokens(pass), random);
    }
    std::vector<float> out(static_cast<std::size_t>(shape.q_heads * tokens(pass) * shape.head_dim));
    for (index_t l = 0; l < shape.layers; ++l) {
      const auto from = static_cast<std::size_t>((l + dealt.first_layer) % shape.layers);
      const Tokens& t = given[from].back();
      StepInputs inputs = data[from].inputs();
      inputs.raw_queries = heads_of(inputs.raw_queries), inputs.raw_keys = heads_of(inputs.raw_keys), inputs.values = heads_of(inputs.values);
      inputs.query_mean = heads_of(inputs.query_mean), inputs.query_covariance = heads_of(inputs.query_covariance);
      inputs.gates = heads_of(inputs.gates);
      inputs.queries = heads_of(t.queries(shape));
      REQUIRE(cache.forward(ctx, l, heads_of(t.queries(shape)), heads_of(t.keys(shape)), heads_of(t.values(shape)),
                            heads_of(dense_view(out.data(), shape.q_heads, t.n, shape.head_dim)), {}, phase(pass), inputs) == Status::ok);
      outputs.insert(outputs.end(), out.begin(), out.end());
    }
    if (pass == 9) REQUIRE(cache.turn(ctx, 5) == Status::ok);
  }

  std::vector<index_t> kept() const {
    std::vector<index_t> all;
    for (index_t l = 0; l < shape.layers; ++l)
      for (index_t h = 0; h < shape.kv_heads; ++h) {
        all.push_back(cache.slots(l, h));
        for (index_t s = 0; s < cache.slots(l, h); ++s) all.push_back(cache.token(l, h, s));
      }
    return all;
  }
  std::vector<index_t> kept(index_t layer, index_t head) const {
    std::vector<index_t> all;
    for (index_t s = 0; s < cache.slots(layer, head); ++s) all.push_back(cache.token(layer, head, s));
    return all;
  }

  const float* row(bool keys, index_t layer, index_t head, index_t token) const {
    for (const Tokens& t : given[static_cast<std::size_t>(layer)]) {
      if (token < t.n) return (keys ? t.k : t.v).data() + (head * t.n + token) * shape.head_dim;
      token -= t.n;
    }
    return nullptr;
  }
};

struct EvictionRoom {
  Workspace work;
  Context<Cpu> ctx;
  explicit EvictionRoom(const any::AnyCache& cache) {
    REQUIRE(work.reserve(cache.workspace_bytes(256, 80)) == Status::ok);
    ctx = Context<Cpu>(work.bytes());
  }
};

}  // namespace kvcondense::test
