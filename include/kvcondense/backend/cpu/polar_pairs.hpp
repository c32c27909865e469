#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numbers>

#include <kvcondense/backend/cpu/group_quant_rows.hpp>
#include <kvcondense/backend/cpu/group_quant_tile.hpp>
#include <kvcondense/backend/cpu/slot_groups.hpp>
#include <kvcondense/core/backend.hpp>
#include <kvcondense/prim/polar_pairs.hpp>

namespace kvcondense::prim {

namespace cpu {

inline constexpr index_t max_pairs = max_head_dim / 2;
inline constexpr index_t polar_rows = 16;  ///< query or weight rows that share one unpacking; bounds the stack

/// Parameters of one group of slots.
struct PolarGroup {
  float angle_scale[max_pairs], angle_offset[max_pairs];
  float length_scale[max_pairs], length_offset[max_pairs];
};

/// A page of PolarPairs rows: addresses.
template <int R, int T>
struct PolarPage {
  const PolarPairs<R, T>& codec;
  PageSpan page;

  index_t pairs() const { return page.dim / 2; }
  std::byte* row(index_t slot) const { return page.data + slot * codec.row_bytes(page.dim); }
  std::byte* params(index_t slot) const {
    return page.data + codec.params_at(page.slots, page.dim) + slot / codec.group_size * codec.group_bytes(page.dim);
  }
  void read_group(index_t slot, PolarGroup& g) const {
    const std::byte* at = params(slot);
    for (float* numbers : {g.angle_scale, g.angle_offset, g.length_scale, g.length_offset}) {
      read_numbers(codec.params, at, pairs(), numbers);
      at += pairs() * size_of(codec.params);
    }
  }
  void write_group(index_t slot, const PolarGroup& g) const {
    std::byte* at = params(slot);
    for (const float* numbers : {g.angle_scale, g.angle_offset, g.length_scale, g.length_offset}) {
      write_numbers(codec.params, numbers, pairs(), at);
      at += pairs() * size_of(codec.params);
    }
  }
};

/// cos and sin of every angle that a code of the group may stand for: [code][pair], rows `width` apart, padding zero.
/// Angles double from bin to bins: a sixth of the calls of one cos and sin each.
template <int T>
struct PolarTable {
  alignas(64) float cos[max_pairs << T];
  alignas(64) float sin[max_pairs << T];
  index_t width = 0;

  void fill(const PolarGroup& g, index_t pairs) {
    width = padded(pairs, lanes);
    for (index_t j = 0; j < width; ++j) {
      const float first = j < pairs ? 0.5f * g.angle_scale[j] + g.angle_offset[j] : 0.0f;
      cos[j] = j < pairs ? std::cos(first) : 0.0f;
      sin[j] = j < pairs ? std::sin(first) : 0.0f;
    }
    float c[max_pairs], s[max_pairs];
    for (index_t have = 1; have < index_t{1} << T; have *= 2) {
      for (index_t j = 0; j < width; ++j) {
        const float turn = j < pairs ? static_cast<float>(have) * g.angle_scale[j] : 0.0f;
        c[j] = std::cos(turn), s[j] = std::sin(turn);
      }
      for (index_t i = 0; i < have; ++i)
        for (index_t j = 0; j < width; ++j) {
          const float x = cos[i * width + j], y = sin[i * width + j];
          cos[(have + i) * width + j] = x * c[j] - y * s[j];
          sin[(have + i) * width + j] = y * c[j] + x * s[j];
        }
    }
  }
};

/// Up to `tile_slots` slots of one group: lengths, and where in a table of the group the angle of each pair stands.
/// Padding has length 0.
struct PolarTile {
  alignas(64) float length[tile_slots * max_pairs];
  std::int32_t angle[tile_slots * max_pairs];

  template <int R, int T>
  void load(const PolarPage<R, T>& from, const PolarGroup& g, index_t slot, index_t n, index_t width) {
    const index_t pairs = from.pairs();
    std::uint8_t codes[code_buffer];
    for (index_t i = 0; i < n; ++i) {
      unpack_codes<R + T>(from.row(slot + i), pairs, codes);
      float* l = length + i * width;
      std::int32_t* a = angle + i * width;
      const auto step = static_cast<std::int32_t>(width);
      for (index_t j = 0; j < pairs; ++j) {
        a[j] = (codes[j] & ((1 << T) - 1)) * step + static_cast<std::int32_t>(j);
        l[j] = (static_cast<float>(codes[j] >> T) + 0.5f) * g.length_scale[j] + g.length_offset[j];
      }
      for (index_t j = pairs; j < width; ++j) a[j] = 0, l[j] = 0.0f;
    }
  }
};

}  // namespace cpu

/// Attention in polar form: a query's product with every direction that a pair's code may stand for is one table per
/// group; a slot then costs a look-up and a product per pair. Sums go the other way: weights times lengths are
/// gathered per direction, and each direction is multiplied once.
///
/// Numbers   `encode` returns the repaired numbers: NaN (coded as 0), infinities and magnitudes beyond
///           `largest_coded` (their pair is left out of the ranges, then takes the nearest bins), and one more for
///           every parameter that did not fit its type. Pairs of length 0 have no direction: they are left out
///           of the range of angles.
template <int R, int T>
struct PageCodec<Cpu, PolarPairs<R, T>> {
  using Codec = PolarPairs<R, T>;
  using Page = cpu::PolarPage<R, T>;

  static index_t encode(const Codec& codec, PageSpan page, index_t first, index_t count, RowBlock<const float> rows) {
    const Page to{codec, page};
    return cpu::encode_groups(codec.group_size, first, {rows.data, count, rows.step},
                              [&](index_t slot, RowBlock<const float> group) { return encode_group(to, slot, group); });
  }

  static void decode(const Codec& codec, PageSpan page, index_t first, index_t count, RowBlock<float> rows) {
    const Page from{codec, page};
    cpu::PolarTable<T> table;
    cpu::PolarTile tile;
    by_tiles(from, first, count, table, tile, [](index_t) {}, [&](index_t done, index_t n) {
      for (index_t i = 0; i < n; ++i) {
        float* x = rows.data + (done + i) * rows.step;
        for (index_t j = 0; j < from.pairs(); ++j) {
          const float length = tile.length[i * table.width + j];
          const std::int32_t at = tile.angle[i * table.width + j];
          x[codec.first_of(j)] = length * table.cos[at];
          x[codec.second_of(j, page.dim)] = length * table.sin[at];
        }
      }
    }, [](index_t) {});
  }

  static void scores(const Codec& codec, PageSpan page, index_t first, index_t count, RowBlock<const float> queries,
                     RowBlock<float> out) {
    const Page from{codec, page};
    cpu::PolarTable<T> table;
    cpu::PolarTile tile;
    alignas(64) float folded[cpu::polar_rows * (cpu::max_pairs << T)];
    for (index_t at = 0; at < queries.rows; at += cpu::polar_rows) {
      const index_t many = std::min(cpu::polar_rows, queries.rows - at);
      const auto begin = [&](index_t size) {
        for (index_t r = 0; r < many; ++r)
          fold_query(from, table, queries.data + (at + r) * queries.step, folded + r * size);
      };
      const auto use = [&](index_t done, index_t n) {
        const index_t size = table.width << T;
        for (index_t r = 0; r < many; ++r)
          for (index_t i = 0; i < n; ++i)
            out.data[(at + r) * out.step + done + i] =
                look_up(folded + r * size, tile.angle + i * table.width, tile.length + i * table.width, table.width);
      };
      by_tiles(from, first, count, table, tile, begin, use, [](index_t) {});
    }
  }

  static void accumulate(const Codec& codec, PageSpan page, index_t first, index_t count, RowBlock<const float> weights,
                         RowBlock<float> out) {
    const Page from{codec, page};
    cpu::PolarTable<T> table;
    cpu::PolarTile tile;
    alignas(64) float sums[cpu::polar_rows * (cpu::max_pairs << T)];
    for (index_t at = 0; at < weights.rows; at += cpu::polar_rows) {
      const index_t many = std::min(cpu::polar_rows, weights.rows - at);
      const auto begin = [&](index_t size) { std::fill_n(sums, many * size, 0.0f); };
      const auto use = [&](index_t done, index_t n) {
        const index_t size = table.width << T;
        for (index_t r = 0; r < many; ++r)
          for (index_t i = 0; i < n; ++i) {
            const float w = weights.data[(at + r) * weights.step + done + i];
            const float* length = tile.length + i * table.width;
            const std::int32_t* angle = tile.angle + i * table.width;
            float* s = sums + r * size;
            for (index_t j = 0; j < from.pairs(); ++j) s[angle[j]] += w * length[j];
          }
      };
      const auto end = [&](index_t size) {
        for (index_t r = 0; r < many; ++r) finish(from, table, sums + r * size, out.data + (at + r) * out.step);
      };
      by_tiles(from, first, count, table, tile, begin, use, end);
    }
  }

 private:
  /// Per group of slots: the table, then begin(numbers of a table), use(slots done, slots of the tile) for every tile,
  /// end(numbers of a table).
  template <class Begin, class Use, class End>
  static void by_tiles(const Page& from, index_t first, index_t count, cpu::PolarTable<T>& table, cpu::PolarTile& tile,
                       Begin&& begin, Use&& use, End&& end) {
    cpu::PolarGroup group;
    cpu::each_group(from.codec.group_size, first, count, [&](index_t at, index_t many) {
      from.read_group(first + at, group);
      table.fill(group, from.pairs());
      begin(table.width << T);
      for (index_t done = at; done < at + many; done += cpu::tile_slots) {
        const index_t n = std::min(cpu::tile_slots, at + many - done);
        tile.load(from, group, first + done, n, table.width);
        use(done, n);
      }
      end(table.width << T);
    });
  }

  static void fold_query(const Page& from, const cpu::PolarTable<T>& table, const float* q, float* folded) {
    float x[cpu::max_pairs] = {}, y[cpu::max_pairs] = {};
    for (index_t j = 0; j < from.pairs(); ++j) {
      x[j] = q[from.codec.first_of(j)];
      y[j] = q[from.codec.second_of(j, from.page.dim)];
    }
    const index_t width = table.width;
    for (index_t i = 0; i < index_t{1} << T; ++i)
      for (index_t j = 0; j < width; ++j)
        folded[i * width + j] = x[j] * table.cos[i * width + j] + y[j] * table.sin[i * width + j];
  }

  static float look_up(const float* folded, const std::int32_t* angle, const float* length, index_t width) {
    cpu::Lanes sum{}, l;
    for (index_t j = 0; j < width; j += cpu::lanes) {
      float at[cpu::lanes];
      for (index_t k = 0; k < cpu::lanes; ++k) at[k] = folded[angle[j + k]];
      cpu::Lanes v;
      cpu::load(v, at);
      cpu::load(l, length + j);
      sum += v * l;
    }
    return cpu::sum_lanes(sum);
  }

  static void finish(const Page& from, const cpu::PolarTable<T>& table, const float* sums, float* out) {
    float x[cpu::max_pairs] = {}, y[cpu::max_pairs] = {};
    const index_t width = table.width;
    for (index_t i = 0; i < index_t{1} << T; ++i)
      for (index_t j = 0; j < width; ++j) {
        x[j] += sums[i * width + j] * table.cos[i * width + j];
        y[j] += sums[i * width + j] * table.sin[i * width + j];
      }
    for (index_t j = 0; j < from.pairs(); ++j) {
      out[from.codec.first_of(j)] += x[j];
      out[from.codec.second_of(j, from.page.dim)] += y[j];
    }
  }

  /// The point of pair j of a row, with its angle in [cut, cut + 2 pi). False where it is left out of ranges.
  static bool point_of(const Page& to, const float* row, index_t j, float cut, PolarPoint& p) {
    const float x = without_nan(row[to.codec.first_of(j)]), y = without_nan(row[to.codec.second_of(j, to.page.dim)]);
    p = polar_point(limit_to(x, largest_coded), limit_to(y, largest_coded));
    constexpr float circle = 2.0f * std::numbers::pi_v<float>;
    if (p.angle < cut) p.angle += circle;
    else if (p.angle >= cut + circle) p.angle -= circle;
    return !needs_repair(x) && !needs_repair(y);
  }

  static index_t encode_group(const Page& to, index_t slot, RowBlock<const float> rows) {
    const Codec& codec = to.codec;
    const index_t pairs = to.pairs();
    float cut[cpu::max_pairs] = {};
    if (codec.centered) find_cuts(to, rows, cut);
    GroupRange angles[cpu::max_pairs], lengths[cpu::max_pairs];
    index_t repaired = 0;
    PolarPoint p;
    for (index_t i = 0; i < rows.rows; ++i) {
      const float* row = rows.data + i * rows.step;
      for (index_t c = 0; c < to.page.dim; ++c) repaired += static_cast<index_t>(needs_repair(row[c]));
      for (index_t j = 0; j < pairs; ++j) {
        if (!point_of(to, row, j, cut[j], p)) continue;
        lengths[j].include(p.length);
        if (p.length > 0.0f) angles[j].include(p.angle);
      }
    }
    cpu::PolarGroup group;
    float angle_inverse[cpu::max_pairs], length_inverse[cpu::max_pairs];
    for (index_t j = 0; j < pairs; ++j) {
      const GroupParams a = fit_bins(T, codec.params, angles[j]), l = fit_bins(R, codec.params, lengths[j]);
      group.angle_scale[j] = a.scale, group.angle_offset[j] = a.offset, angle_inverse[j] = a.inverse;
      group.length_scale[j] = l.scale, group.length_offset[j] = l.offset, length_inverse[j] = l.inverse;
      repaired += static_cast<index_t>(l.saturated);
    }
    std::uint8_t codes[cpu::max_pairs];
    for (index_t i = 0; i < rows.rows; ++i) {
      for (index_t j = 0; j < pairs; ++j) {
        point_of(to, rows.data + i * rows.step, j, cut[j], p);
        const std::int32_t length = bin_of<R>(p.length, group.length_offset[j], length_inverse[j]);
        const std::int32_t angle = bin_of<T>(p.angle, group.angle_offset[j], angle_inverse[j]);
        codes[j] = static_cast<std::uint8_t>(length << T | angle);
      }
      cpu::pack_codes<R + T>(codes, pairs, to.row(slot + i));
    }
    to.write_group(slot, group);
    return repaired;
  }

  /// Half a circle before the mean direction of every pair.
  static void find_cuts(const Page& to, RowBlock<const float> rows, float* cut) {
    double x[cpu::max_pairs] = {}, y[cpu::max_pairs] = {};
    PolarPoint p;
    for (index_t i = 0; i < rows.rows; ++i)
      for (index_t j = 0; j < to.pairs(); ++j)
        if (point_of(to, rows.data + i * rows.step, j, 0.0f, p) && p.length > 0.0f) {
          x[j] += std::cos(static_cast<double>(p.angle));
          y[j] += std::sin(static_cast<double>(p.angle));
        }
    for (index_t j = 0; j < to.pairs(); ++j) cut[j] = static_cast<float>(std::atan2(y[j], x[j]) - std::numbers::pi);
  }
};

}  // namespace kvcondense::prim
