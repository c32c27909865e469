#pragma once

#include <cmath>
#include <cstring>
#include <string_view>
#include <utility>

#include <kvcondense/cache/cache.hpp>
#include <kvcondense/cache/snapshot_column.hpp>
#include <kvcondense/cache/snapshot_file.hpp>
#include <kvcondense/cache/snapshot_open.hpp>
#include <kvcondense/core/bytes.hpp>

namespace kvcondense {

// Layout, all numbers little-endian; docs/file_format.md says it in prose:
//   magic u32, version u32, fingerprint u64, layers u32
//   per layer: counters, pending positions, per head: counters, ids, lanes, key column, value column
//   per column: three segments (sinks, coded, window): pages u32, per page: format u64, used u32, tombstones, payload;
//     where two layers share rows, the form of a page of the coded part before its payload
//   checksum u64 of all bytes before it
namespace cache {

template <class H>
auto keys_of(const Before<H>& before) {
  return before.each([](const H& h) -> const auto& { return h.keys; });
}
template <class H>
auto values_of(const Before<H>& before) {
  return before.each([](const H& h) -> const auto& { return h.values; });
}

template <class H>
void save_head(ByteWriter& w, const H& head, const Before<H>& before) {
  save_slots(w, {head.repaired, head.coded_again}, head.slots(), [&](index_t first, index_t n, std::int32_t* out) { head.ids.copy_to(first, n, out); });
  for (index_t l = 0; l < head.lanes; ++l) w.bytes(std::as_bytes(head.lane[l].span()));
  w.bytes(std::as_bytes(head.state.span()));
  save_open(w, head.open);
  save_column(w, head.keys, keys_of(before));
  save_column(w, head.values, values_of(before));
  if (!head.summary.kept()) return;
  w.put(static_cast<std::int64_t>(head.summary.count()));
  w.bytes(std::as_bytes(std::span(head.summary.data(), static_cast<std::size_t>(head.summary.size()))));
}

/// Only where the recipe keeps a mean of what left: their number i64, then the numbers.
inline Status load_summary(ByteReader& r, Summary& summary, const Counters& c, index_t slots) {
  if (!summary.kept()) return Status::ok;
  std::int64_t count = 0;
  std::span<const std::byte> numbers;
  if (!r.read(count) || count < 0 || count > c.seen - slots) return Status::corrupt_data;
  if (!r.take(static_cast<std::uint64_t>(summary.size()), sizeof(float), numbers)) return Status::corrupt_data;
  std::memcpy(summary.restore(count), numbers.data(), numbers.size());
  for (index_t i = 0; count > 0 && i < summary.size(); ++i)
    if (!std::isfinite(summary.data()[i])) return Status::corrupt_data;
  return Status::ok;
}

template <class H>
Status load_head(ByteReader& r, H& head, const Before<H>& before, const Counters& c, index_t window) {
  SavedSlots saved;
  if (const Status s = saved.load(r, c, head.lanes); s != Status::ok) return s;
  const index_t slots = saved.slots;
  head.repaired = saved.counts.repaired, head.coded_again = saved.counts.coded_again;
  std::span<const std::byte> state;
  if (!r.take(static_cast<std::uint64_t>(head.state.size()), sizeof(float), state)) return Status::corrupt_data;
  if (!state.empty()) std::memcpy(head.state.data(), state.data(), state.size());
  if (const Status s = load_open(r, head.open, c, window); s != Status::ok) return s;
  for (index_t i = 0; i < slots; ++i) {
    const index_t id = saved.token(i);
    if (head.ids.gap_before(id))
      if (const Status s = head.ids.list_with_room(slots - i); s != Status::ok) return s;
    head.ids.append(id, 1);
  }
  for (index_t l = 0; l < head.lanes; ++l) {
    if (const Status s = head.lane[l].resize(slots); s != Status::ok) return s;
    if (slots > 0) std::memcpy(head.lane[l].data(), saved.lane[l].data(), saved.lane[l].size());
    for (index_t i = 0; i < slots && (l == head.bias || l == head.value_scale); ++i)
      if (!std::isfinite(head.lane[l][i])) return Status::corrupt_data;
  }
  Status s = load_column(r, head.keys, keys_of(before));
  if (s == Status::ok) s = load_column(r, head.values, values_of(before));
  if (s == Status::ok && (head.keys.slots() != slots || head.values.slots() != slots)) s = Status::corrupt_data;
  return s == Status::ok ? load_summary(r, head.summary, c, slots) : s;
}

/// Only where a retrieval stage holds units: when they were chosen i64, -1 for none; then slots and known slots of each
/// head i64, and per row of selection the number of units u32 and they i32.
inline void save_held(ByteWriter& w, const retrieve::HeldUnits& held) {
  if (held.offset.size() == 0) return;
  w.put(held.made);
  if (!held.valid()) return;
  for (const index_t n : held.slots) w.put(n);
  for (index_t r = 0; r + 1 < held.offset.size(); ++r) {
    w.put(static_cast<std::uint32_t>(held.offset[r + 1] - held.offset[r]));
    for (index_t i = held.offset[r]; i < held.offset[r + 1]; ++i) w.put(held.units[i]);
  }
}

template <class C, class L>
Status load_held(ByteReader& r, const C& cache, L& layer) {
  retrieve::HeldUnits& held = layer.held;
  const Counters& c = layer.counters;
  if (held.offset.size() == 0) return Status::ok;
  index_t made = -1;
  if (!r.read(made) || made < -1 || made > c.seen) return Status::corrupt_data;
  if (made < 0) return Status::ok;
  for (index_t& n : held.slots)
    if (!r.read(n) || n < 0 || n > c.seen) return Status::corrupt_data;
  const index_t rows = held.offset.size() - 1, heads = layer.heads.size();
  for (index_t row = 0; row < rows; ++row) {
    std::uint32_t count = 0;
    if (!r.read(count) || count > r.left() / sizeof(std::int32_t)) return Status::corrupt_data;
    if (static_cast<index_t>(count) > cache.retrieval().most_units(held.slots[row * heads / rows])) return Status::corrupt_data;
    held.offset[row] = held.units.size();
    for (std::uint32_t i = 0; i < count; ++i) {
      std::int32_t unit = 0;
      if (!r.read(unit) || unit < 0 || unit > c.seen) return Status::corrupt_data;
      if (const Status s = held.units.push_back(unit); s != Status::ok) return s;
    }
    held.offset[row + 1] = held.units.size();
  }
  held.made = made;
  return Status::ok;
}

/// Only where a retrieval stage learns from prompts: per head the number of floats u32 and they.
inline void save_found(ByteWriter& w, const ObjectArray<retrieve::UnitState>& index) {
  for (const auto& i : index) {
    w.put(static_cast<std::uint32_t>(i.found.size()));
    w.bytes(std::as_bytes(i.found.span()));
  }
}

/// Only where a retrieval stage watches attention, after the heads: the numbers of every slot that a step has seen.
template <class L>
Status load_drawn(ByteReader& r, L& layer) {
  for (index_t h = 0; h < layer.index.size(); ++h) {
    auto& i = layer.index[h];
    const index_t count = (layer.heads[h].slots() - layer.counters.pending) * i.width;
    std::span<const std::byte> numbers;
    if (!r.take(static_cast<std::uint64_t>(count), sizeof(float), numbers)) return Status::corrupt_data;
    if (const Status s = i.drawn.resize(count); s != Status::ok) return s;
    if (count > 0) std::memcpy(i.drawn.data(), numbers.data(), numbers.size());
    for (const float x : i.drawn)
      if (!(x >= 0.0f) || std::isinf(x)) return Status::corrupt_data;
  }
  return Status::ok;
}

/// Units are of slots that are there, some of which an index knew. After the heads.
template <class L>
bool held_fits(const L& layer) {
  const index_t heads = layer.held.valid() ? layer.heads.size() : 0;
  for (index_t h = 0; h < heads; ++h)
    if (layer.held.slots[h] > layer.heads[h].slots() || layer.held.slots[heads + h] > layer.held.slots[h]) return false;
  return true;
}

template <class C, class L>
Status load_found(ByteReader& r, const C& c, L& layer) {
  for (auto& i : layer.index) {
    std::uint32_t count = 0;
    std::span<const std::byte> numbers;
    if (!r.read(count) || !r.take(count, sizeof(float), numbers)) return Status::corrupt_data;
    if (!c.retrieval().found_fits(c.shape(), static_cast<index_t>(count))) return Status::corrupt_data;
    if (const Status s = i.found.resize(static_cast<index_t>(count)); s != Status::ok) return s;
    if (count > 0) std::memcpy(i.found.data(), numbers.data(), numbers.size());
    for (const float x : i.found)
      if (!std::isfinite(x)) return Status::corrupt_data;
  }
  return Status::ok;
}

}  // namespace cache

/// What a snapshot must agree on with the cache that loads it: shape, stages, codecs, rotation.
template <Backend B, class R>
std::uint64_t fingerprint(const Cache<B, R>& c) {
  const CacheShape& s = c.shape();
  const auto& p = c.plan();
  cache::Fingerprint f = cache::begin_fingerprint(s, c.recipe());
  if (const char* word = word_of(c.recipe().lowrank); std::string_view(word) != NoLowRank::about.word) f.add_text(word);
  const auto add = [&](const auto& h) { f.add_codes(h.keys.fingerprint(), h.values.fingerprint(), h.keys.flush_rule(), h.values.flush_rule()); };
  const auto& first = c.layers()[0].heads[0];
  add(first);
  f.add(p.sinks, p.lanes, p.query_rows);
  // Heads like the first one say nothing new.
  for (index_t l = 0; l < s.layers; ++l)
    for (index_t h = 0; h < s.kv_heads; ++h)
      if (const auto& head = c.layers()[l].heads[h]; !head.stored_like(first)) f.add(l, h), add(head);
  if (p.summary) f.add(1);
  if (p.bias >= 0 || p.value_scale >= 0 || p.state > 0) f.add(p.bias, p.value_scale, p.state);
  if constexpr (merge::Merges<std::remove_cvref_t<decltype(c.recipe().merge)>>)
    if (const merge::Traits t = c.recipe().merge.pipeline().traits(); t.active || t.across.active) {
      f.add_text(word_of(c.recipe().merge));
      if (t.across.active) f.add(t.across.first(s));
    }
  if (c.sums()) f.add(c.groups().layers, c.groups().heads);
  if (p.joins) f.add(c.join_window());
  if constexpr (Cache<B, R>::may_retrieve)
    if (p.learns || p.held_rows > 0 || p.drawn > 0) f.add_text(word_of(c.recipe().retrieve)).add(p.held_rows, c.retrieval().fingerprint());
  if (c.recipe().position.raw_keys) f.add(prim::fingerprint(c.recipe().position.rope), c.recipe().position.rotated_input);
  return f.value();
}

/// The heads that come before this one and share rows with it.
template <Backend B, class R>
auto heads_before(const Cache<B, R>& c, const typename Cache<B, R>::Layer& layer, index_t head) {
  cache::Before<typename Cache<B, R>::Layer::Head> b;
  const index_t at = &layer - c.layers().begin();
  const Span layers = c.layer_group(at), heads = c.head_group(head);
  for (index_t l = at; l >= layers.first; --l)
    for (index_t h = l == at ? head - 1 : heads.first + heads.count - 1; h >= heads.first; --h) b.at[b.count++] = &c.layers()[l].heads[h];
  return b;
}

/// Writes everything the cache holds, codes as codes.
///
/// Numbers  slots that hold nothing are written as rows of zeros: what was taken back is not in the file. Codes that share
///          parameters with a live slot stay until their group is written again, and so do pages that layers or heads share.
/// Errors   order_violation between `attend_counted` and `step`, io_error when the sink refuses, out_of_memory without room for a copy of one page; the cache never changes.
template <Backend B, class R>
Status save(const Cache<B, R>& c, ByteSink& sink) {
  for (const auto& l : c.layers())
    if (l.counted > 0) return Status::order_violation;
  ByteWriter w(sink);
  cache::save_begin(w, fingerprint(c), c.shape().layers);
  for (const auto& l : c.layers()) {
    cache::save_counters(w, l.counters, l.pending_positions);
    cache::save_window(w, l.window, c.shape());
    cache::save_held(w, l.held);
    if (c.plan().learns) cache::save_found(w, l.index);
    for (index_t h = 0; h < c.shape().kv_heads; ++h) cache::save_head(w, l.heads[h], heads_before(c, l, h));
    for (const auto& i : l.index) w.bytes(std::as_bytes(i.drawn.span()));
  }
  return cache::save_end(w);
}

/// Replaces the content of `c` by a snapshot, or leaves `c` as it is.
///
/// Errors   corrupt_data (cut, flipped, impossible), incompatible (another shape, recipe, rotation or
///          format version), out_of_memory. Asks for no more memory than the file's length justifies.
template <Backend B, class R>
Status load(Cache<B, R>& c, std::span<const std::byte> file) {
  ByteReader r({});
  if (const Status s = cache::load_begin(file, fingerprint(c), c.shape().layers, r); s != Status::ok) return s;
  auto fresh = Cache<B, R>::make(c.shape(), c.recipe(), c.memory());
  if (!fresh) return fresh.status();
  index_t most = 0;
  for (auto& l : fresh->layers()) {
    if (const Status s = cache::load_counters(r, l.counters, l.pending_positions); s != Status::ok) return s;
    const cache::Counters& n = l.counters;
    if (const Status s = cache::load_window(r, l.window, c.shape(), n); s != Status::ok) return s;
    if constexpr (Cache<B, R>::may_retrieve) {
      if (const Status s = cache::load_held(r, *fresh, l); s != Status::ok) return s;
      if (fresh->plan().learns)
        if (const Status s = cache::load_found(r, *fresh, l); s != Status::ok) return s;
    }
    for (index_t h = 0; h < c.shape().kv_heads; ++h) {
      if (const Status s = cache::load_head(r, l.heads[h], heads_before(*fresh, l, h), n, fresh->join_window()); s != Status::ok) return s;
      most = std::max(most, l.heads[h].slots());
    }
    if (!cache::held_fits(l)) return Status::corrupt_data;
    if (fresh->plan().drawn > 0)
      if (const Status s = cache::load_drawn(r, l); s != Status::ok) return s;
    l.update_offsets();
  }
  if (r.left() != 0) return Status::corrupt_data;
  if (const Status s = fresh->reserve_rotation(most); s != Status::ok) return s;
  if (const Status s = fresh->rebuild_index(); s != Status::ok) return s;
  c = std::move(*fresh);
  return Status::ok;
}

}  // namespace kvcondense
