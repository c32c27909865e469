#pragma once

#include <kvcondense/core/backend.hpp>
#include <kvcondense/core/model_arrays.hpp>
#include <kvcondense/core/policy.hpp>
#include <kvcondense/core/shape.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/evict/blocks/chunked_prefill.hpp>
#include <kvcondense/evict/blocks/frozen.hpp>
#include <kvcondense/evict/blocks/pool.hpp>
#include <kvcondense/evict/blocks/select.hpp>
#include <kvcondense/evict/pipeline.hpp>
#include <kvcondense/evict/policy.hpp>

namespace kvcondense::evict {

/// Keeps the tokens that trained retaining heads say will be missed, within a fixed budget while a
/// long prompt comes in chunks.
///
/// Idea     a score that looks at a token's own projections alone never has to wait for later queries,
///          so chunks can be condensed as they come.
/// Source   Locret, arXiv:2410.01805. It stores raw keys: position stage `reindex`.
/// Needs    the projections of every step, and the weights of the retaining heads of all layers; the
///          prompt in steps of Phase::prefill_chunk, the last one Phase::prefill_end.
/// Shapes   retain_in [q_heads * head_dim + kv_heads * (head_dim + value_dim), hidden] and retain_out
///          [hidden, kv_heads] per layer; scores [kv_heads, slots].
/// Cost     inputs * hidden multiplications per token and layer, once; 4 bytes per slot.
/// Numbers  scores are written once, in float32. After a chunk a head keeps its newest `stabilizers`
///          and the best of the others, `tokens` in all; at the end of the prompt the newest `local`
///          stay beside `tokens` others. Ties keep the smaller slot; NaN leaves first. Generated
///          tokens stay.
/// Errors   missing_input without weights; shape_mismatch when they do not fit the cache;
///          invalid_argument when a number is negative or tokens <= stabilizers.
struct Locret {
  static constexpr Descriptor about{"locret", Stage::evict, "arXiv:2410.01805"};
  static constexpr bool trained = true;
  static constexpr Inputs needs = Input::projections;

  index_t tokens = 6000;
  index_t stabilizers = 2500;
  index_t local = 100;
  prim::Activation activation = prim::Activation::silu;
  LayerMatrices retain_in{};   ///< borrowed
  LayerMatrices retain_out{};  ///< borrowed

  constexpr auto pipeline() const {
    return Pipeline{Frozen<RetainingScore>{{retain_in, retain_out, activation}},
                    NoPool{},
                    ChunkTail{stabilizers, local},
                    ChunkBudget{tokens, local},
                    TopK{},
                    EveryPrefillStep{}};
  }
  constexpr const char* missing() const {
    return retain_in.empty() ? "retain_in" : retain_out.empty() ? "retain_out" : nullptr;
  }
  Status validate(const CacheShape& shape) const {
    if (missing() != nullptr) return Status::missing_input;
    const index_t inputs = shape.q_heads * shape.head_dim + shape.kv_heads * (shape.head_dim + shape.values());
    if (retain_in.layers != shape.layers || retain_out.layers != shape.layers || retain_in.rows != inputs ||
        retain_out.rows != retain_in.columns || retain_out.columns != shape.kv_heads)
      return Status::shape_mismatch;
    return stabilizers < 0 || local < 0 || tokens <= stabilizers ? Status::invalid_argument : Status::ok;
  }
};

static_assert(check_eviction_policy<Locret, Cpu>());

}  // namespace kvcondense::evict
