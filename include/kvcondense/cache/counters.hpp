#pragma once

#include <kvcondense/core/config.hpp>

namespace kvcondense::cache {

/// Numbers per slot that a head may carry: those of an eviction policy, those of a quant stage's saliency, then those
/// of a merge stage.
inline constexpr index_t max_lanes = 10;
inline constexpr index_t max_position = 0x7fffffff;  ///< ordinals are stored in 32 bits

/// The three counters of a layer, never confused, and what the next step has to know.
struct Counters {
  index_t seen = 0;           ///< logical length: tokens ever appended
  index_t stepped_position = 0;  ///< position behind the tokens that a step has seen; see Layer::next_position
  index_t pending = 0;        ///< newest tokens that no step has seen yet; all of them are stored
  index_t evictions = 0;
  index_t evicted_slots = 0;
  index_t merged_slots = 0;
  index_t budget_asked = 0;
  index_t budget_met = 0;
  index_t nan_scores = 0;
  index_t prompt = 0;  ///< logical length at the end of the last step of a prompt
  index_t stepped = 0; ///< tokens that steps have seen; those taken back after it stay counted
};

/// What was done to the codes of a head.
struct HeadCounts {
  index_t repaired = 0;     ///< numbers that codecs replaced
  index_t coded_again = 0;  ///< slots written anew because their group lost members
};

}  // namespace kvcondense::cache
