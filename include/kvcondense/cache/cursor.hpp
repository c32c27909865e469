#pragma once

#include <algorithm>

#include <kvcondense/cache/segment.hpp>

namespace kvcondense::cache {

/// Where a reader stands in a column: segment (sinks, coded, window), page, physical slot.
struct Cursor {
  int segment = 0;
  index_t page = 0;
  index_t slot = 0;
};

/// Moves on by `count` live slots within a segment, or to the next one with what is left of `count`: at once where no
/// slot has left, else whole pages at a time. What lies within a page is left to walk.
template <class Codec>
void skip_pages(const Segment<Codec>& segment, int which, Cursor& at, index_t& count) {
  if (at.segment != which) return;
  const index_t size = segment.page_slots();
  if (segment.packed()) {
    const index_t to = std::min(at.page * size + at.slot, segment.live()) + count;
    if (to < segment.live()) at = {which, to / size, to % size}, count = 0;
    else at = {which + 1, 0, 0}, count = to - segment.live();
    return;
  }
  // From the end, where that is nearer: a table of pages is long beside the rows that a step reads.
  if (at.page == 0 && at.slot == 0 && 2 * count > segment.live() && count < segment.live()) {
    index_t behind = 0;
    at.page = segment.pages().size();
    while (behind < segment.live() - count) behind += segment.pages()[--at.page].live;
    count -= segment.live() - behind;
    return;
  }
  for (; at.page < segment.pages().size(); ++at.page, at.slot = 0) {
    const PageRef& ref = segment.pages()[at.page];
    const index_t left = at.slot == 0 ? ref.live : ref.live_from(at.slot);
    if (left > count) return;
    count -= left;
  }
  at = {which + 1, 0, 0};
}

/// Calls use(segment, page, first, n, live) for pieces of pages that together hold the next `count` live slots, as far as the segment
/// has them; returns how many are left. Pieces of slots with parameters of their own hold no tombstone; pieces of shared
/// groups may, since folding a group's parameters anew for every short piece would cost more.
template <class S, class F>
index_t walk_segment(const S& segment, Cursor& at, index_t count, F& use) {
  const bool split = segment.codec().group_slots() == 1;
  while (count > 0 && at.page < segment.pages().size()) {
    const PageRef& ref = segment.pages()[at.page];
    at.slot = ref.next_alive(at.slot);
    if (at.slot >= ref.used) {
      ++at.page;
      at.slot = 0;
      continue;
    }
    const index_t first = at.slot;
    index_t end = first, live = 0;
    if (ref.full_of_life()) {
      live = std::min<index_t>(count, ref.used - first);
      end = first + live;
    } else if (split) {
      end = std::min(ref.next_dead(first), first + count);
      live = end - first;
    } else {
      for (; end < ref.used && live < count; ++end) live += ref.alive(end);
    }
    use(segment, ref, first, end - first, live);
    at.slot = end;
    count -= live;
  }
  return count;
}

/// Where nothing is to be done at the end of a segment.
struct NoEnd {
  void operator()(const auto&) const {}
};

}  // namespace kvcondense::cache
