#pragma once

#include <algorithm>
#include <cstring>
#include <span>

#include <kvcondense/backend/cpu/context.hpp>
#include <kvcondense/backend/cpu/paged_rows.hpp>
#include <kvcondense/core/view.hpp>
#include <kvcondense/external/borrowed.hpp>

namespace kvcondense::external {

/// Lists of slots that stay, one per KV head: row h of `slots`, its first count[h] entries, ascending.
struct KeptLists {
  RaggedView<const std::int32_t> slots{};
  const index_t* count = nullptr;

  std::span<const std::int32_t> of(index_t head) const { return {slots.row(head), static_cast<std::size_t>(count[head])}; }
  index_t longest() const {
    index_t n = 0;
    for (index_t h = 0; h < slots.heads; ++h) n = std::max(n, count[h]);
    return n;
  }
  /// Whether all heads keep the same slots.
  bool alike() const {
    for (index_t h = 1; h < slots.heads; ++h)
      if (count[h] != count[0] || !std::equal(slots.row(h), slots.row(h) + count[h], slots.row(0))) return false;
    return true;
  }
};

/// Entries of the table whose pages a compaction, or the next token behind what any head keeps, would write although other sequences have them too:
/// each must become a page of this sequence's own before. Writes their places in the table, as many as `out` has room for; returns how many there are.
inline index_t pages_to_own(const BorrowedLayer& b, const KeptLists& kept, std::span<index_t> out = {}) {
  index_t n = 0;
  const index_t longest = kept.longest();
  for (index_t p = 0; p * b.page_slots < longest; ++p) {
    if (!b.shared(b.table[static_cast<std::size_t>(p)])) continue;
    const auto moves_in = [&](index_t h) {
      const index_t first = p * b.page_slots, last = std::min(kept.count[h], first + b.page_slots);
      return last > first && kept.slots.row(h)[last - 1] != last - 1;  // lists ascend: the last one in place means all are
    };
    const auto grows_in = [&](index_t h) { return kept.count[h] >= p * b.page_slots && kept.count[h] < (p + 1) * b.page_slots; };
    bool any = false;
    for (index_t h = 0; h < kept.slots.heads && !any; ++h) any = moves_in(h) || grows_in(h);
    if (!any) continue;
    if (static_cast<std::size_t>(n) < out.size()) out[static_cast<std::size_t>(n)] = p;
    ++n;
  }
  return n;
}

/// For tables of one slot per page, as lists of cells are: puts the places that stay first, in order, and those that leave behind
/// them, in any; returns how many stay.
inline index_t part_places(std::span<std::int32_t> table, std::span<const std::int32_t> kept) {
  // A place in front that is swapped away is not in the list any more: lists ascend.
  for (std::size_t i = 0; i < kept.size(); ++i) std::swap(table[i], table[static_cast<std::size_t>(kept[i])]);
  return static_cast<index_t>(kept.size());
}

/// Moves the rows that stay to the front of each head, in order, where they are: no second copy, no scratch but a bit per page.
///
/// Idea     slots ascend, so a row never moves over one that has not moved yet. Where a page is shared, the table it moves to
///          names a fresh page in its place; rows are copied there, and the other sequences notice nothing.
/// Source   none; vLLM and llama.cpp (defragmentation) move rows so.
/// Needs    kept lists; `to`: the table afterwards, the same one or with fresh pages in some places (`pages_to_own`).
/// Shapes   any BorrowedLayer; whatever else belongs to slots (SlotBytes) moves with them: what serves all heads, only where
///          all heads keep the same.
/// Cost     one read and one write of what moves; slots that stay where they are cost nothing.
/// Numbers  bytes as they are.
/// Errors   as check(); invalid_argument: a row would be written into a shared page, or `to` has a page that the table has in
///          another place; incompatible: numbers of all heads where heads keep different slots. Nothing has moved then.
struct MoveRows {
  static std::size_t workspace_bytes(index_t pool_pages) { return 2 * Scratch::bytes_for<std::uint64_t>((pool_pages + 63) / 64); }

  /// `slots`: what each head holds before, at least what lists name. Whether `run` may be called.
  static Status validate(const BorrowedLayer& b, const CacheShape& shape, const KeptLists& kept, index_t slots, std::span<const std::int32_t> to,
                         std::span<const SlotBytes> numbers, Scratch scratch) {
    auto* bits = scratch.take<std::uint64_t>((b.pool_pages + 63) / 64);
    if (bits == nullptr) return Status::workspace_too_small;
    if (const Status s = check(b, shape, slots, scratch); s != Status::ok) return s;
    const index_t longest = kept.longest(), pages = (longest + b.page_slots - 1) / b.page_slots;
    // The pages of the old table, so that a fresh one is known.
    const index_t held = (slots + b.page_slots - 1) / b.page_slots;
    if (const Status s = check_table(to, pages, b.pool_pages, bits); s != Status::ok) return s;
    if (const Status s = check_table(b.table, held, b.pool_pages, bits); s != Status::ok) return s;
    for (index_t p = 0; p < pages; ++p) {
      const index_t now = to[static_cast<std::size_t>(p)], before = b.table[static_cast<std::size_t>(p)];
      if (now != before && ((bits[now / 64] >> (now % 64)) & 1) != 0) return Status::invalid_argument;
      if (!b.shared(now)) continue;
      if (now != before) return Status::invalid_argument;
      for (index_t h = 0; h < kept.slots.heads; ++h) {
        const index_t last = std::min(kept.count[h], (p + 1) * b.page_slots);
        if (last > p * b.page_slots && kept.slots.row(h)[last - 1] != last - 1) return Status::invalid_argument;
      }
    }
    for (const SlotBytes& n : numbers) {
      if (n.data == nullptr || n.bytes < 1) return Status::invalid_argument;
      if (n.head == 0 && kept.slots.heads > 1 && !kept.alike()) return Status::incompatible;
    }
    return Status::ok;
  }

  /// After `validate`: cannot fail.
  static void run(Context<Cpu>& ctx, const BorrowedLayer& b, const KeptLists& kept, std::span<const std::int32_t> to,
                  std::span<const SlotBytes> numbers) {
    const auto each = [&](index_t h, auto&& move) {
      const std::span<const std::int32_t> list = kept.of(h);
      for (std::size_t i = 0; i < list.size(); ++i) {
        const auto slot = static_cast<index_t>(i);
        const index_t page = to[static_cast<std::size_t>(slot / b.page_slots)], from = b.page(list[i]);
        if (list[i] != slot || page != from) move(page, slot % b.page_slots, from, list[i] % b.page_slots);
      }
    };
    ctx.parallel(kept.slots.heads, [&](index_t h, index_t) {
      each(h, [&](index_t page, index_t slot, index_t from, index_t from_slot) {
        prim::cpu::move_paged(b.keys, h, page, slot, from, from_slot);
        prim::cpu::move_paged(b.values, h, page, slot, from, from_slot);
        for (const SlotBytes& n : numbers)
          if (n.head != 0) std::memmove(n.at(page, h, slot), n.at(from, h, from_slot), static_cast<std::size_t>(n.bytes));
      });
    });
    for (const SlotBytes& n : numbers)
      if (n.head == 0 && kept.slots.heads > 0)
        each(0, [&](index_t page, index_t slot, index_t from, index_t from_slot) {
          std::memmove(n.at(page, 0, slot), n.at(from, 0, from_slot), static_cast<std::size_t>(n.bytes));
        });
  }
};

}  // namespace kvcondense::external
