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

/// Adds what rows of selection read of a layer. `runs(row)`: ascending; `slots(head)`: there are; `bytes(head, run)`: stored for a run.
template <class Runs, class Slots, class Bytes>
void count_reads(index_t heads, index_t rows, Runs&& runs, Slots&& slots, Bytes&& bytes, ReadCounts& reads) {
  const index_t per_head = rows / heads;
  for (index_t h = 0; h < heads; ++h) {
    for (index_t r = h * per_head; r < (h + 1) * per_head; ++r)
      for (const SlotRun& run : runs(r)) reads.slots_read += run.size(), reads.slot_bytes += bytes(h, run);
    for_union(h * per_head, (h + 1) * per_head, slots(h), runs, [&](index_t first, index_t last) { reads.slots_touched += last - first; });
  }
}

}  // namespace kvcondense::cache
