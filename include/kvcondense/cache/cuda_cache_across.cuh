#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>
#include <limits>

#include <kvcondense/cache/cuda_cache.cuh>
#include <kvcondense/cache/page_list.hpp>

// Rows that heads of several layers, or of one, store together.

namespace kvcondense {

template <class R>
Status Cache<Cuda, R>::make_sharing() {
  if constexpr (may_share || may_pair) {
    groups_ = fold_.across.active ? fold_.across.groups(shape()) : row_groups(recipe_.lowrank, shape());
    if (groups_.most() == 1) return Status::ok;
    if (fold_.across.active && !std::same_as<decltype(R::lowrank), NoLowRank>) return Status::incompatible;
    if (fold_.across.active && !pairs_columns) return Status::not_supported;  // directions that become codes
    // Whole pages of newest slots become pages of codes.
    const auto fits = [](const auto& column) { return !column.mapped() || column.slots_of(1) == column.slots_of(2); };
    if (!fits(plan_.keys) || !fits(plan_.values)) return Status::not_supported;
    // Heads of a layer are alike in whether they share rows.
    const index_t last = groups_.heads_of(shape().kv_heads, shape().kv_heads - 1).count;
    for (index_t layer = 0; layer < shape().layers && last == 1 && groups_.heads > 1; ++layer)
      if (groups_.layers_of(shape().layers, layer).count == 1) return Status::not_supported;
    sharing_ = cache::CudaSharing(*memory_);
  }
  return Status::ok;
}

/// Slots of a head in front of the first whose row may become a shared one, of columns that an index knows.
template <class R>
index_t Cache<Cuda, R>::indexed_rows(const Layer& l, index_t head) {
  const auto settled = [&](const auto& c) { return c.plan().paired() ? c.settled_together(head) : std::numeric_limits<index_t>::max(); };
  if constexpr (decltype(retrieval_)::mixes) return std::min(settled(l.keys), settled(l.values));
  else return settled(l.keys);
}

/// At the end of a step of a layer; the last one of its group shares what all of them hold, so that directions are found from the whole of a prompt. What
/// memory is refused to waits for the next step. Where a page may be due and tokens have left, or pairs are measured, or an index has to follow, the stream is
/// waited for.
template <class R>
Status Cache<Cuda, R>::share_rows(Context<Cuda>& ctx, index_t layer) {
  if constexpr (may_share || may_pair) {
    if (groups_.most() == 1) return Status::ok;
    const Span group = groups_.layers_of(shape().layers, layer);
    cache::SharingGroup<Layer> g{.layers = group.count, .heads = shape().kv_heads, .each = groups_.heads};
    for (index_t i = 0; i < group.count; ++i) {
      Layer& l = layers_[group.first + i];
      if (l.torn || l.counters.seen - l.counters.pending != layers_[layer].counters.seen) return Status::ok;
      g.at[i] = &l, g.pending[i] = l.counters.pending;
    }
    const index_t recent = fold_.across.recent;
    if (!sharing_.due(g, &Layer::keys, recent) && !sharing_.due(g, &Layer::values, recent)) return Status::ok;
    for (index_t i = 0; i < group.count; ++i) {
      if (!g.at[i]->counted()) continue;
      if (const Status s = g.at[i]->fence.wait(); s != Status::ok) return s;
      g.at[i]->learn();
    }
    if (const Status s = sharing_.tell(ctx, g); s != Status::ok) return s;
    [[maybe_unused]] Buffer<index_t> settled(heap_memory());  // slots of a head whose rows an index knows as they will be
    if constexpr (retrieves) {
      if (settled.resize(group.count * g.heads) != Status::ok) return Status::ok;
      for (index_t i = 0; i < settled.size(); ++i) settled[i] = indexed_rows(*g.at[i / g.heads], i % g.heads);
    }
    const auto share = [&](auto column) {
      if constexpr (may_pair) return sharing_.pair(ctx, g, column, fold_.across);
      else return sharing_.sum(ctx, g, column, counts_.data());
    };
    Status s = share(&Layer::keys);
    if (s == Status::ok) s = share(&Layer::values);
    if constexpr (retrieves)
      for (index_t i = 0; i < group.count && s == Status::ok; ++i) {
        const auto from = [&](index_t h) { return settled[i * g.heads + h]; };
        bool changed = false;
        for (index_t h = 0; h < g.heads; ++h) changed = changed || indexed_rows(*g.at[i], h) != from(h);
        if (changed) s = retrieval_.remake(ctx, group.first + i, *g.at[i], shape(), from);
      }
    for (index_t i = 0; i < group.count && s == Status::ok; ++i) s = g.at[i]->trim(ctx);
    for (index_t i = 0; i < group.count; ++i) g.at[i]->torn = s != Status::ok;
    return s;
  }
  return Status::ok;
}

/// Counts rows that heads store together: pages of them once.
template <class R>
template <class C>
void Cache<Cuda, R>::report_shared(C Layer::*column, Report& r) const {
  for (index_t layer = 0; layer < shape().layers; ++layer)
    for (index_t head = 0; head < shape().kv_heads && (layers_[layer].*column).plan().paired(); ++head) {
      const Span layers = groups_.layers_of(shape().layers, layer), heads = groups_.heads_of(shape().kv_heads, head);
      index_t from[max_row_group] = {};
      for (const auto& ref : (layers_[layer].*column).coded_pages(head)) {
        const cache::CudaPage* rows = ref.page->under;
        if (rows == nullptr) continue;
        r.across_rows += ref.live;
        for (index_t w = 0; w < cache::max_page_slots / 64; ++w) r.across_rows -= std::popcount(ref.page->stays[w] & ~ref.dead[w]);
        std::uint64_t dead[cache::max_page_slots / 64];
        std::copy(std::begin(ref.dead), std::end(ref.dead), dead);
        bool before = false;
        index_t n = 0;
        for (index_t l = layers.first; l < layers.first + layers.count; ++l)
          for (index_t h = heads.first; h < heads.first + heads.count; ++h, ++n) {
            if (l == layer && h == head) continue;
            const auto& pages = (layers_[l].*column).coded_pages(h);
            const index_t at = cache::page_above(pages, rows, from[n]);
            if (at < 0) continue;
            before = before || l < layer || (l == layer && h < head);
            for (index_t w = 0; w < cache::max_page_slots / 64; ++w) dead[w] &= pages[at].dead[w];
          }
        if (before) continue;
        std::size_t empty = 0;
        for (const std::uint64_t w : dead) empty += static_cast<std::size_t>(std::popcount(w));
        r.coded_bytes += rows->bytes;
        r.dead_bytes += empty * rows->bytes / static_cast<std::size_t>((layers_[layer].*column).plan().slots_of(1));
      }
    }
}

}  // namespace kvcondense
