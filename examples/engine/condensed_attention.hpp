#pragma once

#include <algorithm>
#include <utility>

#include <engine/decoder.hpp>
#include <kvcondense/backend/cpu/context.hpp>
#include <kvcondense/core/shape.hpp>

// Everything this engine knows about kvcondense's caches: what an integrator has to write.

namespace engine {

/// The shape a model asks of its cache.
inline kvcondense::CacheShape cache_shape(const ModelConfig& m) {
  return {.layers = m.layers, .q_heads = m.q_heads, .kv_heads = m.kv_heads, .head_dim = m.head_dim};
}

/// One sequence in a condensed cache, as Decoder wants its attention. Cache: kvcondense::Cache of
/// any recipe, or kvcondense::any::AnyCache. Its decoder rotates q and k when `rotated_input()`
/// says so.
template <class Cache>
class CondensedAttention {
 public:
  explicit CondensedAttention(Cache cache) : cache_(std::move(cache)) {}

  Cache& cache() { return cache_; }
  bool rotated_input() const { return cache_.capabilities().rotated_input; }

  Status operator()(const LayerChunk& chunk, TensorView<float, 3> out) {
    const index_t tokens = chunk.k.extent[1];
    index_t slots = 0;
    for (index_t h = 0; h < chunk.k.extent[0]; ++h)
      slots = std::max(slots, cache_.slots(chunk.layer, h));
    // In steps, so that a growing cache does not ask for new scratch at every token.
    const index_t room = (slots + tokens + 255) / 256 * 256;
    if (const Status s = scratch_.reserve(cache_.workspace_bytes(room, tokens)); s != Status::ok)
      return s;
    kvcondense::Context<kvcondense::Cpu> context(scratch_.bytes());
    return cache_.forward(context, chunk.layer, chunk.q, chunk.k, chunk.v, out, chunk.positions,
                          chunk.phase);
  }

 private:
  Cache cache_;
  kvcondense::Workspace scratch_;
};

}  // namespace engine
