#pragma once

#include <kvcondense/cache/kept.hpp>
#include <kvcondense/cache/page.hpp>
#include <kvcondense/core/buffer.hpp>

// How slots leave a list of pages: the rules by which they become tombstones and pages are joined, whatever memory the pages are in.

namespace kvcondense::cache {

/// Index of the last page with written slots, or -1. Pages behind it are reserved and empty.
template <class Ref>
index_t last_used_page(const Buffer<Ref>& pages) {
  index_t p = pages.size() - 1;
  while (p >= 0 && pages[p].used == 0) --p;
  return p;
}

/// The page of a list that holds these rows, sought from `from` on and around; -1. `from` becomes what is behind it.
template <class Ref, class P>
index_t page_above(const Buffer<Ref>& pages, const P* rows, index_t& from) {
  for (index_t i = 0; i < pages.size(); ++i) {
    const index_t p = (from + i) % pages.size();
    if (pages[p].page->under == rows) return from = p + 1, p;
  }
  return -1;
}

/// Of the `live` slots, which are a head's slots from `base` on, those that are not kept become tombstones; whether a page has no live slot
/// any more.
template <class Ref>
bool bury_slots(Buffer<Ref>& pages, const Kept& kept, index_t base, index_t& live) {
  index_t p = -1, slot = 0, at = base, rest = 0;  // slot `at` of the head is the next live one from `slot` of page p on
  bool full = false, emptied = false;
  const auto next_page = [&] {
    at += rest;
    const Ref& ref = pages[++p];
    slot = 0, rest = ref.live, full = ref.full_of_life();
  };
  kept.for_gaps(base, base + live, [&](index_t first, index_t last) {
    while (at + rest <= first) next_page();
    if (full) slot += first - at, rest -= first - at, at = first;
    while (at < last) {
      while (rest == 0) next_page();
      Ref& ref = pages[p];
      slot = ref.next_alive(slot);
      if (at >= first) ref.kill(slot), --live, emptied = emptied || ref.live == 0;
      ++slot, ++at, --rest;
    }
  });
  return emptied;
}

/// Trailing tombstones can be written again at once, in groups of `group` slots.
template <class Ref>
void cut_dead_tail(Ref& tail, index_t group) {
  while (tail.used > 0 && tail.live_from(tail.used - group) == 0) tail.cut(group);
}

/// Whether two neighbours become one page: either is at least half dead, and what lives fits.
template <class Ref>
bool join_pages(const Ref& a, const Ref& b, index_t page_slots) {
  const bool half = 2 * a.live <= a.used || 2 * b.live <= b.used;
  return half && b.used > 0 && a.live + b.live <= page_slots;
}

}  // namespace kvcondense::cache
