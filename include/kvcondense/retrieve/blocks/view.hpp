#pragma once

#include <algorithm>
#include <cstdint>

#include <kvcondense/core/backend.hpp>
#include <kvcondense/core/shape.hpp>
#include <kvcondense/core/slot_runs.hpp>
#include <kvcondense/core/step_view.hpp>
#include <kvcondense/core/view.hpp>
#include <kvcondense/core/workspace.hpp>
#include <kvcondense/prim/ends.hpp>
#include <kvcondense/prim/near_share.hpp>
#include <kvcondense/prim/rope.hpp>
#include <kvcondense/retrieve/blocks/unit_state.hpp>

namespace kvcondense::retrieve {

/// How keys are stored when an index reads them.
enum class KeyState : std::uint8_t {
  any,
  rotated,  ///< as attention compares them
  raw,      ///< before rotation: position stages `reindex` and `rerotate`
};

/// At which positions the slots that are read stand; only raw keys have a choice.
enum class Positions : std::uint8_t {
  stored,   ///< each where it is stored
  compact,  ///< the slots of a list one behind another
};

/// Query tokens of one call of `attend` up to which slots are chosen; a longer chunk, like a prompt, reads all.
inline constexpr index_t most_tokens = 16;

/// Attention that a summary is told of in every step, of which the cache keeps numbers per slot. With a `window`: what each
/// query head gives to the newest `window` slots that a query sees, in a softmax over these and the first `sinks`, added up
/// from step to step. With a `history`: what the query heads of a KV head together give to every slot that a query sees, in a
/// softmax over all of them, summed over the newest queries, anew in every step. With neither: nothing.
struct Watch {
  index_t sinks = 0;
  index_t window = 0;
  index_t history = 0;     ///< newest queries at most, of earlier steps too
  prim::NearShare near{};  ///< of them, how many: as many as tokens are near

  constexpr bool active() const { return window > 0 || history > 0; }
  /// Numbers of a slot of a KV head.
  constexpr index_t numbers(const CacheShape& shape) const { return window > 0 ? shape.group() : history > 0 ? 1 : 0; }
  /// Whether a step replaces what the steps before told.
  constexpr bool anew() const { return history > 0; }
  /// Queries of a step of so many tokens that it must be given.
  constexpr index_t asks(index_t appended) const { return history > 0 ? std::min(appended, history) : appended; }
  /// Queries whose attention is summed, when so many tokens came and so many queries are there.
  index_t rows(index_t seen, index_t there) const { return std::min({near.of(seen), history, there}); }
};

/// A range of units.
struct UnitRange {
  index_t first = 0;
  index_t last = 0;
  constexpr index_t size() const { return last - first; }
};

/// What a retrieval pipeline may look at when it chooses units in one layer.
template <Backend B>
struct ReadView {
  CacheShape shape{};               ///< with the softmax scale that turns dot products into logits
  index_t layer = 0;
  index_t tokens = 1;               ///< query tokens
  index_t seen = 0;                 ///< logical length
  const float* queries = nullptr;   ///< [tokens, q_heads, head_dim], in the form in which keys are stored
  const index_t* slots = nullptr;   ///< per KV head
  const index_t* known = nullptr;   ///< per KV head: slots that the index covers; newer ones are read anyway
  const index_t* prompt = nullptr;  ///< per KV head: slots of tokens that came in prompts
  const UnitState* state = nullptr;     ///< per KV head
  const SlotRows<B>* keys = nullptr;
  const SlotRows<B>* values = nullptr;
  const prim::RopeTable* rope = nullptr;  ///< of a position stage that stores raw keys

  index_t heads() const { return shape.kv_heads; }
  const float* query(index_t token, index_t q_head) const {
    return queries + (token * shape.q_heads + q_head) * shape.head_dim;
  }
};

/// Where an index reads what it is made of: one head's rows.
template <Backend B>
struct HeadRows {
  const CacheShape* shape = nullptr;
  HeadIndex at{};
  index_t slots = 0;
  const SlotRows<B>* keys = nullptr;
  const SlotRows<B>* values = nullptr;
};

/// The newest queries of the step that ends a prompt, in the form in which an index reads keys.
struct PromptQueries {
  TensorView<const float, 3> rows{};      ///< [q_heads, n, head_dim], as the engine gave them
  const prim::RopeTable* rope = nullptr;  ///< turns them to their slots; null: they are as they must be
  const index_t* positions = nullptr;     ///< at which they came; null: without rotation
  index_t slots = 0;                      ///< of the head: the last one is that of the last query

  index_t size() const { return rows.extent[1]; }
  void read(index_t q_head, index_t i, float* out) const {
    for (index_t d = 0; d < rows.extent[2]; ++d) out[d] = rows(q_head, i, d);
    if (rope != nullptr) rope->rotate(out, slots - size() + i - (positions == nullptr ? 0 : positions[i]));
  }
};

/// Chosen units per row of selection; a row has room for every candidate.
struct UnitLists {
  RaggedView<std::int32_t> units;
  index_t* count = nullptr;
  float* bias = nullptr;   ///< like units: what is added to a unit's logits; null unless `select.biases()`
  float* share = nullptr;  ///< per row: what part of a query's output is attention; null unless `select.shares()`
};

}  // namespace kvcondense::retrieve
