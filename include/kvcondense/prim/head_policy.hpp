#pragma once

#include <cstdint>

#include <kvcondense/core/backend.hpp>
#include <kvcondense/core/config.hpp>
#include <kvcondense/core/step_inputs.hpp>
#include <kvcondense/core/view.hpp>

namespace kvcondense::prim {

/// What a head keeps: each policy what the one before it keeps, and more.
enum class HeadPolicy : std::uint8_t {
  undecided,    ///< everything, until there is a choice
  special,      ///< special tokens
  punctuation,  ///< and punctuation
  frequent,     ///< and the slots with the largest scores
  local,        ///< and the newest slots
  full,         ///< everything
};

/// What policies look at, numbers per (kv head, slot) that share offsets.
struct HeadPolicySets {
  RaggedView<const float> classes{};  ///< numbers of TokenClass
  index_t frequent = 0;               ///< slots with the largest scores, special ones and punctuation among them
  index_t local = 0;                  ///< newest slots
};

/// Chooses per head how much it keeps, and says which slots those are.
///
///   choose(ctx, sets, RaggedView<const float> sums, RaggedView<const float> near,
///          RaggedView<const float> scores, double recovery, RaggedView<float> policy) -> Status
///       writes to every slot of a head the number of the first policy that keeps a part `recovery` of
///       all attention
///   mark(ctx, sets, RaggedView<const float> policy, RaggedView<float> scores) -> Status
///       +inf instead of the score for slots that the head's policy keeps; the policy is that of the head's
///       first slot
///
/// Shapes   sums: attention of some rows added up; near: only what each row gave the newest `local` slots that
///          it saw (ColumnRequest::band).
/// Numbers  sums in double. The local policy keeps of a row what it gave its own newest slots; all others keep the
///          same slots of all rows. Equal scores: the smaller slot is more frequent; NaN is the least. Where a
///          sum is NaN the policy is `full`.
template <Backend B>
struct HeadPolicies {
  static_assert(detail::always_false<B>, "kvcondense: include kvcondense/cpu.hpp or kvcondense/cuda.cuh first.");
};

}  // namespace kvcondense::prim
