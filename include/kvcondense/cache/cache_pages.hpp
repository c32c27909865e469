#pragma once

#include <kvcondense/cache/cache.hpp>
#include <kvcondense/cache/slot_union.hpp>

namespace kvcondense {

/// Calls use(page), which returns a Status, once for every page that holds a slot of these runs.
template <Backend B, class R>
template <class Runs, class Use>
Status Cache<B, R>::name_pages(index_t layer, index_t rows, Runs&& runs, Use&& use) const {
  const Layer& l = layers_[layer];
  const index_t per_head = rows / shape_.kv_heads;
  Status status = Status::ok;
  const auto of = [&](const auto& column, index_t h) {
    cache::Cursor cursor{};
    index_t at = 0;
    const std::byte* named = nullptr;
    cache::for_union(h * per_head, (h + 1) * per_head, column.slots(), runs, [&](index_t first, index_t last) {
      column.skip(cursor, first - at);
      at = last;
      column.each_page(cursor, last - first, [&](const PageUse& page) {
        if (page.data == named || status != Status::ok) return;
        named = page.data;
        status = use(page);
      });
    });
  };
  for (index_t h = 0; h < shape_.kv_heads && status == Status::ok; ++h) of(l.heads[h].keys, h), of(l.heads[h].values, h);
  return status;
}

template <Backend B, class R>
Status Cache<B, R>::expect(index_t layer, const ReadRuns& runs, PageProvider<B>& pages) const {
  if (layer < 0 || layer >= shape_.layers) return Status::out_of_range;
  for (index_t h = 0; h < shape_.q_heads; ++h) {
    index_t end = 0;
    for (index_t i = 0; i < runs.count[h]; ++i) {
      const SlotRun& run = runs.row(h)[i];
      if (run.first < end || run.last <= run.first) return Status::invalid_argument;
      end = run.last;
    }
  }
  const auto row = [&](index_t h) { return std::span<const SlotRun>(runs.row(h), static_cast<std::size_t>(runs.count[h])); };
  return name_pages(layer, shape_.q_heads, row, [&](const PageUse& page) { return pages.expect(page), Status::ok; });
}

}  // namespace kvcondense
