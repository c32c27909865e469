#pragma once

#include <kvcondense/external/coded_pages.hpp>

namespace kvcondense::external {

template <class Q>
Status CodedPages<Q>::code(Context<Cpu>& ctx, const CodedMemory& m, index_t* repaired) {
  const index_t more_keys = due(key_flush_, keys_), more_values = due(value_flush_, values_);
  if (more_keys + more_values == 0) return Status::ok;
  Scratch scratch(ctx.workspace());
  if (const Status s = check_memory(m, pages_wanted(), scratch); s != Status::ok) return s;
  const index_t room = page_slots_ * std::max(shape_.head_dim, shape_.values());
  float* rows = scratch.take<float>(room * ctx.workers());
  auto* wrong = scratch.take<index_t>(shape_.kv_heads);
  if (rows == nullptr || wrong == nullptr) return Status::workspace_too_small;
  for (index_t p = std::min(keys_, values_) / page_slots_; p < pages_wanted(); ++p)
    if (shared(m, p)) return Status::invalid_argument;
  for (index_t p = pages(); p < pages_wanted(); ++p) {
    const auto page = static_cast<index_t>(m.table[static_cast<std::size_t>(p)]);
    for (index_t h = 0; h < shape_.kv_heads; ++h) {
      std::memset(m.keys + page * m.key_step + h * key_bytes(), 0, static_cast<std::size_t>(key_bytes()));
      std::memset(m.values + page * m.value_step + h * value_bytes(), 0, static_cast<std::size_t>(value_bytes()));
    }
    m.formats[static_cast<std::size_t>(page)] = format_;
  }
  ctx.parallel(shape_.kv_heads, [&](index_t h, index_t worker) {
    float* own = rows + worker * room;
    wrong[h] = encode(m, h, heads_[h].keys, m.exact.keys, keys_, more_keys, own) + encode(m, h, heads_[h].values, m.exact.values, values_, more_values, own);
  });
  for (index_t h = 0; h < shape_.kv_heads && repaired != nullptr; ++h) *repaired += wrong[h];
  keys_ += more_keys, values_ += more_values;
  return Status::ok;
}

template <class Q>
Status CodedPages<Q>::keep(Context<Cpu>& ctx, const CodedMemory& m, std::span<const std::int32_t> kept, std::span<std::int32_t> table) {
  for (std::size_t i = 0; i < kept.size(); ++i)
    if (kept[i] < 0 || kept[i] >= slots_ || (i > 0 && kept[i] <= kept[i - 1])) return Status::invalid_argument;
  if (table.data() != m.table.data() || table.size() != m.table.size()) return Status::invalid_argument;
  if (const Status s = check_memory(m, pages(), Scratch(ctx.workspace())); s != Status::ok) return s;
  const auto below = [&](index_t slot) { return static_cast<index_t>(std::lower_bound(kept.begin(), kept.end(), slot) - kept.begin()); };
  const index_t most = std::max(keys_, values_), least = std::min(keys_, values_);
  const index_t sinks = below(sinks_), begin = below(sinks_ + least), end = below(sinks_ + most), n = static_cast<index_t>(kept.size());
  bool alone = true;
  for (const Head& h : heads_) alone = alone && movable(h.keys) && movable(h.values);
  if (end - sinks < most) {
    if (!alone)
      for (index_t p = 0; p < pages(); ++p) {
        const index_t held = std::min(page_slots_, most - p * page_slots_), stay = below(sinks_ + p * page_slots_ + held) - below(sinks_ + p * page_slots_);
        if (stay != 0 && stay != held) return Status::not_supported;
      }
    for (index_t i = sinks; alone && i < end; ++i)
      if (kept[static_cast<std::size_t>(i)] != sinks_ + i - sinks && shared(m, (i - sinks) / page_slots_)) return Status::invalid_argument;
  }
  // Exact rows keep their first place, so that the window's pages stay where they are.
  const index_t shift = sinks_ + least + shift_ - begin;
  const auto exact = [&](auto&& move) {
    for (index_t i = 0; i < n; i = i + 1 == sinks ? begin : i + 1) {
      if (i >= sinks && i < begin) i = begin;
      if (i >= n) break;
      const index_t from = place(kept[static_cast<std::size_t>(i)]), to = i < sinks ? i : i + shift;
      if (from != to) move(to, from);
    }
  };
  bool writes_shared = false;
  exact([&](index_t to, index_t) { writes_shared = writes_shared || m.exact.shared(m.exact.page(to)); });
  if (writes_shared) return Status::invalid_argument;

  if (alone) {
    ctx.parallel(shape_.kv_heads, [&](index_t h, index_t) {
      for (index_t i = sinks; i < end; ++i) {
        const index_t from = kept[static_cast<std::size_t>(i)] - sinks_, to = i - sinks;
        if (from < keys_) move_code(m, h, heads_[h].keys, to, from);
        if (from < values_) move_code(m, h, heads_[h].values, to, from);
      }
    });
  } else {
    // Swaps keep the order of pages that stay.
    for (index_t p = 0, to = 0; p < pages(); ++p)
      if (below(sinks_ + std::min(most, (p + 1) * page_slots_)) > below(sinks_ + p * page_slots_))
        std::swap(table[static_cast<std::size_t>(to++)], table[static_cast<std::size_t>(p)]);
  }
  const prim::PagedSequence s = m.exact.sequence(nullptr);
  ctx.parallel(shape_.kv_heads, [&](index_t h, index_t) {
    exact([&](index_t to, index_t from) {
      for (const prim::PagedTensor* t : {&m.exact.keys, &m.exact.values})
        prim::cpu::move_paged(*t, h, s.page(to), to % s.page_slots, s.page(from), from % s.page_slots);
    });
  });
  const index_t before = pages(), keys = below(sinks_ + keys_) - sinks, values = below(sinks_ + values_) - sinks;
  keys_ = keys, values_ = values, sinks_ = sinks, slots_ = n, shift_ = shift;
  for (index_t p = pages(); p < before; ++p)
    if (!shared(m, p)) m.formats[static_cast<std::size_t>(table[static_cast<std::size_t>(p)])] = 0;
  return Status::ok;
}

template <class Q>
Status CodedPages<Q>::check_memory(const CodedMemory& m, index_t wanted, Scratch scratch) const {
  if (const Status s = external::check(m.exact, shape_, 0, scratch); s != Status::ok) return s;
  const auto whole = [](index_t x) { return x % static_cast<index_t>(align) == 0; };
  const auto aligned = [](const std::byte* p) { return reinterpret_cast<std::uintptr_t>(p) % align == 0; };
  const bool fits = m.key_step >= key_bytes() * shape_.kv_heads && m.value_step >= value_bytes() * shape_.kv_heads;
  if (wanted > 0 && (m.keys == nullptr || m.values == nullptr || !aligned(m.keys) || !aligned(m.values) || !whole(m.key_step) || !whole(m.value_step) || !fits))
    return Status::invalid_argument;
  if (static_cast<index_t>(m.formats.size()) != m.pool_pages || (!m.owners.empty() && static_cast<index_t>(m.owners.size()) != m.pool_pages))
    return Status::shape_mismatch;
  if (m.pool_pages < 0) return Status::invalid_argument;
  auto* bits = scratch.take<std::uint64_t>((std::max(m.exact.pool_pages, m.pool_pages) + 63) / 64);
  if (bits == nullptr) return Status::workspace_too_small;
  if (const Status s = check_table(m.table, wanted, m.pool_pages, bits); s != Status::ok) return s;
  for (index_t p = 0; p < wanted; ++p)
    if (m.formats[static_cast<std::size_t>(m.table[static_cast<std::size_t>(p)])] != (p < pages() ? format_ : 0)) return Status::incompatible;
  // Pages of exact rows: those of the sinks and those of the window.
  const index_t e = m.exact.page_slots, first = (sinks_ + e - 1) / e, begin = std::max(first, window_begin() / e);
  const index_t end = slots_ > sinks_ ? (place(slots_ - 1) + e) / e : 0;
  if (static_cast<index_t>(m.exact.table.size()) < std::max(first, end)) return Status::out_of_range;
  if (slots_ > 0 && (m.exact.keys.data == nullptr || m.exact.values.data == nullptr)) return Status::invalid_argument;
  if (const Status s = check_table(m.exact.table, first, m.exact.pool_pages, bits); s != Status::ok) return s;
  for (index_t i = begin; i < end; ++i) {
    const index_t p = m.exact.table[static_cast<std::size_t>(i)];
    if (p < 0 || p >= m.exact.pool_pages) return Status::out_of_range;
    const std::uint64_t bit = std::uint64_t{1} << (p % 64);
    if ((bits[p / 64] & bit) != 0) return Status::invalid_argument;
    bits[p / 64] |= bit;
  }
  return Status::ok;
}

}  // namespace kvcondense::external
