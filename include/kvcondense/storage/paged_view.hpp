#pragma once

#include <algorithm>
#include <cstdint>
#include <span>
#include <utility>

#include <kvcondense/core/buffer.hpp>
#include <kvcondense/core/expected.hpp>
#include <kvcondense/core/policy.hpp>
#include <kvcondense/core/shape.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/prim/paged_rows.hpp>

namespace kvcondense::storage {

/// The page tables of a batch as FlashInfer takes them: request r has pages indices[indptr[r] .. indptr[r + 1]),
/// all full but the last, which holds last_page_len[r] slots.
struct PageTables {
  std::span<const std::int32_t> indptr;
  std::span<const std::int32_t> indices;
  std::span<const std::int32_t> last_page_len;

  index_t requests() const { return static_cast<index_t>(last_page_len.size()); }
  std::span<const std::int32_t> pages(index_t r) const {
    const auto i = static_cast<std::size_t>(r);
    return indices.subspan(static_cast<std::size_t>(indptr[i]), static_cast<std::size_t>(indptr[i + 1] - indptr[i]));
  }
  index_t slots(index_t r, index_t page_slots) const {
    const auto n = static_cast<index_t>(pages(r).size());
    return n == 0 ? 0 : (n - 1) * page_slots + last_page_len[static_cast<std::size_t>(r)];
  }

  /// shape_mismatch: the three do not fit; out_of_range: an index, or a length of a last page, that cannot be.
  Status validate(index_t page_slots) const {
    if (indptr.size() != last_page_len.size() + 1) return Status::shape_mismatch;
    if (indptr.front() != 0 || indptr.back() < 0 || static_cast<std::size_t>(indptr.back()) > indices.size()) return Status::shape_mismatch;
    for (std::size_t r = 0; r < last_page_len.size(); ++r) {
      if (indptr[r + 1] < indptr[r]) return Status::shape_mismatch;
      if (indptr[r + 1] > indptr[r] && (last_page_len[r] < 1 || last_page_len[r] > page_slots)) return Status::out_of_range;
    }
    return Status::ok;
  }
};

/// Reads and condenses a sequence where an engine stores it: in pages of the engine's own pool.
///
/// Idea     an engine with block tables keeps them. Attention reads rows through the table, a policy chooses as it
///          does for a cache, and what stays moves to the front of each head: pages behind the longest head are
///          the engine's again.
/// Source   PagedAttention, arXiv:2309.06180; FlashInfer, arXiv:2501.01005, its NHD and HND tensors and its tables.
/// Needs    keys and values of one layer in the pool, the table of one sequence.
/// Shapes   tensors of pages in any PagedLayout; heads of a page hold the same slots until one evicts.
/// Cost     checking a table is one pass and a bit per page of the pool; nothing is copied.
/// Numbers  rows stay as the engine stored them; attention as `prim::Attend`.
/// Errors   shape_mismatch, invalid_argument: numbers that make no tensor, or a page named twice; out_of_range: a page
///          that the pool does not have, a table too short for its slots; out_of_memory. The engine's memory is
///          then untouched.
class PagedView {
 public:
  static constexpr Descriptor about{"paged_view", Stage::storage, "arXiv:2501.01005"};
  static constexpr index_t most_page_slots = index_t{1} << 31;  ///< so that slots of all pages can be counted

  /// `pages` are borrowed; `slots` of them are in use in every head. `pool_pages` is what the tensors hold.
  static Expected<PagedView> make(const prim::PagedTensor& keys, const prim::PagedTensor& values, index_t kv_heads, index_t page_slots,
                                  std::span<const std::int32_t> pages, index_t slots, index_t pool_pages,
                                  MemoryResource<Cpu>& memory = heap_memory()) {
    const auto sane = [](const prim::PagedTensor& t) {
      return t.data != nullptr && t.dim > 0 && t.dim <= max_head_dim && t.layout.chunk > 0 && t.layout.page > 0;
    };
    if (!sane(keys) || !sane(values) || kv_heads < 1 || page_slots < 1 || page_slots > most_page_slots || slots < 0 || pool_pages < 0) return Status::invalid_argument;
    PagedView v;
    v.heads_ = kv_heads, v.pool_pages_ = pool_pages;
    v.slots_ = Buffer<index_t>(memory), v.seen_ = Buffer<std::uint64_t>(memory);
    v.sequence_ = {keys, values, pages.data(), page_slots, nullptr};
    if (const Status s = v.slots_.resize(kv_heads, slots); s != Status::ok) return s;
    v.sequence_.slots = v.slots_.data();
    if (const Status s = v.use_table(pages); s != Status::ok) return s;
    return Expected<PagedView>(std::move(v));
  }

  /// The table has changed: the engine gave pages or took some. Refused unless it covers every slot.
  Status use_table(std::span<const std::int32_t> pages) {
    const auto n = static_cast<index_t>(pages.size());
    if (n * sequence_.page_slots < longest()) return Status::out_of_range;
    const index_t words = (pool_pages_ + 63) / 64;
    seen_.shrink(0);
    if (const Status s = seen_.resize(words, 0); s != Status::ok) return s;
    for (const std::int32_t p : pages) {
      if (p < 0 || p >= pool_pages_) return Status::out_of_range;
      std::uint64_t& word = seen_[p / 64];
      const std::uint64_t bit = std::uint64_t{1} << (p % 64);
      if ((word & bit) != 0) return Status::invalid_argument;
      word |= bit;
    }
    sequence_.pages = pages.data();
    pages_ = n;
    return Status::ok;
  }

  const prim::PagedSequence& sequence() const { return sequence_; }
  index_t kv_heads() const { return heads_; }
  index_t slots(index_t head) const { return slots_[head]; }
  index_t longest() const { return slots_.empty() ? 0 : *std::max_element(slots_.begin(), slots_.end()); }
  index_t total_slots() const {
    index_t n = 0;
    for (const index_t s : slots_) n += s;
    return n;
  }
  index_t pages() const { return pages_; }
  /// Pages in use; what the table has beyond them the engine may take.
  index_t pages_needed() const { return (longest() + sequence_.page_slots - 1) / sequence_.page_slots; }
  /// Pages that the table lacks for `tokens` more.
  index_t pages_lacking(index_t tokens) const {
    const index_t room = pages_ * sequence_.page_slots - longest();
    return tokens <= room ? 0 : (tokens - room - 1) / sequence_.page_slots + 1;
  }
  /// Part of the slots of the pages in use that hold something.
  double utilisation() const {
    const index_t room = pages_needed() * sequence_.page_slots * heads_;
    return room == 0 ? 1.0 : static_cast<double>(total_slots()) / static_cast<double>(room);
  }

  /// `tokens` were written behind the last slot of every head (prim::append_paged). out_of_range: the table is too short.
  Status grow(index_t tokens) {
    if (tokens < 0 || pages_lacking(tokens) > 0) return Status::out_of_range;
    for (index_t& s : slots_) s += tokens;
    return Status::ok;
  }
  /// Head `head` holds its first `slots` only.
  Status shrink(index_t head, index_t slots) {
    if (head < 0 || head >= heads_ || slots < 0 || slots > slots_[head]) return Status::out_of_range;
    slots_[head] = slots;
    return Status::ok;
  }

 private:
  PagedView() = default;

  prim::PagedSequence sequence_{};
  index_t heads_ = 0, pages_ = 0, pool_pages_ = 0;
  Buffer<index_t> slots_;
  Buffer<std::uint64_t> seen_;  ///< pages of the pool that a table named
};

}  // namespace kvcondense::storage
