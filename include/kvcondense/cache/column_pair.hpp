#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>

#include <kvcondense/backend/cpu/shared_direction.hpp>
#include <kvcondense/cache/column.hpp>
#include <kvcondense/cache/report.hpp>
#include <kvcondense/core/dtype.hpp>
#include <kvcondense/merge/pipeline.hpp>

namespace kvcondense::cache {

/// The keys or the values of one head in two neighbouring layers.
template <class H, class C>
struct ColumnPair {
  using Column = C;
  /// One of the two layers.
  struct Side {
    H* head = nullptr;
    C* column = nullptr;
    index_t free = 0;   ///< window slots that a step has seen
    index_t first = 0;  ///< slot of the first of them

    Side() = default;
    Side(H& h, C& c, index_t pending) : head(&h), column(&c), first(c.sinks().live() + c.coded().live()) {
      free = std::max<index_t>(0, c.window().live() - pending);
    }
    index_t due(index_t recent) const { return free - std::max(recent, column->flush_rule().keep); }
  };

  Side lower, upper;
  const merge::Across* across;
  float* rows;             ///< of three pages
  float* distance;         ///< per slot
  std::uint8_t* kept;      ///< per slot

  static std::size_t bytes(index_t slots, index_t floats) {
    return Scratch::bytes_for<float>(floats) + Scratch::bytes_for<float>(slots) + Scratch::bytes_for<std::uint8_t>(slots);
  }

  /// Shares whole pages of tokens that both layers hold at the front of their windows. Where one has others there, nobody
  /// waits: both code what their own rule says. What the resource refuses stays as it is and is tried again.
  void run() {
    const index_t page = lower.column->coded().page_slots(), there = std::min(lower.free, upper.free);
    const index_t due = std::max<index_t>(0, std::min({lower.due(across->recent), upper.due(across->recent), there}));
    const index_t look = std::max(due, std::min(there, page));
    const bool alike = lower.column->fingerprint() == upper.column->fingerprint();
    index_t same = 0;
    while (alike && same < look && lower.head->ids[lower.first + same] == upper.head->ids[upper.first + same]) ++same;
    const index_t pages = std::min(same, due) / page;
    if (pages > 0) measure(pages * page);
    index_t done = 0;
    while (done < pages && share(kept + done * page)) ++done;
    if (done == pages && there > 0 && (!alike || (same < look && same - done * page < page))) alone(lower, done * page), alone(upper, done * page);
    if (done == 0) return;
    lower.head->changed(lower.first), upper.head->changed(upper.first);
  }

 private:
  using Direction = prim::SharedDirection<Cpu>;

  index_t dim() const { return lower.column->dim(); }
  DType dtype() const { return lower.column->window().codec().dtype; }

  /// Which of the first `n` window slots stay as they are.
  void measure(index_t n) {
    const index_t page = lower.column->coded().page_slots();
    Cursor a{2, 0, 0}, b{2, 0, 0};
    for (index_t at = 0; at < n; at += page) {
      read(a, b, page);
      for (index_t i = 0; i < page; ++i) {
        double length[2];
        distance[at + i] = Direction::distance(row(0, page, i), row(1, page, i), dim(), length);
        if (!holds_length(dtype(), length[0]) || !holds_length(dtype(), length[1])) distance[at + i] = 2.0f;
      }
    }
    (void)Direction::apart(across->rule, distance, n, kept);
  }
  float* row(index_t which, index_t page, index_t i) const { return rows + (which * page + i) * dim(); }
  void read(Cursor& a, Cursor& b, index_t page) {
    lower.column->decode(a, {row(0, page, 0), page, dim()});
    upper.column->decode(b, {row(1, page, 0), page, dim()});
  }

  /// The first page of the windows; false when there is no room for what it becomes.
  bool share(const std::uint8_t* stays) {
    auto &x = lower.column->coded(), &y = upper.column->coded();
    const index_t page = x.page_slots();
    const std::size_t own = OwnPart::bytes(dtype(), dim(), page, std::count(stays, stays + page, std::uint8_t{1}));
    if (2 * own + sizeof(Page) >= x.page_payload()) return flush_page();
    Cursor a{2, 0, 0}, b{2, 0, 0};
    read(a, b, page);
    for (index_t i = 0; i < page; ++i) Direction::between(across->rule.weight, row(0, page, i), row(1, page, i), dim(), row(2, page, i));
    lower.column->map().forward({row(2, page, 0), page, dim()});
    if (x.reserve_entry() != Status::ok || y.reserve_entry() != Status::ok) return false;
    Page* under = x.make_rows({row(2, page, 0), page, dim()}, lower.head->repaired);
    Page* mine[2] = {x.make_page(own), y.make_page(own)};
    if (under == nullptr || mine[0] == nullptr || mine[1] == nullptr) {
      x.drop_page(under), x.drop_page(mine[0]), y.drop_page(mine[1]);
      return false;
    }
    for (index_t l = 0; l < 2; ++l) {
      mine[l]->under = l == 0 ? under : retain(under);
      OwnPart part(dtype(), dim(), page, *mine[l]);
      for (index_t i = 0, k = 0; i < page; ++i) {
        double length[2];
        (void)Direction::distance(row(0, page, i), row(1, page, i), dim(), length);
        if (stays[i] != 0) part.set_kept(k++, i, row(l, page, i));
        else part.set_length(i, static_cast<float>(length[l]));
      }
    }
    lower.column->take_shared(mine[0]);
    upper.column->take_shared(mine[1]);
    return true;
  }

  /// A page that would not become smaller: each layer stores it as it would alone.
  bool flush_page() {
    const index_t page = lower.column->coded().page_slots();
    if (lower.column->reserve_flush(page) != Status::ok) return false;
    if (upper.column->reserve_flush(page) != Status::ok) return lower.column->trim(), false;
    lower.head->repaired += lower.column->flush(page, rows);
    upper.head->repaired += upper.column->flush(page, rows);
    return true;
  }
  void alone(Side& side, index_t gone) {
    const index_t n = side.column->due_alone(side.free - gone);
    if (n == 0 || side.column->reserve_flush(n) != Status::ok) return side.column->trim();
    side.head->repaired += side.column->flush(n, rows);
    side.head->changed(side.first);
  }
};

/// Counts rows that the `mine`-th head of a group shares. Their pages are the first head's that still has them.
template <class C>
void count_across(const C* const* group, index_t members, index_t mine, Report& r) {
  index_t from[max_row_group] = {};
  const C& column = *group[mine];
  for (const PageRef& ref : column.coded().pages()) {
    if (!column.coded().shares(ref)) continue;
    const OwnPart own = column.own(ref);
    r.across_rows += ref.live;
    for (index_t k = 0; k < own.kept(); ++k) r.across_rows -= ref.alive(own.kept_slot(k));
    const Page& rows = *ref.page->under;
    std::uint64_t dead[max_page_slots / 64];
    std::copy_n(ref.dead, max_page_slots / 64, dead);
    bool before = false, above = ref.page->shared();
    std::uint32_t holders = 1;
    for (index_t i = 0; i < members; ++i) {
      const auto& pages = group[i]->coded().pages();
      const index_t at = i == mine ? -1 : page_above(pages, &rows, from[i]);
      if (at < 0) continue;
      before = before || i < mine, above = above || pages[at].page->shared(), ++holders;
      for (index_t w = 0; w < max_page_slots / 64; ++w) dead[w] &= pages[at].dead[w];
    }
    if (before) continue;
    r.coded_bytes += rows.bytes();
    if (above || rows.owners.load(std::memory_order_acquire) > holders) r.shared_bytes += rows.bytes();
    std::size_t n = 0;
    for (const std::uint64_t w : dead) n += static_cast<std::size_t>(std::popcount(w));
    r.dead_bytes += n * rows.payload_bytes / static_cast<std::size_t>(column.coded().page_slots());
  }
}

}  // namespace kvcondense::cache
