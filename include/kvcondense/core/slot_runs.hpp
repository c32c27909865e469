#pragma once

#include <cstddef>
#include <cstdint>

#include <kvcondense/core/config.hpp>

namespace kvcondense {

/// Consecutive slots [first, last) of a head. Lists of runs ascend, and between two runs there is a gap.
struct SlotRun {
  std::int32_t first = 0;
  std::int32_t last = 0;

  constexpr index_t size() const { return last - first; }
};

/// Room for the runs that a call of `attend` read, per query head: row h of `data` has `room` entries, `count[h]` are
/// written. A slot per run and one more is always enough; out_of_range where it is not.
struct ReadRuns {
  SlotRun* data = nullptr;
  index_t room = 0;
  index_t* count = nullptr;

  const SlotRun* row(index_t q_head) const { return data + q_head * room; }
};

/// What one call of `attend` looked at.
struct ReadCounts {
  index_t units_scored = 0;     ///< scores computed from an index, over query heads and tokens
  index_t slots_read = 0;       ///< summed over selections: a slot that two query heads chose counts twice
  index_t slots_touched = 0;    ///< summed over KV heads: a slot that any of its query heads chose counts once
  std::size_t index_bytes = 0;  ///< of the index, read once per KV head
  std::size_t slot_bytes = 0;   ///< keys and values of the slots that were read, in their stored form
};

}  // namespace kvcondense
