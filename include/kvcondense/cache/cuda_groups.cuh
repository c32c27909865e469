#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <utility>

#include <kvcondense/backend/cuda/group_pages.cuh>
#include <kvcondense/backend/cuda/memory.cuh>
#include <kvcondense/backend/cuda/steering.cuh>
#include <kvcondense/cache/cuda_pages.cuh>
#include <kvcondense/cache/page_list.hpp>
#include <kvcondense/core/buffer.hpp>
#include <kvcondense/core/object_array.hpp>
#include <kvcondense/core/row_groups.hpp>
#include <kvcondense/prim/slot_runs.hpp>

namespace kvcondense::cache {

/// The coded part of a column whose slots share parameters along slots, or whose rows other heads hold too, and cannot move alone, as Segment keeps it on the
/// CPU: slots that leave become tombstones, and two neighbouring pages become one once either is half dead and what lives fits.
///
/// The host knows every tombstone, so it must be told which slots stay. It plans a step on copies of the lists (`plan`, where memory may be
/// refused); then `commit` makes them those that there are, and what the device has to do for it is `work`.
class CudaGroups {
 public:
  using Ref = PageRefOf<CudaPage>;
  static_assert(max_page_slots == prim::JoinedPages::most_slots);

  /// Pages of `page_slots` slots, in groups of `group`, of rows of `dim` numbers.
  CudaGroups(index_t group, index_t page_slots, index_t dim, std::size_t page_bytes, MemoryResource<Cuda>& memory)
      : group_(group), page_slots_(page_slots), dim_(dim), bytes_(page_bytes), memory_(&memory), spare_(heap_memory()), parting_(heap_memory()), made_(heap_memory()), gone_(heap_memory()),
        coded_(heap_memory()), joins_(heap_memory()), chain_(heap_memory()), lists_(memory) {}
  CudaGroups(CudaGroups&&) = default;
  CudaGroups& operator=(CudaGroups&&) = delete;
  ~CudaGroups() { clear(); }

  Status make(index_t heads) {
    return heads_.fill(heap_memory(), heads, [](index_t) { return Head{}; });
  }

  index_t live(index_t head) const { return heads_[head].live; }
  /// Whether pages are to be joined though no slot leaves or becomes a code: where newest slots were taken back.
  bool unsettled() const {
    for (const Head& h : heads_)
      for (index_t p = 1; p < h.pages.size(); ++p)
        if (join_pages(h.pages[p - 1], h.pages[p], page_slots_)) return true;
    return false;
  }

  /// What a step does, but in heads where it `waits(head)`: `kept(head)` says which slots of a head stay, of which those from `base(head)` on are codes, and `due(head)` how many become
  /// codes behind them. On refusal there is no plan, and all is as before.
  template <class Waits, class KeptOf, class Base, class Due>
  Status plan(const Context<Cuda>& ctx, Waits&& waits, KeptOf&& kept, Base&& base, Due&& due) {
    abandon();
    Status s = Status::ok;
    for (index_t h = 0; h < heads_.size() && s == Status::ok; ++h) {
      s = heads_[h].next.copy_from(heads_[h].pages), heads_[h].next_live = heads_[h].live;
      if (s == Status::ok && !waits(h)) s = plan_head(ctx, h, kept(h), base(h), due(h));
    }
    if (s == Status::ok) s = chain_.push_back(joins_.size());
    if (s == Status::ok) s = reserve_lists(ctx);
    planned_ = s == Status::ok;
    if (s != Status::ok) abandon();
    return s;
  }
  /// The plan comes to nothing. Pages that it has taken wait for the next.
  void abandon() {
    for (CudaPage* page : made_) spare_.append_reserved(page);
    forget();
  }

  /// The plan is what there is from now on. `work`: what kernels have to do in the order of the stream, coding first.
  Status commit(const Context<Cuda>& ctx, prim::GroupWork& work) {
    work = {};
    if (!planned_) return Status::ok;
    if (const Status s = send(ctx, work); s != Status::ok) return s;
    for (Head& h : heads_) h.pages.swap(h.next), std::swap(h.live, h.next_live), h.again += h.next_again;
    for (CudaPage* page : gone_) give_up(page);
    forget();
    return Status::ok;
  }
  /// The newest `n` slots of a head leave at once.
  void pop_back(index_t head, index_t n) {
    Head& h = heads_[head];
    if (n == 0) return;
    const bool emptied = bury_slots(h.pages, Kept::without(h.live - n, h.live, h.live), 0, h.live);
    if (emptied) drop_empty(h.pages, [&](CudaPage* page) { give_up(page); });
    if (!h.pages.empty() && h.pages.back().page->under == nullptr) cut_dead_tail(h.pages.back(), group_);
  }

  /// What there is of a head.
  const Buffer<Ref>& pages(index_t head) const { return heads_[head].pages; }
  /// For loaders: a page behind those of a head, with its tombstones; whoever asks for it writes its slots. `bytes`: of what it has of its own.
  Status add_page(index_t head, index_t used, std::span<const std::uint64_t> dead, CudaPage*& page) { return add_page(head, used, dead, bytes_, page); }
  Status add_page(index_t head, index_t used, std::span<const std::uint64_t> dead, std::size_t bytes, CudaPage*& page) {
    Head& h = heads_[head];
    if (const Status s = reserve_shared(head, 1); s != Status::ok) return s;
    Ref ref;
    ref.page = page = CudaPage::make(*memory_, bytes);
    if (page == nullptr) return Status::out_of_memory;
    ref.fill(used);
    for (index_t slot = 0; slot < used; ++slot)
      if (dead[static_cast<std::size_t>(slot / 64)] >> (slot % 64) & 1u) ref.kill(slot);
    h.pages.append_reserved(ref), h.live += ref.live;
    return Status::ok;
  }

  /// Room for so many pages of rows that other heads hold too, behind those of a head; whoever asks for a whole group of heads may then fill it.
  Status reserve_shared(index_t head, index_t pages) {
    Head& h = heads_[head];
    const index_t all = held() + max_row_group * pages;
    Status s = h.pages.reserve(h.pages.size() + pages);
    if (s == Status::ok) s = spare_.reserve(spare_.size() + all);
    return s == Status::ok ? parting_.reserve(parting_.size() + all) : s;
  }
  /// Behind `reserve_shared`: one of them, full.
  void add_shared(index_t head, CudaPage* page) {
    Ref ref;
    ref.page = page, ref.fill(page_slots_);
    heads_[head].pages.append_reserved(ref), heads_[head].live += ref.live;
  }

  /// Stretches of live slots of a head in a page: use(page, place of the first, how many).
  template <class Use>
  void each_run(index_t head, Use&& use) const {
    each_run(heads_[head].pages, use);
  }
  /// How many of them there are now and by the plan, whichever is more.
  index_t runs() const {
    index_t now = 0, next = 0;
    for (const Head& h : heads_) {
      each_run(h.pages, [&](CudaPage*, index_t, index_t) { ++now; });
      each_run(h.next, [&](CudaPage*, index_t, index_t) { ++next; });
    }
    return std::max(now, next);
  }

  /// Pages beyond `most` that wait for slots to come go back; only while no kernel uses them.
  void trim(index_t most) {
    for (; spare_.size() > most; spare_.shrink(spare_.size() - 1)) CudaPage::drop(spare_.back(), *memory_);
    for (; !parting_.empty(); parting_.shrink(parting_.size() - 1)) CudaPage::drop(parting_.back(), *memory_);
  }
  index_t spare() const { return spare_.size(); }
  /// Whether pages that nobody needs wait for the stream alone.
  bool parts() const { return !parting_.empty(); }
  /// Without rows that other heads hold too.
  std::size_t page_bytes() const {
    std::size_t n = static_cast<std::size_t>(spare_.size() + made_.size()) * bytes_;
    for (const Head& h : heads_)
      for (const Ref& ref : h.pages) n += ref.page->bytes;
    return n;
  }
  /// Tombstones of a head, without those in rows that other heads hold too.
  index_t dead(index_t head) const {
    const auto& pages = heads_[head].pages;
    index_t n = 0;
    for (index_t p = 0; p < pages.size(); ++p)
      if (pages[p].page->under == nullptr) n += (p + 1 < pages.size() ? page_slots_ : index_t{pages[p].used}) - pages[p].live;
    return n;
  }
  std::size_t side_bytes() const {
    std::size_t n = static_cast<std::size_t>(lists_.size());
    for (const Head& h : heads_) n += h.pages.bytes() + h.next.bytes();
    return n;
  }
  /// Slots of a head that were coded again.
  index_t coded_again(index_t head) const { return heads_[head].again; }

  /// Makes empty ones of the same form the same: pages are shared until either side writes them.
  Status fork(CudaGroups& out) const {
    for (index_t i = 0; i < heads_.size(); ++i) {
      const Head& h = heads_[i];
      if (const Status s = out.heads_[i].pages.copy_from(h.pages); s != Status::ok) return s;
      for (const Ref& ref : h.pages) ref.page->owners.fetch_add(1, std::memory_order_relaxed);
      out.heads_[i].live = h.live, out.heads_[i].again = h.again;
    }
    const Status s = out.spare_.reserve(out.held());
    return s == Status::ok ? out.parting_.reserve(out.held()) : s;
  }
  /// Empty again; only while no kernel uses it.
  void clear() {
    abandon();
    for (Head& h : heads_) {
      for (const Ref& ref : h.pages) CudaPage::drop(ref.page, *memory_);
      h.pages.shrink(0), h.live = h.again = 0;
    }
    trim(0);
  }

 private:
  struct Head {
    Buffer<Ref> pages{heap_memory()}, next{heap_memory()};  ///< that there are, and by the plan
    index_t live = 0, next_live = 0;
    index_t again = 0, next_again = 0;  ///< slots coded again: so far, and by the plan
  };

  index_t held() const {
    index_t n = 0;
    for (const Head& h : heads_) n += h.pages.size();
    return n;
  }
  void forget() {
    made_.shrink(0), gone_.shrink(0), coded_.shrink(0), joins_.shrink(0), chain_.shrink(0);
    for (Head& h : heads_) h.next.shrink(0), h.next_again = 0;
    planned_ = false;
  }
  /// Kernels of this stream may still read it.
  void give_up(CudaPage* page) {
    if (page->shared()) CudaPage::drop(page, *memory_);
    else (page->under != nullptr ? parting_ : spare_).append_reserved(page);
  }
  Status take_page(CudaPage*& page) {
    Status s = made_.reserve(made_.size() + 1);
    // Pages that are given up find a place, whenever that is.
    if (s == Status::ok && spare_.empty()) s = spare_.reserve(held() + made_.size() + 1);
    if (s != Status::ok) return s;
    if (spare_.empty()) page = CudaPage::make(*memory_, bytes_);
    else page = spare_.back(), spare_.shrink(spare_.size() - 1);
    if (page == nullptr) return Status::out_of_memory;
    made_.append_reserved(page);
    return Status::ok;
  }

  template <class Gone>
  static void drop_empty(Buffer<Ref>& pages, Gone&& gone) {
    index_t to = 0;
    for (index_t p = 0; p < pages.size(); ++p) {
      if (pages[p].used > 0 && pages[p].live == 0) gone(pages[p].page);
      else pages[to++] = pages[p];
    }
    pages.shrink(to);
  }

  Status plan_head(const Context<Cuda>& ctx, index_t head, const Kept& kept, index_t base, index_t due);
  Status reserve_rows(const Context<Cuda>& ctx, Buffer<Ref>& pages, index_t due);
  Status bury(Head& h, const Kept& kept, index_t base);
  Status place_rows(Buffer<Ref>& pages, index_t head, index_t due);
  Status plan_joins(Head& h, index_t head);
  Status reserve_lists(const Context<Cuda>& ctx);
  Status send(const Context<Cuda>& ctx, prim::GroupWork& work);

  template <class Use>
  static void each_run(const Buffer<Ref>& pages, Use&& use) {
    for (const Ref& ref : pages)
      for (index_t s = ref.next_alive(0); s < ref.used;) {
        const index_t end = ref.next_dead(s);
        use(ref.page, s, end - s);
        s = ref.next_alive(end);
      }
  }

  /// Scratch of the joins, of a group for every chain of them.
  std::size_t rows_bytes() const { return static_cast<std::size_t>((chain_.size() - 1) * group_ * dim_) * sizeof(float); }

  index_t group_, page_slots_, dim_;
  std::size_t bytes_;
  MemoryResource<Cuda>* memory_;
  ObjectArray<Head> heads_;
  Buffer<CudaPage*> spare_, parting_, made_, gone_;  ///< that wait for slots to come, or for the stream; of the plan: taken for it, given up by it
  Buffer<prim::CodedRows> coded_;
  Buffer<prim::JoinedPages> joins_;
  Buffer<index_t> chain_;
  cuda::Staging staging_;
  cuda::DeviceArray<std::byte> lists_;  ///< the three, as kernels read them, and behind them scratch of the joins
  bool planned_ = false;
};

}  // namespace kvcondense::cache

#include <kvcondense/cache/cuda_groups_plan.cuh>
