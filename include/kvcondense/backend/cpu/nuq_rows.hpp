#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <numeric>

#include <kvcondense/backend/cpu/clean_row.hpp>
#include <kvcondense/backend/cpu/group_quant_bits.hpp>
#include <kvcondense/backend/cpu/scaled_tiles.hpp>
#include <kvcondense/core/backend.hpp>
#include <kvcondense/prim/nuq_rows.hpp>

namespace kvcondense::prim {

/// Codes are looked up once for all rows of a block. Ranges of channels are folded into queries and sums, those of rows into
/// scores and weights; an outlier is one product more.
///
/// Numbers   `encode` returns the repaired numbers: NaN (coded as 0), infinities and magnitudes beyond `largest_coded`
///           (clamped to the largest of their row's others), and one for every addend or range that fp16 does not hold.
template <>
struct PageCodec<Cpu, NuqRows> {
 private:
  static std::byte* row(const NuqRows& codec, PageSpan page, index_t slot) {
    return page.data + slot * codec.row_bytes(page.dim);
  }
  static auto loader(const NuqRows& codec, PageSpan page, index_t first) {
    return [&codec, page, first](cpu::ScaledTile& tile, index_t at, index_t n) {
      std::uint8_t codes[max_head_dim + cpu::code_step];
      cpu::with_bits<4>(codec.bits, [&]<int Bits>() {
        for (index_t i = 0; i < n; ++i) {
          const std::byte* from = row(codec, page, first + at + i);
          cpu::unpack_codes<Bits>(from, page.dim, codes);
          float* to = tile.elements + i * tile.width;
          for (index_t c = 0; c < page.dim; ++c) to[c] = codec.level[codes[c]];
          tile.scale[i] = 1.0f;
          if (codec.fixed()) continue;
          cpu::read_numbers(ParamType::f16, from + codec.code_bytes(page.dim), 1, tile.base + i);
          cpu::read_numbers(ParamType::f16, from + codec.code_bytes(page.dim) + 2, 1, tile.scale + i);
        }
      });
    };
  }
  /// Calls f(slot - first, channel, addend) for all places of outliers.
  template <class F>
  static void each_outlier(const NuqRows& codec, PageSpan page, index_t first, index_t count, F&& f) {
    for (index_t i = 0; i < (codec.outliers == 0 ? 0 : count); ++i) {
      const std::byte* addends = row(codec, page, first + i) + codec.addends_at(page.dim);
      const std::byte* places = addends + 2 * codec.outliers;
      for (index_t e = 0; e < codec.outliers; ++e) {
        float v;
        cpu::read_numbers(ParamType::f16, addends + 2 * e, 1, &v);
        f(i, std::min(static_cast<index_t>(places[e]), page.dim - 1), v);  // a damaged place must not lead astray
      }
    }
  }

 public:
  static index_t encode(const NuqRows& codec, PageSpan page, index_t first, index_t count, RowBlock<const float> rows) {
    index_t repaired = 0;
    cpu::with_bits<4>(codec.bits, [&]<int Bits>() {
      for (index_t i = 0; i < count; ++i)
        repaired += encode_row<Bits>(codec, rows.data + i * rows.step, page.dim, row(codec, page, first + i));
    });
    return repaired;
  }

  static void decode(const NuqRows& codec, PageSpan page, index_t first, index_t count, RowBlock<float> rows) {
    cpu::ScaledTile tile(page.dim, page.dim, !codec.fixed());
    cpu::decode_tiles(tile, loader(codec, page, first), page.dim, count, rows);
    for (index_t i = 0; i < (codec.fixed() ? count : 0); ++i)
      for (index_t c = 0; c < page.dim; ++c) {
        float& x = rows.data[i * rows.step + c];
        x = x * codec.half(c) + codec.middle(c);
      }
    each_outlier(codec, page, first, count, [&](index_t i, index_t c, float v) { rows.data[i * rows.step + c] += v; });
  }

  static void move(const NuqRows& codec, PageSpan to, index_t to_slot, PageSpan from, index_t from_slot) {
    std::memmove(row(codec, to, to_slot), row(codec, from, from_slot), static_cast<std::size_t>(codec.row_bytes(to.dim)));
  }

  static void scores(const NuqRows& codec, PageSpan page, index_t first, index_t count, RowBlock<const float> queries,
                     RowBlock<float> out) {
    const index_t dim = page.dim;
    cpu::ScaledTile tile(dim, dim, !codec.fixed());
    alignas(64) float folded[cpu::fold_rows * max_head_dim];
    float zero[cpu::fold_rows];
    cpu::by_rows(queries, out, [&](RowBlock<const float> q, RowBlock<float> o) {
      if (codec.fixed()) {
        for (index_t r = 0; r < q.rows; ++r) {
          zero[r] = 0.0f;
          for (index_t c = 0; c < dim; ++c) {
            const float v = q.data[r * q.step + c];
            folded[r * dim + c] = v * codec.half(c);
            zero[r] += v * codec.middle(c);
          }
        }
        cpu::score_tiles(tile, loader(codec, page, first), dim, count, {folded, q.rows, dim}, o);
        for (index_t r = 0; r < q.rows; ++r)
          for (index_t i = 0; i < count; ++i) o.data[r * o.step + i] += zero[r];
      } else {
        cpu::score_tiles(tile, loader(codec, page, first), dim, count, q, o);
      }
      each_outlier(codec, page, first, count, [&](index_t i, index_t c, float v) {
        for (index_t r = 0; r < q.rows; ++r) o.data[r * o.step + i] += q.data[r * q.step + c] * v;
      });
    });
  }

  static void accumulate(const NuqRows& codec, PageSpan page, index_t first, index_t count, RowBlock<const float> weights,
                         RowBlock<float> out) {
    const index_t dim = page.dim;
    cpu::ScaledTile tile(dim, dim, !codec.fixed());
    alignas(64) float sums[cpu::fold_rows * max_head_dim];
    cpu::by_rows(weights, out, [&](RowBlock<const float> w, RowBlock<float> o) {
      if (codec.fixed()) {
        std::fill_n(sums, w.rows * dim, 0.0f);
        cpu::add_tiles(tile, loader(codec, page, first), dim, count, w, {sums, w.rows, dim});
        for (index_t r = 0; r < w.rows; ++r) {
          float total = 0.0f;
          for (index_t i = 0; i < count; ++i) total += w.data[r * w.step + i];
          for (index_t c = 0; c < dim; ++c)
            o.data[r * o.step + c] += sums[r * dim + c] * codec.half(c) + total * codec.middle(c);
        }
      } else {
        cpu::add_tiles(tile, loader(codec, page, first), dim, count, w, o);
      }
      each_outlier(codec, page, first, count, [&](index_t i, index_t c, float v) {
        for (index_t r = 0; r < w.rows; ++r) o.data[r * o.step + c] += w.data[r * w.step + i] * v;
      });
    });
  }

 private:
  template <int Bits>
  static index_t encode_row(const NuqRows& codec, const float* in, index_t dim, std::byte* to) {
    float x[max_head_dim], middle[max_head_dim], half[max_head_dim], beyond[max_head_dim];
    index_t repaired = cpu::clean_row(in, dim, x);
    const auto fp16 = [&](float v) {
      bool saturated = false;
      const float s = stored(ParamType::f16, v, saturated);
      repaired += static_cast<index_t>(saturated);
      return s;
    };
    // How far each number lies outside its range; the farthest are outliers.
    std::int32_t order[max_head_dim];
    std::iota(order, order + dim, 0);
    if (codec.fixed()) {
      for (index_t c = 0; c < dim; ++c) {
        middle[c] = codec.middle(c), half[c] = codec.half(c);
        beyond[c] = std::max({x[c] - codec.upper[c], codec.lower[c] - x[c], 0.0f});
      }
      std::partial_sort(order, order + codec.outliers, order + dim, [&](std::int32_t a, std::int32_t b) {
        return beyond[a] != beyond[b] ? beyond[a] > beyond[b] : a < b;
      });
    } else {
      const index_t each = codec.outliers / 2;
      std::partial_sort(order, order + each, order + dim,
                        [&](std::int32_t a, std::int32_t b) { return x[a] != x[b] ? x[a] > x[b] : a < b; });
      std::partial_sort(order + each, order + 2 * each, order + dim,
                        [&](std::int32_t a, std::int32_t b) { return x[a] != x[b] ? x[a] < x[b] : a < b; });
      float lo = x[order[2 * each]], hi = lo;
      for (index_t k = 2 * each; k < dim; ++k) lo = std::min(lo, x[order[k]]), hi = std::max(hi, x[order[k]]);
      const float range[2] = {fp16(0.5f * lo + 0.5f * hi), fp16(0.5f * hi - 0.5f * lo)};
      cpu::write_numbers(ParamType::f16, range, 2, to + codec.code_bytes(dim));
      std::fill_n(middle, dim, range[0]), std::fill_n(half, dim, range[1]);
      for (index_t c = 0; c < dim; ++c) beyond[c] = std::max({x[c] - hi, lo - x[c], 0.0f});
    }
    std::uint8_t codes[max_head_dim];
    for (index_t c = 0; c < dim; ++c) {
      const float inverse = half[c] >= smallest_step ? 1.0f / half[c] : 0.0f;
      codes[c] = code_of<Bits>(codec, limit_to((x[c] - middle[c]) * inverse, 1e30f));
    }
    cpu::pack_codes<Bits>(codes, dim, to);
    std::byte* places = to + codec.addends_at(dim) + 2 * codec.outliers;
    std::sort(order, order + codec.outliers);
    for (index_t e = 0; e < codec.outliers; ++e) {
      const std::int32_t c = order[e];
      const float addend = beyond[c] > 0.0f ? fp16(x[c] - (codec.level[codes[c]] * half[c] + middle[c])) : 0.0f;
      cpu::write_numbers(ParamType::f16, &addend, 1, to + codec.addends_at(dim) + 2 * e);
      places[e] = static_cast<std::byte>(c);
    }
    return repaired;
  }

  /// Midpoints at or below u.
  template <int Bits>
  static std::uint8_t code_of(const NuqRows& codec, float u) {
    std::uint8_t code = 0;
    for (std::size_t i = 0; i + 1 < std::size_t{1} << Bits; ++i)
      code = static_cast<std::uint8_t>(code + (u >= 0.5f * (codec.level[i] + codec.level[i + 1])));
    return code;
  }
};

}  // namespace kvcondense::prim
