#pragma once

#include <algorithm>
#include <span>

#include <kvcondense/cache/cuda_groups.cuh>

namespace kvcondense::cache {

/// The order is that of a step on the CPU: room for what is coded, tombstones, codes, joins.
inline Status CudaGroups::plan_head(const Context<Cuda>& ctx, index_t head, const Kept& kept, index_t base, index_t due) {
  Head& h = heads_[head];
  Status s = reserve_rows(ctx, h.next, due);
  if (s == Status::ok) s = bury(h, kept, base);
  if (s == Status::ok) s = place_rows(h.next, head, due);
  h.next_live += due;
  if (s == Status::ok) s = plan_joins(h, head);
  while (s == Status::ok && !h.next.empty() && h.next.back().used == 0) {
    s = gone_.push_back(h.next.back().page);
    h.next.shrink(h.next.size() - 1);
  }
  return s;
}

/// Room for `due` more slots in pages that nobody else has.
inline Status CudaGroups::reserve_rows(const Context<Cuda>& ctx, Buffer<Ref>& pages, index_t due) {
  if (due == 0) return Status::ok;
  index_t room = 0;
  if (!pages.empty() && pages.back().used < page_slots_) {
    Ref& last = pages.back();
    if (last.page->shared()) {
      CudaPage* page = nullptr;
      if (const Status s = take_page(page); s != Status::ok) return s;
      if (const Status s = gone_.push_back(last.page); s != Status::ok) return s;
      if (const Status s = cuda::settled(cudaMemcpyAsync(page->rows, last.page->rows, bytes_, cudaMemcpyDeviceToDevice, ctx.stream())); s != Status::ok) return s;
      last.page = page;
    }
    room = page_slots_ - last.used;
  }
  for (; room < due; room += page_slots_) {
    Ref ref;
    if (const Status s = take_page(ref.page); s != Status::ok) return s;
    if (const Status s = pages.push_back(ref); s != Status::ok) return s;
  }
  return Status::ok;
}

/// Slots that are not kept become tombstones. Room that `reserve_rows` counted on stays, and none comes up in a page that a fork has too.
inline Status CudaGroups::bury(Head& h, const Kept& kept, index_t base) {
  Buffer<Ref>& pages = h.next;
  const index_t before = h.next_live;
  const bool emptied = bury_slots(pages, kept, base, h.next_live);
  if (h.next_live == before) return Status::ok;
  const auto own = [](const Ref& ref) { return !ref.page->shared() && ref.page->under == nullptr; };
  if (const index_t p = last_used_page(pages); p >= 0 && pages[p].live == 0 && own(pages[p])) {
    pages[p].used = 0;
    pages[p].revive_from(0);
  }
  Status s = Status::ok;
  if (emptied)
    drop_empty(pages, [&](CudaPage* page) {
      if (s == Status::ok) s = gone_.push_back(page);
    });
  const index_t p = last_used_page(pages);
  if (p >= 0 && own(pages[p])) cut_dead_tail(pages[p], group_);
  return s;
}

inline Status CudaGroups::place_rows(Buffer<Ref>& pages, index_t head, index_t due) {
  for (index_t done = 0, p = std::max<index_t>(last_used_page(pages), 0); done < due; ++p) {
    Ref& ref = pages[p];
    const index_t n = ref.page->shared() ? 0 : std::min(due - done, page_slots_ - ref.used);
    if (n == 0) continue;
    const prim::CodedRows rows{ref.page->rows, static_cast<std::int32_t>(head), static_cast<std::int32_t>(done), ref.used, static_cast<std::int32_t>(n)};
    if (const Status s = coded_.push_back(rows); s != Status::ok) return s;
    ref.grow(n);
    done += n;
  }
  return Status::ok;
}

inline Status CudaGroups::plan_joins(Head& h, index_t head) {
  Buffer<Ref>& pages = h.next;
  index_t to = 0;
  bool chained = false;
  for (index_t p = 1; p < pages.size(); ++p) {
    if (!join_pages(pages[to], pages[p], page_slots_)) {
      pages[++to] = pages[p];
      chained = false;
      continue;
    }
    Ref &a = pages[to], &b = pages[p];
    const bool others = a.page->under != nullptr || b.page->under != nullptr;
    prim::JoinedPages job{a.page->at(), {a.page->at(), b.page->at()}, {}, head};
    for (int k = 0; k < 2; ++k) {
      const Ref& from = k == 0 ? a : b;
      for (index_t s = 0; s < from.used; ++s)
        if (from.alive(s)) job.live[k][s / prim::JoinedPages::word_bits] |= 1u << (s % prim::JoinedPages::word_bits);
    }
    if (a.page->shared() || a.page->under != nullptr) {
      if (const Status s = gone_.push_back(a.page); s != Status::ok) return s;
      if (const Status s = take_page(a.page); s != Status::ok) return s;
      job.into = a.page->rows;
    }
    if (const Status s = gone_.push_back(b.page); s != Status::ok) return s;
    if (!chained)
      if (const Status s = chain_.push_back(joins_.size()); s != Status::ok) return s;
    if (const Status s = joins_.push_back(job); s != Status::ok) return s;
    chained = true;
    const index_t n = a.live + b.live, full = (n + group_ - 1) / group_ * group_;
    a.revive_from(0);
    a.fill(full);
    for (index_t s = n; s < full; ++s) a.kill(s);
    h.next_again += group_ > 1 || others ? n : 0;  // a group of one slot comes out as it was
  }
  if (!pages.empty()) pages.shrink(to + 1);
  return Status::ok;
}

/// Room for the lists, so that `send` needs no memory.
inline Status CudaGroups::reserve_lists(const Context<Cuda>& ctx) {
  const std::size_t bytes = coded_.span().size_bytes() + joins_.span().size_bytes() + chain_.span().size_bytes();
  if (coded_.empty() && joins_.empty()) return Status::ok;
  if (const Status s = staging_.reserve(bytes); s != Status::ok) return s;
  const std::size_t all = bytes + rows_bytes();
  if (all <= static_cast<std::size_t>(lists_.size())) return Status::ok;
  if (lists_.size() > 0)  // somebody may still read the smaller ones
    if (const Status s = ctx.wait(); s != Status::ok) return s;
  return lists_.resize(static_cast<index_t>(all + bytes));
}

inline Status CudaGroups::send(const Context<Cuda>& ctx, prim::GroupWork& work) {
  if (coded_.empty() && joins_.empty()) return Status::ok;
  std::span<std::byte> bytes;
  if (const Status s = staging_.next(bytes); s != Status::ok) return s;
  std::size_t end = 0;
  const auto put = [&]<class T>(const Buffer<T>& list) {
    static_assert(alignof(T) <= alignof(std::byte*) && sizeof(T) % alignof(std::byte*) == 0);
    std::ranges::copy(std::as_bytes(list.span()), bytes.data() + end);
    return reinterpret_cast<const T*>(lists_.data() + std::exchange(end, end + list.span().size_bytes()));
  };
  const auto *coded = put(coded_);
  const auto *joins = put(joins_);
  const auto *chain = put(chain_);
  if (const Status s = staging_.send(ctx, lists_.data(), end); s != Status::ok) return s;
  work = {coded, coded_.size(), joins, chain, chain_.size() - 1, reinterpret_cast<float*>(lists_.data() + end)};
  return Status::ok;
}

}  // namespace kvcondense::cache
