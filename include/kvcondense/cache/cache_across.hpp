#pragma once

#include <kvcondense/cache/cache.hpp>
#include <kvcondense/cache/column_pair.hpp>

namespace kvcondense {

template <Backend B, class R>
std::size_t Cache<B, R>::across_bytes(index_t slots, index_t workers) const {
  if (!fold_.across.active) return 0;
  using Pair = cache::ColumnPair<typename Layer::Head, cache::Column<KeyCodec>>;
  return Scratch::align + static_cast<std::size_t>(workers) * Pair::bytes(slots, plan_.across_floats);
}

/// Slots of the largest head of a layer and of the one that shares rows with it.
template <Backend B, class R>
index_t Cache<B, R>::pair_slots(index_t layer) const {
  index_t most = 0;
  for (const index_t l : {layer, shares_with(layer)})
    for (index_t h = 0; l >= 0 && h < shape_.kv_heads; ++h) most = std::max(most, layers_[l].heads[h].slots());
  return most;
}

/// At the end of a step of a layer, whose tokens are then as good as stepped. Scratch was checked before. Cannot fail.
template <Backend B, class R>
void Cache<B, R>::share_rows(Context<B>& ctx, index_t layer) {
  const index_t other = shares_with(layer);
  if (other < 0) return;
  Layer &a = layers_[std::min(layer, other)], &b = layers_[std::max(layer, other)];
  const index_t pending = layers_[other].counters.pending, of_a = layer < other ? 0 : pending, of_b = layer < other ? pending : 0;
  const index_t most = pair_slots(layer);
  Scratch all(ctx.workspace());
  const auto one = static_cast<index_t>(cache::ColumnPair<typename Layer::Head, cache::Column<KeyCodec>>::bytes(most, plan_.across_floats));
  std::byte* base = all.take<std::byte>(one * ctx.workers());
  ctx.parallel(shape_.kv_heads, [&](index_t h, index_t worker) {
    const auto run = [&](auto& x, auto& y) {
      Scratch s({base + worker * one, static_cast<std::size_t>(one)});
      float* rows = s.take<float>(plan_.across_floats);
      float* distance = s.take<float>(most);
      auto* kept = s.take<std::uint8_t>(most);
      using Pair = cache::ColumnPair<typename Layer::Head, std::remove_reference_t<decltype(x)>>;
      Pair{{a.heads[h], x, of_a}, {b.heads[h], y, of_b}, &fold_.across, rows, distance, kept}.run();
    };
    run(a.heads[h].keys, b.heads[h].keys);
    run(a.heads[h].values, b.heads[h].values);
  });
  refresh_index(ctx, other, pending);
}

}  // namespace kvcondense
