#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>
#include <utility>

#include <kvcondense/cache/kept.hpp>
#include <kvcondense/cache/page.hpp>
#include <kvcondense/cache/page_list.hpp>
#include <kvcondense/core/buffer.hpp>
#include <kvcondense/core/page_provider.hpp>
#include <kvcondense/core/status.hpp>

namespace kvcondense::cache {

/// Of what a codec writes, whatever map is in front of it.
template <class Codec>
std::int64_t code_fingerprint(const Codec& codec) {
  if constexpr (requires { codec.code_fingerprint(); }) return codec.code_fingerprint();
  else return codec.fingerprint();
}

/// Slots of one head in one stored form: a list of pages of equal capacity, in slot order.
///
/// A slot that leaves becomes a tombstone; `compact` gives the room back. Slots with parameters of
/// their own move losslessly, so less than one page's worth of slots stays empty. Slots that share
/// parameters (per-channel groups) cannot move alone: pages that are half dead are read and written
/// again with new parameters, which `compact` counts. Steps that need memory are separate
/// (`reserve`), so that the rest of a transaction cannot fail.
template <class Codec>
class Segment {
 public:
  Segment() = default;
  /// `fingerprint`: of how rows become what the codec stores, and of the codec.
  Segment(const Codec& codec, std::int64_t fingerprint, index_t dim, index_t page_slots, MemoryResource<Cpu>& memory)
      : codec_(codec), dim_(dim), page_slots_(page_slots), format_(page_format(fingerprint, page_slots, dim)), memory_(&memory), pages_(memory),
        far_ahead_(page_payload() < near_bytes ? 2 : 1) {}
  Segment(Segment&& o) noexcept { swap(o); }
  Segment& operator=(Segment&& o) noexcept {
    Segment gone(std::move(o));
    swap(gone);
    return *this;
  }
  ~Segment() { clear(); }

  const Codec& codec() const { return codec_; }
  index_t dim() const { return dim_; }
  index_t live() const { return live_; }
  index_t page_slots() const { return page_slots_; }
  std::uint64_t format() const { return format_; }  ///< of every page in it
  const Buffer<PageRef>& pages() const { return pages_; }
  prim::PageSpan span(const PageRef& ref) const { return {rows_of(ref)->payload(), page_slots_, dim_}; }
  /// How many pages ahead pages are asked for: a small one is read in less time than the next one takes to come.
  index_t far_ahead() const { return far_ahead_; }

  /// For reading: with the page `ahead` pages behind it, 0 for none, as if those of `then`, which is read after this segment, came behind its
  /// own; or where `pages` has it.
  prim::PageSpan span_then_next(const PageRef& ref, index_t ahead, const PageProvider<Cpu>* pages, const Segment* then = nullptr) const {
    if (pages != nullptr) return {const_cast<std::byte*>(pages->find(use_of(ref))), page_slots_, dim_};
    prim::PageSpan span{rows_of(ref)->payload(), page_slots_, dim_};
    if (ahead == 0) return span;
    const index_t rest = &pages_.back() - &ref, far = std::min(ahead, pages_.size());  // a lone page asks for the first one of `then`
    if (far <= rest) span.next = rows_of((&ref)[far])->payload();
    else if (then != nullptr && far - rest <= then->pages_.size()) span.next = then->rows_of(then->pages_[far - rest - 1])->payload();
    return span;
  }
  PageUse use_of(const PageRef& ref) const { return {rows_of(ref)->payload(), page_payload(), ref.used < page_slots_ ? 0 : ref.stamp}; }
  /// Whether no slot has left and all pages but the last are full, so that slot i lies in page i / page_slots().
  bool packed() const {
    const index_t last = last_used();
    return last < 0 || live_ == last * page_slots_ + pages_[last].used;
  }
  std::size_t page_payload() const { return codec_.page_bytes(page_slots_, dim_); }

  /// Without rows that another layer holds too: those belong to both.
  std::size_t page_bytes() const {
    std::size_t sum = spare_ != nullptr ? spare_->bytes() : 0;
    for (const PageRef& r : pages_) sum += r.page->bytes();
    return sum;
  }
  std::size_t table_bytes() const { return pages_.bytes(); }
  /// Slots before the last written one that hold nothing.
  index_t dead() const {
    index_t n = 0;
    const index_t last = last_used();
    for (index_t p = 0; p <= last; ++p) n += shares(pages_[p]) ? 0 : empty_slots(p, last);
    return n;
  }
  std::size_t shared_bytes() const {
    std::size_t sum = 0;
    for (const PageRef& r : pages_) sum += r.page->shared() ? r.page->bytes() : 0;
    return sum;
  }

  /// Room for `n` more slots in pages that nobody else owns. On refusal nothing is kept.
  Status reserve(index_t n) {
    if (n <= 0) return Status::ok;
    const index_t last = last_used();
    index_t room = 0;
    if (last >= 0 && pages_[last].used < page_slots_) {
      if (!make_unique(last)) return Status::out_of_memory;
      room = page_slots_ - pages_[last].used;
    }
    room += (pages_.size() - 1 - last) * page_slots_;
    const index_t more = room >= n ? 0 : (n - room + page_slots_ - 1) / page_slots_;
    if (const Status s = pages_.reserve(pages_.size() + more); s != Status::ok) return s;
    for (index_t i = 0; i < more; ++i) {
      Page* page = std::exchange(spare_, nullptr);
      if (page != nullptr) std::memset(page->payload(), 0, page->payload_bytes);
      else page = make_page(page_payload());
      if (page == nullptr) {
        trim();
        return Status::out_of_memory;
      }
      PageRef ref;
      ref.page = page;
      pages_.append_reserved(ref);
    }
    return Status::ok;
  }

  /// Gives back pages that `reserve` made, or `keep` emptied, and nothing filled.
  void trim() {
    index_t gone = 0;
    Page* last = nullptr;
    for (; !pages_.empty() && pages_.back().used == 0; ++gone) {
      if (last != nullptr) release(last, *memory_);
      last = pages_.back().page;
      pages_.shrink(pages_.size() - 1);
    }
    if (last != nullptr) retire(last, gone);
  }

  void give_back() { pages_.give_back(pages_.size()); }

  /// After `reserve(rows.rows)`. Returns how many numbers the codec had to repair. `scores`: one per row, for
  /// codecs that tell slots apart.
  index_t append(prim::RowBlock<const float> rows, const float* scores = nullptr) {
    index_t repaired = 0;
    index_t done = 0;
    for (index_t p = std::max<index_t>(last_used(), 0); done < rows.rows; ++p) {
      PageRef& ref = pages_[p];
      // Eviction since `reserve` may have left a page in front of what it counted on, which a fork reads too.
      const index_t n = ref.page->shared() ? 0 : std::min(rows.rows - done, page_slots_ - ref.used);
      if (n == 0) continue;
      repaired += encode(span(ref), ref.used, n, {rows.data + done * rows.step, n, rows.step},
                         scores == nullptr ? nullptr : scores + done);
      ref.grow(n);
      done += n;
    }
    live_ += rows.rows;
    return repaired;
  }

  /// Of the live slots, which are the head's slots from `base` on, those that are not kept become tombstones.
  /// Room that `reserve` counted on stays: a last page that empties is kept until `trim`.
  void keep(const Kept& kept, index_t base) {
    const index_t before = live_;
    const bool emptied = kill(kept, base);
    if (live_ == before) return;
    empty_tail();
    drop_dead(emptied, true);
  }

  /// For slots with parameters of their own: after `reserve_write`, a live slot gets another row.
  Status reserve_write(index_t slot) { return make_unique(find(slot).page) ? Status::ok : Status::out_of_memory; }
  void write(index_t slot, const float* row) {
    const Place at = find(slot);
    pages_[at.page].stamp = next_stamp();
    (void)encode(span(pages_[at.page]), at.slot, 1, {row, 1, dim_}, nullptr);
  }

  /// In a copy of a page: rows of zeros in the groups that hold no live slot. `zero`: dim() of them.
  void clear_empty(const PageRef& ref, prim::PageSpan copy, const float* zero) const {
    const index_t group = codec_.group_slots();
    for (index_t first = 0; first < page_slots_; first += group) {
      bool live = false;
      for (index_t s = first; s < first + group && s < ref.used; ++s) live = live || ref.alive(s);
      if (!live) (void)encode(copy, first, group, {zero, group, 0}, nullptr);
    }
  }

  void pop_front(index_t n) { drop_dead(kill(Kept::without(0, n, live_), 0)); }
  void pop_back(index_t n) { drop_dead(kill(Kept::without(live_ - n, live_, live_), 0)); }

  /// Returns room to the resource where it pays; never fails, at worst it leaves things as they are.
  /// `rows` is scratch for 2 * page_slots() * dim() floats; the result counts slots coded again. `to_stored(page,
  /// slot, row)`: a row of a page that another layer holds too, as the segment stores rows.
  template <class ToStored>
  index_t compact(float* rows, ToStored&& to_stored) {
    if (codec_.group_slots() == 1)
      while (free_page()) {}
    const index_t again = codec_.group_slots() > 1 || shares_ ? rewrite_half_dead(rows, to_stored) : 0;
    trim();
    return again;
  }

  /// The name of what multiplies queries with its pages, or adds rows of them up; null: nothing but loops over rows.
  const char* kernel(bool sums) const {
    using Coder = prim::PageCodec<Cpu, Codec>;
    if constexpr (requires { Coder::kernel(codec_, prim::PageSpan{}, sums); }) return Coder::kernel(codec_, {nullptr, page_slots_, dim_}, sums);
    else return nullptr;
  }

  /// Whether another layer holds the rows of a page too. Headers of pages are only looked at where one ever did.
  bool shares(const PageRef& ref) const { return shares_ && ref.page->under != nullptr; }
  void may_share() { shares_ = true; }
  /// A page of rows for two layers, full of these; null when the resource refuses.
  Page* make_rows(prim::RowBlock<const float> rows, index_t& repaired) {
    Page* page = make_rows_page();
    if (page != nullptr) repaired += encode({page->payload(), page_slots_, dim_}, 0, page_slots_, rows, nullptr);
    return page;
  }
  Page* make_page(std::size_t payload) const { return Page::make(*memory_, payload, format_); }
  Page* make_rows_page() { return Page::make(*memory_, page_payload(), rows_format()); }
  /// Of pages of rows for several heads, whose own maps may differ.
  std::uint64_t rows_format() const { return page_format(code_fingerprint(codec_), page_slots_, dim_); }
  void drop_page(Page* page) const { if (page != nullptr) release(page, *memory_); }
  Status reserve_entry() { return pages_.reserve(pages_.size() + 1); }
  /// After `reserve_entry`: a page whose rows another layer holds too.
  void add_shared(Page* own) {
    PageRef ref;
    ref.page = own;
    ref.fill(page_slots_);
    pages_.append_reserved(ref);
    live_ += page_slots_;
    shares_ = true;
  }

  /// The same content in a new segment: pages are shared, but for those that wait to be filled. Pages of one form never enter a
  /// chain of another.
  Status fork(Segment& out) const {
    if (out.format_ != format_) return Status::incompatible;
    if (const Status s = out.pages_.copy_from(pages_); s != Status::ok) return s;
    out.pages_.shrink(last_used() + 1);
    for (const PageRef& r : out.pages_) retain(r.page);
    out.live_ = live_, out.shares_ = shares_;
    return Status::ok;
  }

  /// For loaders: a page with its tombstones, its payload zero until the loader fills it.
  Status add_page(index_t used, const std::uint64_t* dead, std::size_t payload) {
    if (const Status s = pages_.reserve(pages_.size() + 1); s != Status::ok) return s;
    PageRef ref;
    ref.page = make_page(payload);
    if (ref.page == nullptr) return Status::out_of_memory;
    ref.fill(used);
    for (index_t s = 0; s < used; ++s)
      if (dead[s / 64] >> (s % 64) & 1u) ref.kill(s);
    live_ += ref.live;
    pages_.append_reserved(ref);
    return Status::ok;
  }

  void clear() {
    for (PageRef& r : pages_) release(r.page, *memory_);
    pages_.shrink(0);
    if (spare_ != nullptr) release(std::exchange(spare_, nullptr), *memory_);
    live_ = 0, shares_ = false;
  }

  void swap(Segment& o) noexcept {
    std::swap(codec_, o.codec_), std::swap(memory_, o.memory_);
    std::swap(dim_, o.dim_), std::swap(page_slots_, o.page_slots_), std::swap(format_, o.format_), std::swap(live_, o.live_);
    pages_.swap(o.pages_), std::swap(spare_, o.spare_), std::swap(shares_, o.shares_), std::swap(far_ahead_, o.far_ahead_);
  }

 private:
  static constexpr std::size_t near_bytes = 8 << 10;

  Page* rows_of(const PageRef& ref) const { return shares(ref) ? ref.page->under : ref.page; }

  index_t encode(prim::PageSpan page, index_t first, index_t n, prim::RowBlock<const float> rows, const float* scores) const {
    using Coder = prim::PageCodec<Cpu, Codec>;
    if constexpr (requires { Coder::encode(codec_, page, first, n, rows, scores); })
      return Coder::encode(codec_, page, first, n, rows, scores);
    else
      return Coder::encode(codec_, page, first, n, rows);
  }

  /// See `keep`; whether a page has no live slot any more.
  bool kill(const Kept& kept, index_t base) { return bury_slots(pages_, kept, base, live_); }

  struct Place {
    index_t page = 0, slot = 0;
  };
  Place find(index_t slot) const {
    Place at;
    for (; pages_[at.page].live <= slot; ++at.page) slot -= pages_[at.page].live;
    if (const PageRef& ref = pages_[at.page]; ref.full_of_life()) return {at.page, slot};
    for (const PageRef& ref = pages_[at.page];; ++at.slot)
      if (ref.alive(at.slot) && slot-- == 0) return at;
  }

  index_t last_used() const { return last_used_page(pages_); }

  bool make_unique(index_t p) {
    PageRef& ref = pages_[p];
    if (!ref.page->shared()) return true;
    Page* copy = make_page(page_payload());
    if (copy == nullptr) return false;
    std::memcpy(copy->payload(), ref.page->payload(), page_payload());
    release(std::exchange(ref.page, copy), *memory_);
    ref.stamp = next_stamp();
    return true;
  }

  /// A last page without a live slot starts over, its room kept.
  void empty_tail() {
    const index_t p = last_used();
    if (p < 0 || pages_[p].live > 0 || pages_[p].page->shared() || shares(pages_[p])) return;
    pages_[p].used = 0;
    pages_[p].revive_from(0);
    std::memset(pages_[p].page->payload(), 0, pages_[p].page->payload_bytes);
  }

  /// `reserved`: room for what comes next was made before, so that no page of a fork may seem to have some.
  void drop_dead(bool emptied, bool reserved = false) {
    if (emptied) drop_pages();
    const index_t p = last_used();
    if (p < 0) return;
    // Trailing tombstones can be written again at once (whole groups only). Headers of pages are looked at last: they lie far apart.
    PageRef& tail = pages_[p];
    const index_t group = codec_.group_slots();
    if (tail.used == 0 || tail.live_from(tail.used - group) > 0) return;
    if (shares(tail) || (reserved && tail.page->shared())) return;
    cut_dead_tail(tail, group);
  }

  void drop_pages() {
    index_t gone = 0, to = 0;
    Page* last = nullptr;
    for (index_t p = 0; p < pages_.size(); ++p) {
      if (pages_[p].used > 0 && pages_[p].live == 0) {
        if (last != nullptr) release(last, *memory_);
        last = pages_[p].page;
        ++gone;
        continue;
      }
      if (to != p) pages_[to] = pages_[p];
      ++to;
    }
    pages_.shrink(to);
    if (last != nullptr) retire(last, gone);
  }

  /// The last of `gone` pages that emptied together. One at a time means a steady state, and the page
  /// is kept at hand so that the next append need not ask; many mean a big eviction: all go back.
  void retire(Page* page, index_t gone) {
    if (gone == 1 && spare_ == nullptr && !page->shared() && page->under == nullptr) {
      spare_ = page;
      return;
    }
    release(page, *memory_);
    if (gone > 1 && spare_ != nullptr) release(std::exchange(spare_, nullptr), *memory_);
  }

  /// Slots of a page that hold nothing; those behind the last written one are no waste.
  index_t empty_slots(index_t p, index_t last) const {
    return (p == last ? static_cast<index_t>(pages_[p].used) : page_slots_) - pages_[p].live;
  }

  bool free_page();
  void fetch_slots(const PageRef& ref, index_t first, index_t n) const;
  void move_slots(const PageRef& to, index_t to_slot, const PageRef& from, index_t slot, index_t n);
  template <class ToStored>
  index_t rewrite_half_dead(float* rows, ToStored&& to_stored);

  Codec codec_{};
  index_t dim_ = 0;
  index_t page_slots_ = 0;
  std::uint64_t format_ = 0;
  MemoryResource<Cpu>* memory_ = nullptr;
  Buffer<PageRef> pages_;
  Page* spare_ = nullptr;
  index_t live_ = 0;
  bool shares_ = false;
  std::uint8_t far_ahead_ = 1;
};

}  // namespace kvcondense::cache

#include <kvcondense/cache/segment_compact.hpp>
