#pragma once

#include <kvcondense/core/config.hpp>

namespace kvcondense::cache {

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
};

}  // namespace kvcondense::cache
