#pragma once

#include <kvcondense/core/backend.hpp>
#include <kvcondense/core/policy.hpp>
#include <kvcondense/core/shape.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/evict/blocks/allocate.hpp>
#include <kvcondense/evict/blocks/exposed_mass.hpp>
#include <kvcondense/evict/blocks/pool.hpp>
#include <kvcondense/evict/blocks/select.hpp>
#include <kvcondense/evict/blocks/trigger.hpp>
#include <kvcondense/evict/pipeline.hpp>
#include <kvcondense/evict/policy.hpp>

namespace kvcondense::evict {

/// Condenses a prompt once, to its question and what the question looks at.
///
/// Idea     a question that stands behind its context says which part of the context is needed.
/// Source   FINCH, TACL 2024 (tacl_a_00716), as in kvpress. Its keys are rotated anew to stand one behind the other: position
///          stage `rerotate`.
/// Needs    the queries of the question: the last `window` of the prompt, or with window = 0 those of the step that ends it,
///          so that a context in chunks and a question behind them needs no number.
/// Shapes   queries [q_heads, tokens, head_dim], scores [kv_heads, slots].
/// Cost     when a prompt ends up to two reads of all keys for every 32 query rows of a head, and slots * 4 bytes of workspace;
///          the last `window` queries of a layer; no state per slot.
/// Numbers  each row's shares times the part of all tokens that came before it, mean of rows, mean over the query group; float32.
///          Keeps floor(keep * tokens seen + 1e-6), at least one, the question included, which stays whole; ties keep the smaller
///          slot. Generated tokens stay.
/// Differs  kvpress multiplies by the number of tokens before a row, which ranks the same; its choice chunk by chunk is not here.
/// Errors   missing_input without queries; invalid_argument unless 0 < keep <= 1 and window >= 0.
struct Finch {
  static constexpr Descriptor about{"finch", Stage::evict, "tacl_a_00716"};
  static constexpr Inputs needs = Input::queries;

  double keep = 0.5;
  index_t window = 32;

  constexpr auto pipeline() const {
    return Pipeline{ExposedMass{window}, NoPool{}, Question{window}, Ratio{keep}, TopK{}, PrefillOnce{}};
  }
  Status validate(const CacheShape&) const {
    return keep > 0.0 && keep <= 1.0 && window >= 0 ? Status::ok : Status::invalid_argument;
  }
};

static_assert(check_eviction_policy<Finch, Cpu>());

}  // namespace kvcondense::evict
