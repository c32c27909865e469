#pragma once

#include <algorithm>
#include <bit>
#include <concepts>
#include <cstdint>
#include <cstring>
#include <span>
#include <type_traits>
#include <utility>

#include <kvcondense/backend/cuda/memory.cuh>
#include <kvcondense/backend/cuda/pair_rows.cuh>
#include <kvcondense/backend/cuda/shared_rows.cuh>
#include <kvcondense/backend/cuda/steering.cuh>
#include <kvcondense/cache/cuda_pages.cuh>
#include <kvcondense/cache/own_part.hpp>
#include <kvcondense/cache/page.hpp>
#include <kvcondense/core/buffer.hpp>
#include <kvcondense/core/object_array.hpp>
#include <kvcondense/core/row_groups.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/merge/pipeline.hpp>
#include <kvcondense/prim/symmetric_eigen.hpp>

// How heads of several layers, or of one, come to store rows together: what column_sum.hpp and column_pair.hpp are on the CPU.

namespace kvcondense::cache {

/// The layers of a group at the end of a step of the last of them, which the stream has passed.
template <class Layer>
struct SharingGroup {
  Layer* at[max_row_group] = {};
  index_t pending[max_row_group] = {};  ///< newest slots that no step has seen
  index_t layers = 0;
  index_t heads = 0, each = 1;  ///< of a layer; of these, neighbours that are in a group together, at most

  /// Of the group whose first head is `head`.
  index_t heads_from(index_t head) const { return std::min(each, heads - head); }
};

/// Shares what all heads of a group hold: whole pages of the oldest of their newest slots. Where one has other tokens there rows stay exact: no head can make
/// the row of all. What memory is refused to stays as it is and is tried again.
class CudaSharing {
 public:
  CudaSharing() = default;
  explicit CudaSharing(MemoryResource<Cuda>& memory) : memory_(&memory), lists_(memory), sums_(memory) {}

  /// Whether there may be a page to share, by what the host knows without waiting; `recent` newest slots stay.
  template <class Layer, class C>
  static bool due(const SharingGroup<Layer>& g, C Layer::*column, index_t recent) {
    for (index_t h = 0; h < g.heads; ++h) {
      const auto page = (g.at[0]->*column).plan().slots_of(1);
      bool all = (g.at[0]->*column).plan().paired();
      for (index_t l = 0; l < g.layers && all; ++l) {
        const auto& c = g.at[l]->*column;
        all = c.due_together(h, g.pending[l] + recent) >= (c.found().waits(h) ? std::max(page, c.plan().flush.first) : page);
      }
      if (all) return true;
    }
    return false;
  }

  /// Before columns share rows: which tokens the slots hold that may be shared. Waits for the stream where slots have left, once.
  template <class Layer>
  Status tell(Context<Cuda>& ctx, const SharingGroup<Layer>& g) {
    whole_ = true;
    ids_.shrink(0), places_.shrink(0);
    for (index_t l = 0; l < g.layers; ++l)
      for (index_t h = 0; h < g.heads; ++h) whole_ = whole_ && g.at[l]->slots(h) == g.at[l]->counters.seen;
    if (whole_) return Status::ok;
    Buffer<Place> places(heap_memory());
    if (places.resize(g.layers * g.heads) != Status::ok) return Status::ok;
    index_t n = 0;
    for (index_t l = 0; l < g.layers; ++l)
      for (index_t h = 0; h < g.heads; ++h) {
        const index_t slots = g.at[l]->slots(h) - g.pending[l];
        index_t first = slots;
        const auto meet = [&](const auto& c) {
          if (c.plan().paired()) first = std::min(first, c.settled_together(h));
        };
        meet(g.at[l]->keys), meet(g.at[l]->values);
        places[l * g.heads + h] = {first, slots - first, n};
        n += slots - first;
      }
    if (ids_.resize(n) != Status::ok) return Status::ok;  // nothing is known of them
    Status s = Status::ok;
    for (index_t i = 0; i < places.size() && s == Status::ok; ++i) {
      const Place& p = places[i];
      const std::int32_t* from = std::as_const(g.at[i / g.heads]->ids).view().row(i % g.heads) + p.first;
      if (p.count > 0) s = cuda::settled(cudaMemcpyAsync(ids_.data() + p.at, from, static_cast<std::size_t>(p.count) * sizeof(std::int32_t), cudaMemcpyDeviceToHost, ctx.stream()));
    }
    const Status done = ctx.wait();
    places_.swap(places);
    return s != Status::ok ? s : done;
  }
  /// Behind `tell`: rows of coordinates, in keys or in values. Waits for the stream where maps are found.
  template <class Layer, class C>
  Status sum(Context<Cuda>& ctx, const SharingGroup<Layer>& g, C Layer::*column, index_t* repaired) {
    using Codec = std::remove_cvref_t<decltype((g.at[0]->*column).codec())>;
    jobs_.shrink(0);
    if constexpr (prim::may_share_rows<Codec>) {
      const prim::SharingLayers<Codec> layers = layers_of(g, column);
      for (index_t h = 0; h < g.heads; h += g.each) {
        index_t pages = 0;
        if (const Status s = count_pages(ctx, g, column, h, layers, pages); s != Status::ok) return s;
        index_t taken = 0;
        while (taken < pages && take(ctx, g, column, h, taken)) ++taken;
        each_member(g, h, [&](index_t l, index_t i) { (g.at[l]->*column).leave_newest(i, taken); });
      }
      if (jobs_.empty()) return Status::ok;
      if (const Status s = send(ctx, jobs_); s != Status::ok) return s;
      Status s = prim::SharedRows::sum(ctx, layers, reinterpret_cast<const prim::SharedSlots*>(lists_.data()), jobs_.size(), repaired);
      for (index_t l = 0; l < g.layers && s == Status::ok; ++l) s = (g.at[l]->*column).tell_shared(ctx);
      return s;
    }
    return Status::ok;
  }
  /// Behind `tell`: directions of two layers, in keys or in values, and rows that stay as they are. Waits for the stream, once for every head.
  template <class Layer, class C>
  Status pair(Context<Cuda>& ctx, const SharingGroup<Layer>& g, C Layer::*column, const merge::Across& across) {
    using Codec = std::remove_cvref_t<decltype((g.at[0]->*column).codec())>;
    if constexpr (std::same_as<Codec, prim::PairedRows>) {
      const prim::SharingLayers<Codec> layers = layers_of(g, column);
      const index_t page = layers.at[0].newest.page_slots;
      pairs_.shrink(0);
      index_t taken = 0;  // pages, of which some may stay as they are
      for (index_t h = 0; h < g.heads; ++h) {
        const index_t due = count_due(g, column, h, across.recent);
        if (const index_t pages = due < page ? 0 : count_same(g, column, h, due) / page; pages > 0)
          if (const Status s = pair_head(ctx, g, column, layers, across, h, pages, taken); s != Status::ok) return s;
      }
      if (taken == 0) return Status::ok;
      Status s = pairs_.empty() ? Status::ok : send(ctx, pairs_);
      if (s == Status::ok) s = prim::PairRows::run(ctx, layers, across.rule.weight, reinterpret_cast<const prim::PairedPage*>(lists_.data()), pairs_.size());
      for (index_t l = 0; l < g.layers && s == Status::ok; ++l) s = (g.at[l]->*column).tell_shared(ctx);
      return s;
    }
    return Status::ok;
  }
  std::size_t bytes() const { return static_cast<std::size_t>(lists_.size()); }

 private:
  template <class Layer, class C>
  static auto layers_of(const SharingGroup<Layer>& g, C Layer::*column) {
    prim::SharingLayers<std::remove_cvref_t<decltype((g.at[0]->*column).codec())>> layers{(g.at[0]->*column).plan().exact, {}, static_cast<int>(g.layers)};
    for (index_t l = 0; l < g.layers; ++l) layers.at[l] = {(g.at[l]->*column).device().newest, (g.at[l]->*column).codec()};
    return layers;
  }
  /// Newest slots of a head that may be shared now, in the layer that has fewest; `recent` stay.
  template <class Layer, class C>
  static index_t count_due(const SharingGroup<Layer>& g, C Layer::*column, index_t head, index_t recent) {
    index_t due = (g.at[0]->*column).due_together(head, g.pending[0] + recent);
    for (index_t l = 1; l < g.layers; ++l) due = std::min(due, (g.at[l]->*column).due_together(head, g.pending[l] + recent));
    return due;
  }
  /// So many pages of a head, of whose slots the device says which stay as they are.
  template <class Layer, class C>
  Status pair_head(Context<Cuda>& ctx, const SharingGroup<Layer>& g, C Layer::*column, const prim::SharingLayers<prim::PairedRows>& layers, const merge::Across& across,
                   index_t head, index_t pages, index_t& taken) {
    const index_t page = layers.at[0].newest.page_slots, rows = pages * page;
    if (stays_.resize(rows) != Status::ok || sums_.resize(2 + rows + prim::SharedRows::flag_floats(rows)) != Status::ok) return let_go(), Status::ok;
    float* const distance = sums_.data() + 2;  // behind a count
    auto* const stays = reinterpret_cast<std::uint8_t*>(distance + rows);
    Status s = prim::PairRows::measure(ctx, layers, across.rule, head, rows, distance, stays, reinterpret_cast<index_t*>(sums_.data()));
    if (s == Status::ok) s = cuda::settled(cudaMemcpyAsync(stays_.data(), stays, static_cast<std::size_t>(rows), cudaMemcpyDeviceToHost, ctx.stream()));
    const Status done = ctx.wait();
    if (s != Status::ok || done != Status::ok) return s != Status::ok ? s : done;
    index_t p = 0;
    for (bool room = true; p < pages && s == Status::ok; p += room) {
      s = take_pair(ctx, g, column, head, p, room);
      if (!room) break;
    }
    for (index_t l = 0; l < 2; ++l) (g.at[l]->*column).leave_newest(head, p);
    taken += p;
    let_go();
    return s;
  }
  /// The `p`-th page of a head; no `room`: memory is refused. One that would not become smaller stays either layer's own.
  template <class Layer, class C>
  Status take_pair(Context<Cuda>& ctx, const SharingGroup<Layer>& g, C Layer::*column, index_t head, index_t p, bool& room) {
    const auto& plan = (g.at[0]->*column).plan();
    const index_t page = plan.slots_of(1);
    const std::uint8_t* stays = stays_.data() + p * page;
    const std::size_t rows = plan.bytes_of(1), own = OwnPart::bytes(plan.exact.dtype, plan.dim, page, std::count(stays, stays + page, std::uint8_t{1}));
    Status s = reserve_job(ctx, pairs_);
    for (index_t l = 0; l < 2 && s == Status::ok; ++l) s = (g.at[l]->*column).reserve_shared(head, 1);
    room = s == Status::ok;
    if (!room) return Status::ok;
    if (2 * own + sizeof(Page) >= rows) {
      for (index_t l = 0; l < 2; ++l) (g.at[l]->*column).take_shared(head, p, nullptr);
      return Status::ok;
    }
    CudaPage* pages[3] = {};  // of directions, and each layer's
    for (int i = 0; i < 3 && room; ++i) room = (pages[i] = CudaPage::make(*memory_, i == 0 ? rows : sizeof(prim::PairedHead) + own)) != nullptr;
    if (!room) {
      for (CudaPage* made : pages)
        if (made != nullptr) CudaPage::drop(made, *memory_);
      return Status::ok;
    }
    prim::PairedPage job{pages[0]->rows, {pages[1]->rows, pages[2]->rows}, {}, head, p * page};
    for (index_t i = 0; i < page; ++i) job.stays[i / 32] |= static_cast<std::uint32_t>(stays[i]) << (i % 32);
    for (index_t l = 0; l < 2; ++l) {
      pages[1 + l]->under = l == 0 ? pages[0] : CudaPage::retain(pages[0]);
      for (index_t i = 0; i < page; ++i) pages[1 + l]->stays[i / 64] |= static_cast<std::uint64_t>(stays[i]) << (i % 64);
      (g.at[l]->*column).take_shared(head, p, pages[1 + l]);
      if (s == Status::ok) s = cuda::settled(cudaMemsetAsync(job.own[l], 0, pages[1 + l]->bytes, ctx.stream()));
    }
    pairs_.append_reserved(job);
    return s;
  }

  /// use(layer, head) of all heads of a group whose first in every layer is `head`.
  template <class Layer, class Use>
  static void each_member(const SharingGroup<Layer>& g, index_t head, Use&& use) {
    for (index_t l = 0; l < g.layers; ++l)
      for (index_t h = head; h < head + g.heads_from(head); ++h) use(l, h);
  }

  /// How many pages a group may share now, with maps that are known or are found here.
  template <class Layer, class C, class Codec>
  Status count_pages(Context<Cuda>& ctx, const SharingGroup<Layer>& g, C Layer::*column, index_t head, const prim::SharingLayers<Codec>& layers, index_t& pages) {
    const auto& first = g.at[0]->*column;
    const index_t page = first.plan().slots_of(1);
    index_t due = first.due_together(head, g.pending[0]), found = 0, members = 0;
    bool alike = first.plan().paired();
    each_member(g, head, [&](index_t l, index_t h) {
      const auto& c = g.at[l]->*column;
      due = std::min(due, c.due_together(h, g.pending[l]));
      found += !c.found().waits(h), ++members;
      alike = alike && c.found().code_fingerprint(h) == first.found().code_fingerprint(head);
    });
    if (!alike || due < page || (found != 0 && found != members)) return Status::ok;
    const index_t same = count_same(g, column, head, due);
    if (same < page) return Status::ok;
    if (found == 0) {
      bool done = false;
      if (same < first.plan().flush.first) return Status::ok;
      if (const Status s = find(ctx, g, column, head, layers, same, done); s != Status::ok || !done) return s;
    }
    pages = same / page;
    return Status::ok;
  }

  /// Of the `due` oldest newest slots of all heads of a group, how many at the front hold the same tokens.
  template <class Layer, class C>
  index_t count_same(const SharingGroup<Layer>& g, C Layer::*column, index_t head, index_t due) const {
    if (whole_) return due;
    if (places_.empty()) return 0;
    const auto tokens = [&](index_t l, index_t h) {
      const Place& p = places_[l * g.heads + h];
      return ids_.data() + p.at + (g.at[l]->*column).settled_together(h) - p.first;
    };
    const std::int32_t* const first = tokens(0, head);
    index_t same = due;
    each_member(g, head, [&](index_t l, index_t h) { same = std::mismatch(first, first + same, tokens(l, h)).first - first; });
    return same;
  }

  /// The principal directions of long rows, those of all heads side by side, of which each head has the part that meets its own numbers: from the `rows` oldest
  /// newest slots. Not `done` where memory is refused.
  template <class Layer, class C, class Codec>
  Status find(Context<Cuda>& ctx, const SharingGroup<Layer>& g, C Layer::*column, index_t head, const prim::SharingLayers<Codec>& layers, index_t rows, bool& done) {
    auto& first = (g.at[0]->*column).found();
    const index_t dim = layers.dim(), each = g.heads_from(head), n = g.layers * each * dim, rank = first.state_floats(head) / dim;
    done = false;
    if (products_.resize(n * n + 2 * n + rank * dim) != Status::ok || sums_.resize(n * n + prim::SharedRows::flag_floats(rows)) != Status::ok) return let_go(), Status::ok;
    const prim::SharedSlots slots{nullptr, static_cast<std::int32_t>(head), static_cast<std::int32_t>(each), 0};
    Status s = prim::SharedRows::products(ctx, layers, slots, rows, sums_.data());
    if (s == Status::ok) s = sums_.download(ctx, {products_.data(), static_cast<std::size_t>(n * n)});
    const Status waited = ctx.wait();
    if (s != Status::ok || waited != Status::ok) return s != Status::ok ? s : waited;
    float* const state = products_.data() + n * n + 2 * n;
    prim::symmetric_eigen(products_.data(), n, products_.data() + n * n, products_.data() + n * n + n);
    each_member(g, head, [&](index_t l, index_t h) {
      const index_t member = l * each + h - head;
      for (index_t j = 0; j < rank; ++j) std::copy_n(products_.data() + j * n + member * dim, dim, state + j * dim);
      if (s == Status::ok) s = (g.at[l]->*column).found().settle(ctx, h, state);
    });
    let_go();
    return done = s == Status::ok, s;
  }
  void let_go() {
    products_ = Buffer<float>(heap_memory());
    static_cast<void>(sums_.resize(0));  // to less is never refused
  }

  /// The `p`-th page of those that a group shares now; false where memory is refused.
  template <class Layer, class C>
  bool take(Context<Cuda>& ctx, const SharingGroup<Layer>& g, C Layer::*column, index_t head, index_t p) {
    auto& first = g.at[0]->*column;
    const index_t each = g.heads_from(head), count = g.layers * each, page_slots = first.plan().slots_of(1);
    Status s = reserve_job(ctx, jobs_);
    each_member(g, head, [&](index_t l, index_t h) {
      if (s == Status::ok) s = (g.at[l]->*column).reserve_shared(h, 1);
    });
    CudaPage *under = s == Status::ok ? CudaPage::make(*memory_, first.bytes_of(1, head)) : nullptr, *mine[max_row_group] = {};
    bool room = under != nullptr;
    for (index_t i = 0; i < count && room; ++i) room = (mine[i] = CudaPage::make(*memory_, 0)) != nullptr;
    if (!room) {
      for (CudaPage* page : mine)
        if (page != nullptr) CudaPage::drop(page, *memory_);
      if (under != nullptr) CudaPage::drop(under, *memory_);
      return false;
    }
    index_t i = 0;
    each_member(g, head, [&](index_t l, index_t h) {
      mine[i]->under = i == 0 ? under : CudaPage::retain(under);
      (g.at[l]->*column).take_shared(h, p, mine[i++]);
    });
    jobs_.append_reserved({under->rows, static_cast<std::int32_t>(head), static_cast<std::int32_t>(each), p * page_slots});
    return true;
  }
  /// Room for one more job, on the device too, so that `send` needs no memory.
  template <class Job>
  Status reserve_job(const Context<Cuda>& ctx, Buffer<Job>& jobs) {
    Status s = jobs.reserve(jobs.size() + 1);
    const auto bytes = static_cast<std::size_t>(jobs.size() + 1) * sizeof(Job);
    if (s == Status::ok) s = staging_.reserve(std::bit_ceil(bytes));  // page by page: page-locked memory takes long to come
    const auto room = static_cast<index_t>(bytes);
    if (s != Status::ok || room <= lists_.size()) return s;
    if (lists_.size() > 0) s = ctx.wait();  // somebody may still read the smaller ones
    return s == Status::ok ? lists_.resize(2 * room) : s;
  }
  template <class Job>
  Status send(const Context<Cuda>& ctx, const Buffer<Job>& jobs) {
    std::span<std::byte> bytes;
    if (const Status s = staging_.next(bytes); s != Status::ok) return s;
    std::ranges::copy(std::as_bytes(jobs.span()), bytes.begin());
    return staging_.send(ctx, lists_.data(), jobs.span().size_bytes());
  }

  MemoryResource<Cuda>* memory_ = nullptr;
  Buffer<prim::SharedSlots> jobs_{heap_memory()};
  Buffer<prim::PairedPage> pairs_{heap_memory()};
  /// Where the tokens of slots [first, first + count) of a head stand.
  struct Place {
    index_t first = 0, count = 0, at = 0;
  };
  bool whole_ = true;  ///< no token has left
  Buffer<std::int32_t> ids_{heap_memory()};
  Buffer<Place> places_{heap_memory()};  ///< of all heads of a layer, layer after layer; none: it is not known
  Buffer<std::uint8_t> stays_{heap_memory()};
  Buffer<float> products_{heap_memory()};
  cuda::Staging staging_;
  cuda::DeviceArray<std::byte> lists_;  ///< jobs, as kernels read them
  cuda::DeviceArray<float> sums_;
};

}  // namespace kvcondense::cache
