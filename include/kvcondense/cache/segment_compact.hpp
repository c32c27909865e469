#pragma once

#include <algorithm>
#include <utility>

#include <kvcondense/cache/segment.hpp>

namespace kvcondense::cache {

/// Gives one page back where neighbours have a page's worth of empty slots between them: slots move down in
/// the shortest such run, so what a step moves depends on where slots left, not on how many there are.
template <class Codec>
bool Segment<Codec>::free_page() {
  const index_t last = last_used();
  if (last < 0 || last * page_slots_ + pages_[last].used - live_ < page_slots_) return false;
  index_t first = -1, end = 0, from = 0, sum = 0;
  for (index_t p = 0; p <= last; ++p) {
    if (shares(pages_[p])) {  // nothing moves into or out of rows that are not this layer's alone
      from = p + 1, sum = 0;
      continue;
    }
    sum += empty_slots(p, last);
    while (sum - empty_slots(from, last) >= page_slots_) sum -= empty_slots(from++, last);
    if (sum >= page_slots_ && (first < 0 || p - from < end - first)) first = from, end = p;
  }
  if (first < 0) return false;
  for (index_t p = first; p <= end; ++p)
    if (!make_unique(p)) return false;
  index_t to_page = first, to_slot = 0;
  for (index_t p = first; p <= end; ++p) {
    const PageRef& page = pages_[p];
    for (index_t s = page.next_alive(0), n = 0; s < page.used; s = page.next_alive(s + n), to_slot += n) {
      if (to_slot == page_slots_) ++to_page, to_slot = 0;
      n = std::min(page.next_dead(s) - s, page_slots_ - to_slot);
      if (p < end) fetch_slots(pages_[p + 1], s, n);
      if (to_page != p || to_slot != s) move_slots(pages_[to_page], to_slot, page, s, n);
    }
  }
  for (index_t p = first; p <= to_page; ++p) {
    PageRef& ref = pages_[p];
    ref.fill(p < to_page ? page_slots_ : to_slot);
    ref.revive_from(0);
  }
  Page* gone = pages_[end].page;
  for (index_t p = to_page + 1; p < end; ++p) release(pages_[p].page, *memory_);
  for (index_t p = end + 1; p < pages_.size(); ++p) pages_[to_page + 1 + p - (end + 1)] = pages_[p];
  pages_.shrink(pages_.size() - (end - to_page));
  retire(gone, end - to_page);
  return true;
}

/// Rows that move are read once, and each page lies elsewhere: what is asked for while another page moves need not be waited for.
template <class Codec>
void Segment<Codec>::fetch_slots(const PageRef& ref, index_t first, index_t n) const {
  const index_t bytes = static_cast<index_t>(page_payload());
  for (index_t b = bytes * first / page_slots_; b < bytes * (first + n) / page_slots_; b += 64) __builtin_prefetch(ref.page->payload() + b, 0, 2);
}

/// Within a page of slots with parameters of their own, or to one in front of it.
template <class Codec>
void Segment<Codec>::move_slots(const PageRef& to, index_t to_slot, const PageRef& from, index_t slot, index_t n) {
  using Coder = prim::PageCodec<Cpu, Codec>;
  if constexpr (requires { Coder::move(codec_, span(to), to_slot, span(from), slot, n); })
    Coder::move(codec_, span(to), to_slot, span(from), slot, n);
  else if constexpr (requires { &Coder::move; })
    for (index_t i = 0; i < n; ++i) Coder::move(codec_, span(to), to_slot + i, span(from), slot + i);
}

/// Joins neighbours of which one is at least half dead and which fit one page together; where slots are independent, only
/// such with rows that another layer holds too, which this one then has in a page of its own.
template <class Codec>
template <class ToStored>
index_t Segment<Codec>::rewrite_half_dead(float* rows, ToStored&& to_stored) {
  if (pages_.empty()) return 0;
  const index_t group = codec_.group_slots();
  index_t again = 0, to = 0;
  for (index_t p = 1; p < pages_.size(); ++p) {
    const bool join = join_pages(pages_[to], pages_[p], page_slots_);
    const bool shared = shares(pages_[to]), ours = group > 1 || shared || shares(pages_[p]);
    Page* fresh = join && shared ? make_page(page_payload()) : nullptr;
    if (!join || !ours || (shared ? fresh == nullptr : !make_unique(to))) {
      pages_[++to] = pages_[p];
      continue;
    }
    PageRef& a = pages_[to];
    PageRef& b = pages_[p];
    index_t n = 0;
    float grades[max_page_slots] = {};
    for (const PageRef* ref : {&a, &b})
      for (index_t s = 0; s < ref->used; ++s) {
        if (!ref->alive(s)) continue;
        if (shares(*ref)) {
          to_stored(*ref, s, rows + dim_ * n++);
          continue;
        }
        if constexpr (requires { prim::PageCodec<Cpu, Codec>::grade(codec_, span(*ref), s); })
          grades[n] = prim::PageCodec<Cpu, Codec>::grade(codec_, span(*ref), s);
        prim::PageCodec<Cpu, Codec>::decode(codec_, span(*ref), s, 1, {rows + dim_ * n++, 1, dim_});
      }
    if (fresh != nullptr) release(std::exchange(a.page, fresh), *memory_);
    // Whole groups only: the last row is repeated, which changes no range, and its copies are dead.
    const index_t full = (n + group - 1) / group * group;
    for (index_t i = n; i < full; ++i) std::copy_n(rows + (n - 1) * dim_, dim_, rows + i * dim_);
    encode(span(a), 0, full, {rows, full, dim_}, grades);
    a.revive_from(0);
    a.fill(full);
    for (index_t i = n; i < full; ++i) a.kill(i);
    again += n;
    release(b.page, *memory_);
  }
  pages_.shrink(to + 1);
  return again;
}

}  // namespace kvcondense::cache
