#pragma once

#include <algorithm>
#include <atomic>
#include <bit>
#include <cstring>
#include <new>
#include <span>

#include <kvcondense/core/bytes.hpp>
#include <kvcondense/core/config.hpp>
#include <kvcondense/core/flush.hpp>
#include <kvcondense/core/memory.hpp>
#include <kvcondense/prim/page_codec.hpp>

namespace kvcondense::cache {

/// One allocation: this header, then the payload, both 64-byte aligned. Forks share pages; whoever
/// wants to write takes a page of its own first.
struct alignas(64) Page {
  std::atomic<std::uint32_t> owners{1};
  std::size_t payload_bytes = 0;
  Page* under = nullptr;  ///< rows that another layer holds too: the payload is then what this one has of its own
  std::uint64_t format = 0;  ///< how the bytes are to be read: the same in all pages of a chain

  std::byte* payload() { return reinterpret_cast<std::byte*>(this) + sizeof(Page); }
  bool shared() const { return owners.load(std::memory_order_acquire) > 1; }
  std::size_t bytes() const { return sizeof(Page) + payload_bytes; }

  static Page* make(MemoryResource<Cpu>& memory, std::size_t payload_bytes, std::uint64_t format) {
    void* p = memory.allocate(sizeof(Page) + payload_bytes, alignof(Page));
    if (p == nullptr) return nullptr;
    Page* page = new (p) Page;
    page->payload_bytes = payload_bytes;
    page->format = format;
    // Padding and unused slots go into snapshots: the bytes of equal caches must be equal.
    std::memset(page->payload(), 0, payload_bytes);
    return page;
  }
};

static_assert(sizeof(Page) == 64);

/// A number that differs where pages of so many slots of so many numbers, stored by a codec with this fingerprint, lie differently.
inline std::uint64_t page_format(std::int64_t codec, index_t slots, index_t dim) {
  Checksum sum;
  const std::int64_t numbers[] = {codec, slots, dim};
  sum.add(std::as_bytes(std::span(numbers)));
  return sum.value();
}

inline Page* retain(Page* page) {
  page->owners.fetch_add(1, std::memory_order_relaxed);
  return page;
}

inline void release(Page* page, MemoryResource<Cpu>& memory) {
  if (page->owners.fetch_sub(1, std::memory_order_acq_rel) != 1) return;
  if (page->under != nullptr) release(page->under, memory);
  const std::size_t bytes = page->bytes();
  page->~Page();
  memory.release(page, bytes, alignof(Page));
}

inline constexpr index_t max_page_slots = 256;

/// Slots of a page of the exact window, where others have `page_slots`: a short window must not pay for a long page.
inline index_t window_page_slots(const Flush& flush, index_t page_slots) {
  if (flush.block == 0) return page_slots;
  return std::clamp<index_t>(std::max(flush.block, flush.keep) / 4, std::min<index_t>(8, page_slots), page_slots);
}

/// A number that no other content of a page has had for a very long time.
inline std::uint32_t next_stamp() {
  static std::atomic<std::uint32_t> last{0};
  const std::uint32_t stamp = last.fetch_add(1, std::memory_order_relaxed) + 1;
  return stamp == 0 ? next_stamp() : stamp;
}

/// A page, of whichever memory, as one cache sees it. Which slots are dead belongs to the owner, not to the shared page:
/// evicting from a fork copies nothing.
template <class P>
struct PageRefOf {
  P* page = nullptr;
  std::int16_t used = 0;    ///< physical slots written
  std::int16_t live = 0;    ///< of these, still in the cache
  std::uint32_t stamp = 0;  ///< of what the slots written hold: new whenever one of them is written again
  std::uint64_t dead[max_page_slots / 64] = {};

  /// All of the first n slots are written anew and live.
  void fill(index_t n) { used = live = static_cast<std::int16_t>(n), stamp = next_stamp(); }
  /// So many more are written.
  void grow(index_t n) {
    if (used == 0) stamp = next_stamp();
    used = static_cast<std::int16_t>(used + n), live = static_cast<std::int16_t>(live + n);
  }
  /// The last n, which are dead, may be written again.
  void cut(index_t n) {
    used = static_cast<std::int16_t>(used - n), stamp = next_stamp();
    revive_from(used);
  }

  bool alive(index_t slot) const { return (dead[slot / 64] >> (slot % 64) & 1u) == 0; }
  void kill(index_t slot) {
    dead[slot / 64] |= std::uint64_t{1} << (slot % 64);
    --live;
  }
  void revive_from(index_t slot) {
    for (index_t w = slot / 64; w < words; ++w) dead[w] &= w == slot / 64 ? ~from(slot) : 0;
  }
  index_t live_from(index_t slot) const {
    index_t n = used - slot;
    for (index_t w = slot / 64; w < words; ++w) n -= std::popcount(dead[w] & (w == slot / 64 ? from(slot) : ~std::uint64_t{0}));
    return n;
  }
  /// The first slot from `slot` on that is alive, or dead; `used` where there is none.
  index_t next_alive(index_t slot) const { return next(slot, ~std::uint64_t{0}); }
  index_t next_dead(index_t slot) const { return next(slot, 0); }
  bool full_of_life() const { return live == used; }

 private:
  static constexpr index_t words = max_page_slots / 64;

  /// The bits of a slot and of those behind it, in its word.
  static constexpr std::uint64_t from(index_t slot) { return ~std::uint64_t{0} << (slot % 64); }
  index_t next(index_t slot, std::uint64_t flip) const {
    for (index_t w = slot / 64; w * 64 < used; ++w)
      if (const std::uint64_t bits = (dead[w] ^ flip) & (w == slot / 64 ? from(slot) : ~std::uint64_t{0}); bits != 0)
        return std::min<index_t>(w * 64 + std::countr_zero(bits), used);
    return used;
  }
};
using PageRef = PageRefOf<Page>;

}  // namespace kvcondense::cache
