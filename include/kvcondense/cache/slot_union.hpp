#pragma once

#include <algorithm>
#include <span>

#include <kvcondense/core/config.hpp>
#include <kvcondense/core/slot_runs.hpp>

namespace kvcondense::cache {

/// Calls use(first, last) for the slots that any of some rows reads: runs(row) ascend.
template <class Runs, class Use>
void for_union(index_t first_row, index_t last_row, index_t slots, Runs&& runs, Use&& use) {
  // From any slot on: the run that reaches furthest among those that hold it.
  for (index_t at = 0; at < slots;) {
    index_t end = at, next = slots;
    for (index_t r = first_row; r < last_row; ++r) {
      const std::span<const SlotRun> list = runs(r);
      const auto run = std::lower_bound(list.begin(), list.end(), at, [](const SlotRun& x, index_t slot) { return x.last <= slot; });
      if (run == list.end()) continue;
      if (run->first <= at) end = std::max<index_t>(end, std::min<index_t>(slots, run->last));
      else next = std::min<index_t>(next, run->first);
    }
    if (end > at) use(at, end);
    at = end > at ? end : next;
  }
}

}  // namespace kvcondense::cache
