#pragma once

#include <cstdint>

#include <kvcondense/core/backend.hpp>
#include <kvcondense/core/config.hpp>
#include <kvcondense/core/page_provider.hpp>
#include <kvcondense/core/shape.hpp>
#include <kvcondense/core/slot_runs.hpp>
#include <kvcondense/core/step_inputs.hpp>
#include <kvcondense/core/view.hpp>

namespace kvcondense {

/// Where in a request a step stands. `automatic`: the first step of a cache ends a prefill, any other
/// is a decode step, however many tokens it brings: accepted drafts do not end a prompt. Whoever
/// prefills in chunks, or appends a second prompt, says so. `turn` is no forward pass: nothing is
/// pending, and a method that makes room before a turn does so; all others let it pass. `probe`: the
/// pending tokens only ask about earlier ones and are taken back afterwards; nothing leaves.
enum class Phase : std::uint8_t { automatic, prefill_chunk, prefill_end, decode, turn, probe };

/// What `attend` may measure beside its output. Empty views are not measured.
struct AttendOutputs {
  RaggedView<float> mass{};      ///< see `Cache::ragged`
  TensorView<float, 2> lse{};    ///< [q_heads, tokens], natural logarithm
  ReadCounts* reads = nullptr;   ///< what the call looked at; set anew
  ReadRuns runs{};               ///< which slots the call read, per query head
  PageProvider<Cpu>* pages = nullptr;  ///< where pages are read, if not where they lie
};

/// Attention of the newest queries, in any reduction; each backend defines it.
template <Backend B>
class QueryColumns;

/// Rows of one layer (its keys or its values) as policies read them; each backend defines it.
template <Backend B>
class SlotRows;

/// Whether a ragged view has a row for each of `heads` heads, as long as these offsets say.
template <class T>
bool rows_fit(const RaggedView<T>& view, const index_t* offset, index_t heads) {
  if (view.heads != heads) return false;
  for (index_t h = 0; h < heads; ++h)
    if (view.length(h) != offset[h + 1] - offset[h]) return false;
  return true;
}

/// Tokens of the slots of a layer and of the one whose choice it takes over, where words read them; see evict/layer_reuse.hpp.
struct FollowedTokens {
  RaggedView<const std::int32_t> own{}, first{};
  const index_t* first_slots = nullptr;  ///< kv_heads: how many `first` has; the host's
};

/// All that a policy may look at in one step of one layer.
template <Backend B>
struct StepView {
  CacheShape shape{};
  index_t layer = 0;
  index_t appended = 0;           ///< tokens that came with this step
  index_t seen = 0;               ///< logical length: tokens ever appended
  index_t stepped = 0;            ///< tokens of all steps, this one's too; those taken back after a step stay counted. To be
                                  ///< kept beside the numbers of slots, which tell with it how many rows have seen one
  index_t next_position = 0;      ///< of the next token
  index_t generated = 0;          ///< tokens since the last prompt, those of this step too; 0 in a prompt
  Phase phase = Phase::decode;    ///< never `automatic` here
  StepInputs inputs{};
  index_t counted = 0;            ///< query rows whose attention the policy's sums hold already; see evict/counting.hpp
  const index_t* offset = nullptr;  ///< kv_heads + 1: where each head's slots begin in ragged views; the host's
  const index_t* word_offset = nullptr;  ///< the same where words read it; null: they read `offset`
  const SlotRows<B>* keys = nullptr;
  const SlotRows<B>* values = nullptr;
  const QueryColumns<B>* columns = nullptr;  ///< null unless the policy asks for queries
  const index_t* model_budget = nullptr;  ///< slots per head of this layer, where all layers were looked at
  FollowedTokens followed{};  ///< in a step that fires, of a layer that follows another

  index_t heads() const { return shape.kv_heads; }
  index_t slots(index_t head) const { return offset[head + 1] - offset[head]; }
  index_t total() const { return offset[shape.kv_heads]; }
  /// `data`, one thing per slot, as words take it.
  template <class T>
  RaggedView<T> ragged(T* data) const {
    return {data, word_offset == nullptr ? offset : word_offset, shape.kv_heads};
  }
};

}  // namespace kvcondense
