#pragma once

#include <kvcondense/cache/cache.hpp>
#include <kvcondense/cache/column_sum.hpp>

namespace kvcondense {

template <Backend B, class R>
std::size_t Cache<B, R>::across_bytes(index_t slots, index_t workers) const {
  if (groups_.most() == 1) return 0;
  using Pair = cache::ColumnPair<typename Layer::Head, cache::Column<KeyCodec>>;
  return Scratch::align + static_cast<std::size_t>(workers) * Pair::bytes(slots, plan_.across_floats);
}

template <Backend B, class R>
index_t Cache<B, R>::across_floats(index_t slots, index_t dim) const {
  using Sum = cache::ColumnSum<typename Layer::Head, cache::Column<KeyCodec>>;
  return sums() ? Sum::floats(slots, dim, groups_.most()) : 3 * slots * dim;
}

/// Slots of the largest head of the layers that share rows with this one.
template <Backend B, class R>
index_t Cache<B, R>::group_slots(index_t layer) const {
  const Span group = layer_group(layer);
  index_t most = 0;
  for (index_t l = group.first; l < group.first + group.count; ++l)
    for (index_t h = 0; h < shape_.kv_heads; ++h) most = std::max(most, layers_[l].heads[h].slots());
  return most;
}

/// At the end of a step of a layer, whose tokens are then as good as stepped; the last one of its group shares what all of them hold, so
/// that directions are found from the whole of a prompt. Scratch was checked before. Cannot fail.
template <Backend B, class R>
void Cache<B, R>::share_rows(Context<B>& ctx, index_t layer) {
  if (groups_.most() == 1) return;
  const Span group = layer_group(layer);
  const auto pending = [&](index_t l) { return l == layer ? 0 : layers_[l].counters.pending; };
  for (index_t l = group.first; l < group.first + group.count; ++l)
    if (layers_[l].counters.seen - pending(l) != layers_[layer].counters.seen) return;
  const index_t most = group_slots(layer);
  Scratch all(ctx.workspace());
  const auto one = static_cast<index_t>(cache::ColumnPair<typename Layer::Head, cache::Column<KeyCodec>>::bytes(most, plan_.across_floats));
  std::byte* base = all.take<std::byte>(one * ctx.workers());
  ctx.parallel((shape_.kv_heads + groups_.heads - 1) / groups_.heads, [&](index_t task, index_t worker) {
    const Span heads = head_group(task * groups_.heads);
    if (group.count * heads.count == 1) return;
    const auto run = [&](auto column) {
      using Pair = cache::ColumnPair<typename Layer::Head, std::remove_reference_t<decltype(layers_[0].heads[0].*column)>>;
      typename Pair::Side side[max_row_group];
      index_t n = 0;
      for (index_t l = group.first; l < group.first + group.count; ++l)
        for (index_t h = heads.first; h < heads.first + heads.count; ++h) {
          auto& head = layers_[l].heads[h];
          side[n++] = {head, head.*column, pending(l)};
        }
      Scratch s({base + worker * one, static_cast<std::size_t>(one)});
      float* rows = s.take<float>(plan_.across_floats);
      if (!fold_.across.active) return cache::ColumnSum<typename Layer::Head, typename Pair::Column>{side, n, rows}.run();
      float* distance = s.take<float>(most);
      auto* kept = s.take<std::uint8_t>(most);
      Pair{side[0], side[1], &fold_.across, rows, distance, kept}.run();
    };
    run(&Layer::Head::keys);
    run(&Layer::Head::values);
  });
  for (index_t l = group.first; l < group.first + group.count; ++l)
    if (l != layer) refresh_index(ctx, l, pending(l));
}

}  // namespace kvcondense
