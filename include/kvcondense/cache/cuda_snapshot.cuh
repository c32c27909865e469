#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <span>
#include <utility>

#include <kvcondense/cache/cuda_cache.cuh>
#include <kvcondense/cache/cuda_snapshot_column.cuh>
#include <kvcondense/cache/query_window.hpp>
#include <kvcondense/cache/snapshot_file.hpp>
#include <kvcondense/core/bytes.hpp>

namespace kvcondense {

/// The same number as that of a cache on the CPU which stores slots alike.
template <class R>
std::uint64_t fingerprint(const Cache<Cuda, R>& c) {
  const auto& p = c.plan();
  cache::Fingerprint f = cache::begin_fingerprint(c.shape(), c.recipe());
  if constexpr (!std::same_as<decltype(R::lowrank), NoLowRank>) f.add_text(word_of(c.recipe().lowrank));
  const auto& first = c.layers()[0];
  const auto add = [&](const auto& l, index_t h) {
    f.add_codes(l.keys.fingerprint(h), l.values.fingerprint(h), l.keys.plan().flush, l.values.plan().flush);
  };
  const auto alike = [&](const auto& a, const auto& b, index_t h) { return a.fingerprint(h) == b.fingerprint(0) && a.plan().flush == b.plan().flush; };
  add(first, 0);
  f.add(p.sinks, p.lanes, p.query_rows);
  for (index_t i = 0; i < c.shape().layers; ++i)
    for (index_t h = 0; h < c.shape().kv_heads; ++h)
      if (const auto& l = c.layers()[i]; !alike(l.keys, first.keys, h) || !alike(l.values, first.values, h)) f.add(i, h), add(l, h);
  if (p.summary) f.add(1);
  const merge::Traits& t = c.folds();
  if (t.active && (p.bias >= 0 || p.value_scale >= 0 || p.state > 0)) f.add(p.bias, p.value_scale, p.state);
  if (t.active || t.across.active) f.add_text(word_of(c.recipe().merge));
  if (t.across.active) f.add(t.across.first(c.shape()));
  else if (c.groups().most() > 1) f.add(c.groups().layers, c.groups().heads);
  if (t.active && t.gate.active) f.add(t.gate.window);
  if constexpr (Cache<Cuda, R>::retrieves) c.retrieval().add_to(f, c.shape(), word_of(c.recipe().retrieve));
  if (c.recipe().position.raw_keys) f.add(prim::fingerprint(c.recipe().position.rope), c.recipe().position.rotated_input);
  return f.value();
}

namespace cache {

/// Of a page of codes that is laid out anew on its way to a file or from one.
template <class R>
std::size_t laid_bytes(const Cache<Cuda, R>& c) {
  std::size_t bytes = 0;
  for (const auto& l : c.layers()) bytes = std::max({bytes, CodeRoom::bytes_for(l.keys.plan()), CodeRoom::bytes_for(l.values.plan())});
  return bytes;
}

/// Tokens, and numbers per slot, of one head at a time.
template <class R>
void save_head(ByteWriter& w, Context<Cuda>& ctx, const Cache<Cuda, R>& c, index_t layer, index_t head, const HeadCounts& counts, SnapshotRoom& room) {
  const auto& l = c.layers()[layer];
  const index_t slots = l.slots(head), stepped = slots - l.counters.pending;
  Buffer<std::int32_t> ids(heap_memory());
  Buffer<float> numbers(heap_memory());
  Status s = ids.resize(slots);
  if (s == Status::ok) s = numbers.resize(c.plan().lanes > 0 ? slots : 0);
  if (s == Status::ok) s = c.tokens(ctx, layer, head, {ids.data(), static_cast<std::size_t>(slots)});
  if (s != Status::ok) return w.fail(s);
  save_slots(w, counts, slots, [&](index_t first, index_t n, std::int32_t* out) { std::copy_n(ids.data() + first, n, out); });
  for (index_t i = 0; i < l.lanes.size(); ++i) {
    const auto& lane = l.lanes[i];
    std::fill(numbers.begin() + stepped, numbers.end(), c.plan().fresh(i));
    if (stepped > 0)
      s = cuda::settled(cudaMemcpyAsync(numbers.data(), lane.view().row(head), static_cast<std::size_t>(stepped) * sizeof(float), cudaMemcpyDeviceToHost, ctx.stream()));
    const Status done = ctx.wait();
    if (s != Status::ok || done != Status::ok) return w.fail(s != Status::ok ? s : done);
    w.bytes(std::as_bytes(numbers.span()));
  }
  if (const index_t n = c.plan().state; n > 0) {
    s = numbers.resize(n);
    if (s == Status::ok)
      s = cuda::settled(cudaMemcpyAsync(numbers.data(), l.state.data() + head * n, static_cast<std::size_t>(n) * sizeof(float), cudaMemcpyDeviceToHost, ctx.stream()));
    const Status done = ctx.wait();
    if (s != Status::ok || done != Status::ok) return w.fail(s != Status::ok ? s : done);
    std::copy_n(l.found.data() + head * c.plan().found, c.plan().found, numbers.data());
    w.bytes(std::as_bytes(numbers.span().first(static_cast<std::size_t>(n))));
  }
  if (s = l.open.save(w, ctx, head, l.counters.pending); s != Status::ok) return w.fail(s);
  using Layer = typename Cache<Cuda, R>::Layer;
  const auto before = [&](auto column) { return cuda_before(c.groups(), c.layers(), layer, head, c.shape().kv_heads, column); };
  CudaColumnFile<typename Cache<Cuda, R>::KeyCodec>::save(w, ctx, l.keys, head, before(&Layer::keys), slots, room);
  CudaColumnFile<typename Cache<Cuda, R>::ValueCodec>::save(w, ctx, l.values, head, before(&Layer::values), slots, room);
  if (s = l.summary.save(w, ctx, head); s != Status::ok) w.fail(s);
}

/// Slots of tokens before the `end`th.
inline index_t slots_below(const SavedSlots& saved, index_t end) {
  index_t low = 0, high = saved.slots;
  while (low < high) {
    const index_t middle = low + (high - low) / 2;
    if (saved.token(middle) < end) low = middle + 1;
    else high = middle;
  }
  return low;
}

template <class R>
Status load_layer(ByteReader& r, Context<Cuda>& ctx, Cache<Cuda, R>& c, index_t layer, CodeRoom& codes) {
  auto& l = c.layers()[layer];
  const index_t heads = c.shape().kv_heads;
  if (const Status s = load_counters(r, l.counters, l.pending_positions); s != Status::ok) return s;
  QueryWindow window;
  Status s = QueryWindow::make(l.window.most(), c.shape(), heap_memory(), window);
  if (s == Status::ok) s = load_window(r, window, c.shape(), l.counters);
  if (s == Status::ok) s = l.window.upload(ctx, window, l.counters.seen - l.counters.pending);
  if constexpr (Cache<Cuda, R>::retrieves) {
    if (s == Status::ok) s = c.retrieval().load_held(r, ctx, layer, l);
    if (s == Status::ok) s = c.retrieval().load_found(r, ctx, layer, c.shape());
  }
  CudaColumnFile<typename Cache<Cuda, R>::KeyCodec> keys(l.keys, codes);
  CudaColumnFile<typename Cache<Cuda, R>::ValueCodec> values(l.values, codes);
  Buffer<index_t> slots(heap_memory());
  if (s == Status::ok) s = keys.make();
  if (s == Status::ok) s = values.make();
  if (s == Status::ok) s = slots.resize(heads);
  const auto stepped = [&](index_t h) { return std::max<index_t>(0, slots[h] - l.counters.pending); };  // none of heads to come
  using Layer = typename Cache<Cuda, R>::Layer;
  const auto before = [&](index_t h, auto column) { return cuda_before(c.groups(), c.layers(), layer, h, heads, column); };
  for (index_t h = 0; h < heads && s == Status::ok; ++h) {
    SavedSlots saved;
    s = saved.load(r, l.counters, c.plan().lanes);
    if (s != Status::ok) break;
    const auto put = [&](auto& store, std::span<const std::byte> from) {
      if (s == Status::ok) s = store.reserve(ctx, heads, saved.slots, stepped);
      static_assert(sizeof(std::int32_t) == sizeof(float));
      const auto n = static_cast<std::size_t>(saved.slots - l.counters.pending) * sizeof(float);
      if (s == Status::ok && n > 0) s = cuda::settled(cudaMemcpyAsync(store.view().row(h), from.data(), n, cudaMemcpyHostToDevice, ctx.stream()));
    };
    put(l.ids, saved.ids);
    for (index_t i = 0; i < l.lanes.size(); ++i) {
      put(l.lanes[i], saved.lane[i]);
      for (index_t j = 0; j < saved.slots && (i == c.plan().bias || i == c.plan().value_scale); ++j)  // attention reads it
        if (s == Status::ok && !std::isfinite(saved.number(i, j))) s = Status::corrupt_data;
    }
    slots[h] = saved.slots, l.done[h] = saved.counts;
    if constexpr (Cache<Cuda, R>::retrieves) c.retrieval().tell_prompt(layer, h, slots_below(saved, l.counters.prompt));
    std::span<const std::byte> state;
    const auto floats = static_cast<std::uint64_t>(c.plan().state);
    if (s == Status::ok && !r.take(floats, sizeof(float), state)) s = Status::corrupt_data;
    if (s == Status::ok && c.plan().found > 0)
      std::memcpy(l.found.data() + h * c.plan().found, state.data(), static_cast<std::size_t>(c.plan().found) * sizeof(float));
    if (s == Status::ok && floats > 0)
      s = cuda::settled(cudaMemcpyAsync(l.state.data() + h * c.plan().state, state.data(), state.size(), cudaMemcpyHostToDevice, ctx.stream()));
    const index_t stepped_slots = saved.slots - l.counters.pending;
    if (s == Status::ok) s = l.open.load(r, ctx, h, l.counters, stepped_slots > 0 ? saved.token(stepped_slots - 1) : -1);
    if (s == Status::ok) s = keys.load(r, ctx, h, before(h, &Layer::keys), slots[h]);
    if (s == Status::ok) s = values.load(r, ctx, h, before(h, &Layer::values), slots[h]);
    if (s == Status::ok) s = l.summary.load(r, ctx, h, l.counters.seen - slots[h]);
  }
  if constexpr (Cache<Cuda, R>::retrieves)
    if (s == Status::ok) s = c.retrieval().load_drawn(r, ctx, layer, heads, stepped);
  index_t longest = 0;
  for (const index_t n : slots) longest = std::max(longest, n);
  if (s == Status::ok) s = c.reserve_rotation(ctx, longest);
  if (s == Status::ok) s = keys.settle(ctx);
  if (s == Status::ok) s = values.settle(ctx);
  if (s == Status::ok) s = l.set_slots(ctx, [&](index_t h) { return slots[h]; });
  if constexpr (Cache<Cuda, R>::retrieves)
    if (s == Status::ok && !c.retrieval().settle_held(layer, l, c.shape())) s = Status::corrupt_data;
  return s;
}

}  // namespace cache

/// Writes everything the cache holds, codes as codes, and tombstones where codes cannot move alone: the file that a cache on the CPU writes whose slots
/// lie in the same places, and that either backend reads.
///
/// Needs    a context on the stream of the cache's calls.
/// Cost     waits for the stream, and for each piece of about a megabyte of pages that comes down; host memory for the tokens of one head.
/// Numbers  what the cache has counted of all heads together, numbers that it could not store and NaN scores, is told of the first head and layer.
/// Errors   io_error when the sink refuses, device_error of a layer that is torn, out_of_memory; the cache never changes.
template <class R>
Status save(Context<Cuda>& ctx, const Cache<Cuda, R>& c, ByteSink& sink) {
  for (const auto& l : c.layers())
    if (l.torn) return Status::device_error;
  std::size_t page = 0;
  bool codes = false;
  for (const auto& l : c.layers()) {
    page = std::max({page, cache::CudaColumnFile<typename Cache<Cuda, R>::KeyCodec>::most(l.keys), cache::CudaColumnFile<typename Cache<Cuda, R>::ValueCodec>::most(l.values)});
    const auto coded = [](const auto& plan) { return plan.flush.block > 0 || plan.paired(); };
    codes = codes || coded(l.keys.plan()) || coded(l.values.plan());
  }
  cache::SnapshotRoom room(c.memory());
  index_t counted[2] = {};
  Status s = c.counted(ctx, counted);
  if (s == Status::ok) s = room.make(ctx, page, cache::laid_bytes(c), codes ? std::max(c.plan().keys.dim, c.plan().values.dim) : 0);
  if (s != Status::ok) return s;

  ByteWriter w(sink);
  cache::save_begin(w, fingerprint(c), c.shape().layers);
  for (index_t i = 0; i < c.layers().size() && w.status() == Status::ok; ++i) {
    const auto& l = c.layers()[i];
    cache::Counters counters = l.counters;
    counters.merged_slots += l.folded_since();
    if (i == 0) counters.nan_scores += counted[1];
    cache::save_counters(w, counters, l.pending_positions);
    cache::QueryWindow window;
    s = cache::QueryWindow::make(l.window.most(), c.shape(), heap_memory(), window);
    if (s == Status::ok) s = l.window.download(ctx, window);
    if (s != Status::ok) w.fail(s);
    cache::save_window(w, window, c.shape());
    if constexpr (Cache<Cuda, R>::retrieves) c.retrieval().save_held(w, ctx, i), c.retrieval().save_found(w, ctx, i);
    for (index_t h = 0; h < c.shape().kv_heads && w.status() == Status::ok; ++h) {
      cache::HeadCounts counts = l.counts(h);
      if (i == 0 && h == 0) counts.repaired += counted[0];
      cache::save_head(w, ctx, c, i, h, counts, room);
    }
    if constexpr (Cache<Cuda, R>::retrieves)
      if (w.status() == Status::ok) c.retrieval().save_drawn(w, ctx, i, l, c.shape().kv_heads);
  }
  return cache::save_end(w);
}

/// Replaces the content of `c` by a snapshot, of either backend, or leaves `c` as it is. A layer that was torn is whole behind it.
///
/// Needs    a context on the stream of the cache's calls. Waits for it.
/// Errors   corrupt_data (cut, flipped, impossible), incompatible (another shape, recipe or format version), out_of_memory. Asks for no more memory than
///          the file's length justifies.
template <class R>
Status load(Context<Cuda>& ctx, Cache<Cuda, R>& c, std::span<const std::byte> file) {
  ByteReader r({});
  if (const Status s = cache::load_begin(file, fingerprint(c), c.shape().layers, r); s != Status::ok) return s;
  auto fresh = Cache<Cuda, R>::make(c.shape(), c.recipe(), c.memory());
  if (!fresh) return fresh.status();
  cache::CodeRoom codes(c.memory());
  Status s = codes.make(cache::laid_bytes(*fresh));
  for (index_t i = 0; i < c.layers().size() && s == Status::ok; ++i) s = cache::load_layer(r, ctx, *fresh, i, codes);
  if (s == Status::ok && r.left() != 0) s = Status::corrupt_data;
  if (s == Status::ok) s = fresh->rebuild_index(ctx);
  const Status done = ctx.wait();  // the file is read no more, nor what the cache had before
  if (s == Status::ok) s = done;
  if (s == Status::ok) c = std::move(*fresh);
  return s;
}

}  // namespace kvcondense
