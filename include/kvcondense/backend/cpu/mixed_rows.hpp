#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>
#include <cstring>

#include <kvcondense/backend/cpu/group_quant_fold.hpp>
#include <kvcondense/core/backend.hpp>
#include <kvcondense/prim/mixed_rows.hpp>
#include <kvcondense/prim/rank_bits.hpp>

namespace kvcondense::prim {

/// Each class is read by its own codec, all of a call's rows at once; its numbers are then spread over the slots.
template <class High, class Low>
struct PageCodec<Cpu, MixedRows<High, Low>> {
  using Mixed = MixedRows<High, Low>;

  static index_t encode(const Mixed& codec, PageSpan page, index_t first, index_t count, RowBlock<const float> rows,
                        const float* scores) {
    index_t repaired = 0;
    for (index_t done = 0; done < count; done += codec.group) {
      const Group g(codec, page, (first + done) / codec.group);
      choose(codec, scores == nullptr ? nullptr : scores + done, g.map);
      alignas(64) float block[Mixed::most_numbers];
      const auto code = [&]<class C>(const C& inner, PageSpan to, bool high) {
        index_t n = 0;
        for (index_t i = 0; i < codec.group; ++i)
          if (g.is_high(i) == high) std::copy_n(rows.data + (done + i) * rows.step, page.dim, block + page.dim * n++);
        repaired += PageCodec<Cpu, C>::encode(inner, to, 0, n, {block, n, page.dim});
      };
      code(codec.high, g.high, true);
      code(codec.low, g.low, false);
    }
    return repaired;
  }

  static float grade(const Mixed& codec, PageSpan page, index_t slot) {
    return Group(codec, page, slot / codec.group).is_high(slot % codec.group) ? 1.0f : 0.0f;
  }

  static void decode(const Mixed& codec, PageSpan page, index_t first, index_t count, RowBlock<float> rows) {
    each_class(codec, page, first, count, [&]<class C>(const C& inner, PageSpan in, const Run& run) {
      for (index_t i = 0; i < run.count; ++i)
        PageCodec<Cpu, C>::decode(inner, in, run.first + i, 1, {rows.data + run.slot[i] * rows.step, 1, rows.step});
    });
  }

  static void scores(const Mixed& codec, PageSpan page, index_t first, index_t count, RowBlock<const float> queries,
                     RowBlock<float> out) {
    float part[cpu::fold_rows * max_group];
    each_class(codec, page, first, count, [&]<class C>(const C& inner, PageSpan in, const Run& run) {
      cpu::by_rows(queries, out, [&](RowBlock<const float> some, RowBlock<float> to) {
        PageCodec<Cpu, C>::scores(inner, in, run.first, run.count, some, {part, some.rows, max_group});
        for (index_t j = 0; j < some.rows; ++j)
          for (index_t i = 0; i < run.count; ++i) to.data[j * to.step + run.slot[i]] = part[j * max_group + i];
      });
    });
  }

  static void accumulate(const Mixed& codec, PageSpan page, index_t first, index_t count, RowBlock<const float> weights,
                         RowBlock<float> out) {
    float part[cpu::fold_rows * max_group];
    each_class(codec, page, first, count, [&]<class C>(const C& inner, PageSpan in, const Run& run) {
      cpu::by_rows(weights, out, [&](RowBlock<const float> some, RowBlock<float> to) {
        for (index_t j = 0; j < some.rows; ++j)
          for (index_t i = 0; i < run.count; ++i) part[j * max_group + i] = some.data[j * some.step + run.slot[i]];
        PageCodec<Cpu, C>::accumulate(inner, in, run.first, run.count, {part, some.rows, max_group}, to);
      });
    });
  }

 private:
  static constexpr index_t max_group = 256;

  /// One group: who is where, and two pages.
  struct Group {
    std::uint8_t* map;
    PageSpan high, low;

    Group(const Mixed& codec, PageSpan page, index_t index) {
      std::byte* at = page.data + index * codec.group_bytes(page.dim);
      map = reinterpret_cast<std::uint8_t*>(at);
      high = {at + codec.high_at(), codec.high_slots, page.dim};
      low = {at + codec.low_at(page.dim), codec.low_slots(), page.dim};
    }
    bool is_high(index_t i) const { return (map[i / 8] >> (i % 8) & 1) != 0; }
  };

  /// Slots of one class in a part of a group: ranks [first, first + count) in the class, and their places in the
  /// call's run of slots.
  struct Run {
    index_t first = 0, count = 0;
    index_t slot[max_group];
  };

  template <class F>
  static void each_class(const Mixed& codec, PageSpan page, index_t first, index_t count, F&& f) {
    for (index_t done = 0; done < count;) {
      const index_t from = (first + done) % codec.group, n = std::min(codec.group - from, count - done);
      const Group g(codec, page, (first + done) / codec.group);
      Run high, low;
      for (index_t i = 0; i < from + n; ++i) {
        // A map of a forged file may name too many or too few: no class gets more slots than it has rows.
        const bool more = g.is_high(i) && high.first + high.count < codec.high_slots;
        Run& run = more || low.first + low.count == codec.low_slots() ? high : low;
        if (i < from) ++run.first;
        else run.slot[run.count++] = done + i - from;
      }
      if (high.count > 0) f(codec.high, g.high, high);
      if (low.count > 0) f(codec.low, g.low, low);
      done += n;
    }
  }

  /// The largest scores; of equal ones the newer slot, and without scores the newest ones.
  static void choose(const Mixed& codec, const float* scores, std::uint8_t* map) {
    std::memset(map, 0, static_cast<std::size_t>((codec.group + 7) / 8));
    const auto key = [&](index_t i) { return scores == nullptr ? 1u : rank_bits(scores[i]); };
    const RowCutoff cut = find_cutoff(codec.high_slots, codec.group, [&](auto&& use) {
      for (index_t i = 0; i < codec.group; ++i) use(key(i));
    });
    index_t ties = cut.ties;
    for (index_t i = codec.group - 1; i >= 0; --i)
      if (key(i) > cut.bits || (key(i) == cut.bits && ties-- > 0))
        map[i / 8] = static_cast<std::uint8_t>(map[i / 8] | 1u << (i % 8));
  }
};

}  // namespace kvcondense::prim
