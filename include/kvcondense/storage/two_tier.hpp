#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <utility>

#include <kvcondense/core/buffer.hpp>
#include <kvcondense/core/expected.hpp>
#include <kvcondense/core/page_provider.hpp>
#include <kvcondense/core/policy.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/storage/page_replacement.hpp>

namespace kvcondense::storage {

/// Keeps copies of the pages that attention read lately in a small fast memory; all pages lie in a large slow one.
///
/// Idea     a retrieval stage reads few pages in a step, and much the same ones in the next: what was read stays at hand, and a
///          step waits for the slow memory only for pages that are new to it.
/// Source   Xiao et al., InfLLM, arXiv:2402.04617, and Zhang et al., PQCache, arXiv:2407.12820: their caches of blocks.
/// Needs    a cache whose resource is the slow memory, and that memory's `fetch`; `pages = &tier` in `AttendOutputs`.
/// Shapes   at most `frames` copies, each as long as its page: stored rows as they are, exact or coded.
/// Cost     per page and call one look into a table; per miss a copy and a pass over the frames; a page that rows still come into
///          is read where it lies.
/// Numbers  bytes are not touched: attention is that of the slow memory alone, bit for bit. A page that is stored anew is
///          brought anew. Where a call names more pages than there are frames, or the fast memory says no, pages are read in place.
/// Errors   make: invalid_argument (frames below 1 or above 2^24, a rule that wants predictions), out_of_memory. bring: io_error
///          when not all of a page could be read; nothing is kept of it.
/// Threads  as PageProvider.
class TwoTier final : public PageProvider<Cpu> {
 public:
  static constexpr Descriptor about{"two_tier", Stage::storage, "arXiv:2402.04617"};

  /// Since `restart`: pages that were named, and their bytes.
  struct Counts {
    index_t hits = 0, misses = 0, in_place = 0;
    std::size_t hit_bytes = 0;       ///< read from the fast memory
    std::size_t miss_bytes = 0;      ///< copied from the slow one, then read from the fast one
    std::size_t in_place_bytes = 0;  ///< read where they lie
  };

  static Expected<TwoTier> make(SlowMemory& slow, index_t frames, Replacement rule = Replacement::lru,
                                MemoryResource<Cpu>& fast = heap_memory()) {
    const bool known = rule == Replacement::lru || rule == Replacement::lfu;
    if (!known || frames < 1 || frames > (index_t{1} << 24)) return Status::invalid_argument;
    // One more than stay: a page is known before another one leaves.
    auto order = PageReplacement::make(rule, frames + 1, frames, 0, fast);
    if (!order) return order.status();
    TwoTier t(slow, fast, std::move(*order));
    index_t table = 8;
    while (table < 4 * frames) table *= 2;
    if (const Status s = t.frames_.resize(frames + 1); s != Status::ok) return s;
    if (const Status s = t.free_.reserve(frames + 1, true); s != Status::ok) return s;
    if (const Status s = t.table_.resize(table, -1); s != Status::ok) return s;
    for (index_t f = frames; f >= 0; --f) t.free_.append_reserved(f);
    return Expected<TwoTier>(std::move(t));
  }
  TwoTier(TwoTier&& o) noexcept = default;
  TwoTier& operator=(TwoTier&&) = delete;
  ~TwoTier() override {
    for (Frame& f : frames_) give_back(f);
  }

  const Counts& counts() const { return counts_; }
  void restart() { counts_ = {}; }
  /// Of all copies.
  std::size_t fast_bytes() const { return fast_bytes_; }

  void begin() noexcept override { ++call_; }

  Status bring(const PageUse& page) noexcept override {
    const index_t at = page.stamp == 0 ? -1 : look(page);
    if (at >= 0) {
      ++counts_.hits, counts_.hit_bytes += page.bytes;
      frames_[at].call = call_;
      return order_.request(at);
    }
    if (page.stamp == 0) return count_in_place(page.bytes);
    const index_t f = free_.back();
    free_.shrink(free_.size() - 1);
    (void)order_.request(f);
    std::byte* room = nullptr;
    for (const index_t old : order_.evicted()) {
      Frame& gone = frames_[old];
      if (gone.data == nullptr) continue;  // it is free already
      if (gone.call == call_) (void)count_in_place(gone.bytes);  // named in this call, and found where it lies
      forget(old);
      if (gone.bytes == page.bytes) room = std::exchange(gone.copy, nullptr);
      give_back(gone);
      free_.append_reserved(old);
    }
    if (room == nullptr) {
      room = static_cast<std::byte*>(fast_->allocate(page.bytes, 64));
      if (room != nullptr) fast_bytes_ += page.bytes;
    }
    if (room == nullptr) return free_.append_reserved(f), count_in_place(page.bytes);
    if (!slow_->fetch(page.data, {room, page.bytes})) {
      fast_->release(room, page.bytes, 64);
      fast_bytes_ -= page.bytes;
      free_.append_reserved(f);
      return Status::io_error;
    }
    ++counts_.misses, counts_.miss_bytes += page.bytes;
    frames_[f] = {page.data, page.stamp, room, page.bytes, call_};
    index_t i = home(page);
    while (table_[i] >= 0) i = next(i);
    table_[i] = static_cast<std::int32_t>(f);
    return Status::ok;
  }

  const std::byte* find(const PageUse& page) const noexcept override {
    const index_t at = page.stamp == 0 ? -1 : look(page);
    return at < 0 ? page.data : frames_[at].copy;
  }

  void expect(const PageUse& page) noexcept override {
    if (page.stamp != 0 && look(page) < 0) slow_->expect(page.data, page.bytes);
  }

 private:
  struct Frame {
    const std::byte* data = nullptr;  ///< of the page; null: the frame has none
    std::uint32_t stamp = 0;
    std::byte* copy = nullptr;
    std::size_t bytes = 0;
    index_t call = -1;  ///< that named it last
  };

  TwoTier(SlowMemory& slow, MemoryResource<Cpu>& fast, PageReplacement&& order)
      : slow_(&slow), fast_(&fast), order_(std::move(order)), frames_(fast), free_(fast), table_(fast) {}

  Status count_in_place(std::size_t bytes) {
    ++counts_.in_place, counts_.in_place_bytes += bytes;
    return Status::ok;
  }
  void give_back(Frame& f) {
    if (f.copy != nullptr) fast_->release(f.copy, f.bytes, 64), fast_bytes_ -= f.bytes;
    f = {};
  }

  index_t next(index_t i) const { return (i + 1) & (table_.size() - 1); }
  index_t home(const PageUse& page) const {
    const std::uint64_t x = (static_cast<std::uint64_t>(page.stamp) << 32 | page.stamp) * 0x9e3779b97f4a7c15u;
    return static_cast<index_t>(x >> 32) & (table_.size() - 1);
  }
  index_t look(const PageUse& page) const {
    for (index_t i = home(page); table_[i] >= 0; i = next(i))
      if (const Frame& f = frames_[table_[i]]; f.stamp == page.stamp && f.data == page.data) return table_[i];
    return -1;
  }
  /// Takes a frame out of the table; those behind it move to where they are looked for.
  void forget(index_t frame) {
    const auto home_of = [&](index_t f) { return home({frames_[f].data, frames_[f].bytes, frames_[f].stamp}); };
    index_t hole = home_of(frame);
    while (table_[hole] != frame) hole = next(hole);
    for (index_t i = next(hole); table_[i] >= 0; i = next(i)) {
      const index_t h = home_of(table_[i]);
      const bool stays = hole < i ? h > hole && h <= i : h > hole || h <= i;
      if (!stays) table_[hole] = table_[i], hole = i;
    }
    table_[hole] = -1;
  }

  SlowMemory* slow_;
  MemoryResource<Cpu>* fast_;
  PageReplacement order_;
  Buffer<Frame> frames_;
  Buffer<index_t> free_;        ///< frames that hold no page
  Buffer<std::int32_t> table_;  ///< frames, by stamp
  index_t call_ = 0;
  std::size_t fast_bytes_ = 0;
  Counts counts_;
};

}  // namespace kvcondense::storage
