#pragma once

#include <cstdint>

#include <kvcondense/core/backend.hpp>
#include <kvcondense/core/config.hpp>
#include <kvcondense/core/shape.hpp>
#include <kvcondense/core/view.hpp>

namespace kvcondense {

/// Where in a request a step stands. `automatic`: the first step of a cache ends a prefill, any other
/// is a decode step, however many tokens it brings: accepted drafts do not end a prompt. Whoever
/// prefills in chunks, or appends a second prompt, says so.
enum class Phase : std::uint8_t { automatic, prefill_chunk, prefill_end, decode };

/// Query rows that a policy looks at: through the column sums that `attend` measures, or as queries.
struct AttentionNeed {
  enum class Rows : std::uint8_t { none, all, last };
  Rows rows = Rows::none;
  index_t count = 0;  ///< with `last`: how many of the newest query rows are summed

  /// Rows of a chunk of `queries` that count.
  constexpr index_t of(index_t queries) const {
    if (rows == Rows::none) return 0;
    return rows == Rows::all || count > queries ? queries : count;
  }
};

/// What an engine hands from `attend` to `step`.
///
/// Shapes  mass: one number per (kv head, slot), the probabilities of the head's whole query group
///         summed over the last `rows` query rows.
struct AttentionView {
  RaggedView<const float> mass{};
  index_t rows = 0;
};

/// What `attend` may measure beside its output. Empty views are not measured.
struct AttendOutputs {
  RaggedView<float> mass{};      ///< see `Cache::ragged`
  TensorView<float, 2> lse{};    ///< [q_heads, tokens], natural logarithm
};

/// What an engine hands to a step besides the tokens; views that no policy asks for may be empty.
///
/// Shapes  queries [q_heads, tokens, head_dim]: of the newest pending tokens, as `attend` got them.
struct StepInputs {
  AttentionView attention{};
  TensorView<const float, 3> queries{};
};

/// Attention of the newest queries, in any reduction; each backend defines it.
template <Backend B>
class QueryColumns;

/// Rows of one layer (its keys or its values) as policies read them; each backend defines it.
template <Backend B>
class SlotRows;

/// All that a policy may look at in one step of one layer.
template <Backend B>
struct StepView {
  CacheShape shape{};
  index_t layer = 0;
  index_t appended = 0;           ///< tokens that came with this step
  index_t seen = 0;               ///< logical length: tokens ever appended
  Phase phase = Phase::decode;    ///< never `automatic` here
  AttentionView attention{};
  const index_t* offset = nullptr;  ///< kv_heads + 1: where each head's slots begin in ragged views
  const SlotRows<B>* keys = nullptr;
  const SlotRows<B>* values = nullptr;
  const QueryColumns<B>* columns = nullptr;  ///< null unless the policy asks for queries

  index_t heads() const { return shape.kv_heads; }
  index_t slots(index_t head) const { return offset[head + 1] - offset[head]; }
  index_t total() const { return offset[shape.kv_heads]; }
};

}  // namespace kvcondense
