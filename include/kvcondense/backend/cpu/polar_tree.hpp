#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <numbers>

#include <kvcondense/backend/cpu/clean_row.hpp>
#include <kvcondense/backend/cpu/group_quant_bits.hpp>
#include <kvcondense/backend/cpu/scaled_tiles.hpp>
#include <kvcondense/core/backend.hpp>
#include <kvcondense/prim/polar_tree.hpp>

namespace kvcondense::prim {

/// Directions of blocks are multiplied out of cosines and sines once for all rows of a block of queries; the length of a
/// block scales its part of the dot product, or its weight.
///
/// Numbers   `encode` returns the repaired numbers: NaN (coded as 0), infinities and magnitudes beyond `largest_coded`
///           (clamped to the largest of their row's others), and one more for every length that fp16 does not hold.
template <>
struct PageCodec<Cpu, PolarTree> {
 private:
  static std::byte* row(const PolarTree& codec, PageSpan page, index_t slot) {
    return page.data + slot * codec.row_bytes(page.dim);
  }

  struct Direction {
    float cos, sin;
  };
  using Circle = std::array<Direction, 64>;

  /// The middles of 2^bits equal parts of the circle.
  static const Circle& circle(int bits) {
    static const std::array<Circle, 7> all = [] {
      std::array<Circle, 7> c{};
      for (int b = 1; b <= 6; ++b)
        for (int i = 0; i < 1 << b; ++i) {
          const double a = 2.0 * std::numbers::pi * (i + 0.5) / (1 << b);
          c[static_cast<std::size_t>(b)][static_cast<std::size_t>(i)] = {static_cast<float>(std::cos(a)), static_cast<float>(std::sin(a))};
        }
      return c;
    }();
    return all[static_cast<std::size_t>(bits)];
  }


  static auto loader(const PolarTree& codec, PageSpan page, index_t first) {
    std::array<std::array<Direction, 8>, PolarTree::most_levels + 1> table{};
    for (index_t l = 2; l <= codec.levels; ++l)
      for (int c = 0; c < 1 << codec.bits; ++c) {
        const float a = codec.angle_of(l, c);
        table[static_cast<std::size_t>(l)][static_cast<std::size_t>(c)] = {std::cos(a), std::sin(a)};
      }
    return [&codec, page, first, table](cpu::ScaledTile& tile, index_t at, index_t n) {
      const index_t dim = page.dim;
      std::uint8_t codes[max_head_dim + cpu::code_step];
      float directions[2][max_head_dim];
      for (index_t i = 0; i < n; ++i) {
        const std::byte* from = row(codec, page, first + at + i);
        const std::byte* level = from + codec.code_bytes(dim);
        for (index_t j = 0; j < dim / codec.block(); ++j) {
          std::uint16_t half;
          std::memcpy(&half, level + 2 * j, sizeof half);
          tile.scale[j * cpu::tile_slots + i] = kvcondense::detail::half_value(half);
        }
        float* above = directions[0];
        std::fill_n(above, dim / codec.block(), 1.0f);
        for (index_t l = codec.levels; l >= 1; --l) {
          level -= codec.level_bytes(l, dim);
          cpu::with_bits<6>(codec.bits_of(l), [&]<int Bits>() { cpu::unpack_codes<Bits>(level, dim >> l, codes); });
          const Direction* d = l == 1 ? circle(codec.first_bits).data() : table[static_cast<std::size_t>(l)].data();
          float* below = l == 1 ? tile.elements + i * tile.width : above == directions[0] ? directions[1] : directions[0];
          for (index_t k = 0; k < dim >> l; ++k) {
            below[2 * k] = above[k] * d[codes[k]].cos;
            below[2 * k + 1] = above[k] * d[codes[k]].sin;
          }
          above = below;
        }
      }
    };
  }

 public:
  static index_t encode(const PolarTree& codec, PageSpan page, index_t first, index_t count, RowBlock<const float> rows) {
    index_t repaired = 0;
    for (index_t i = 0; i < count; ++i)
      repaired += encode_row(codec, rows.data + i * rows.step, page.dim, row(codec, page, first + i));
    return repaired;
  }

  static void decode(const PolarTree& codec, PageSpan page, index_t first, index_t count, RowBlock<float> rows) {
    cpu::ScaledTile tile(page.dim, codec.block(), false);
    cpu::decode_tiles(tile, loader(codec, page, first), page.dim, count, rows);
  }
  static void move(const PolarTree& codec, PageSpan to, index_t to_slot, PageSpan from, index_t from_slot) {
    std::memmove(row(codec, to, to_slot), row(codec, from, from_slot), static_cast<std::size_t>(codec.row_bytes(to.dim)));
  }
  static void scores(const PolarTree& codec, PageSpan page, index_t first, index_t count, RowBlock<const float> queries,
                     RowBlock<float> out) {
    cpu::ScaledTile tile(page.dim, codec.block(), false);
    cpu::score_tiles(tile, loader(codec, page, first), page.dim, count, queries, out);
  }
  static void accumulate(const PolarTree& codec, PageSpan page, index_t first, index_t count, RowBlock<const float> weights,
                         RowBlock<float> out) {
    cpu::ScaledTile tile(page.dim, codec.block(), false);
    cpu::add_tiles(tile, loader(codec, page, first), page.dim, count, weights, out);
  }

 private:
  static index_t encode_row(const PolarTree& codec, const float* in, index_t dim, std::byte* to) {
    float x[max_head_dim];
    index_t repaired = cpu::clean_row(in, dim, x);
    std::uint8_t codes[PolarTree::most_levels + 1][max_head_dim];
    const index_t block = codec.block(), blocks = dim / block;
    std::byte* lengths = to + codec.code_bytes(dim);
    for (index_t j = 0; j < blocks; ++j) {
      double angles[max_head_dim];
      const double* angle = angles;
      bool saturated = false;
      const float length = stored(ParamType::f16, static_cast<float>(polar_tree(x + j * block, codec.levels, angles)), saturated);
      repaired += static_cast<index_t>(saturated);
      const std::uint16_t half = kvcondense::detail::half_bits(length);
      std::memcpy(lengths + 2 * j, &half, sizeof half);
      for (index_t l = 1; l <= codec.levels; ++l)
        for (index_t k = 0; k < block >> l; ++k, ++angle)
          codes[l][j * (block >> l) + k] = static_cast<std::uint8_t>(l == 1 ? bin_of(codec, *angle) : level_of(codec, l, *angle));
    }
    for (index_t l = 1; l <= codec.levels; ++l) {
      cpu::with_bits<6>(codec.bits_of(l), [&]<int Bits>() { cpu::pack_codes<Bits>(codes[l], dim >> l, to); });
      to += codec.level_bytes(l, dim);
    }
    return repaired;
  }

  static int bin_of(const PolarTree& codec, double angle) {
    const int bins = 1 << codec.first_bits;
    return std::min(static_cast<int>(angle / (2.0 * std::numbers::pi) * bins), bins - 1);
  }
  /// Middles between angles that lie at or below this one.
  static int level_of(const PolarTree& codec, index_t level, double angle) {
    int code = 0;
    for (int c = 0; c + 1 < 1 << codec.bits; ++c) {
      const double middle = 0.5 * (static_cast<double>(codec.angle_of(level, c)) + static_cast<double>(codec.angle_of(level, c + 1)));
      code += angle >= middle;
    }
    return code;
  }
};

}  // namespace kvcondense::prim
