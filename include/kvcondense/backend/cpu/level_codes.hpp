#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>

#include <kvcondense/backend/cpu/clean_row.hpp>
#include <kvcondense/backend/cpu/group_quant_bits.hpp>
#include <kvcondense/backend/cpu/scaled_tiles.hpp>
#include <kvcondense/core/backend.hpp>
#include <kvcondense/prim/group_quant.hpp>
#include <kvcondense/prim/level_codes.hpp>

namespace kvcondense::prim {

/// Codes are looked up once for all rows of a block; the scale of a row multiplies its dot product, or its weight.
///
/// Numbers   `encode` returns the repaired numbers: NaN (coded as 0), infinities and magnitudes beyond `largest_coded`
///           (clamped to the largest of the others), and one more for every row whose scale did not fit fp16. The
///           length is a sum in double. A row of zeros has scale 0.
template <>
struct PageCodec<Cpu, LevelCodes> {
 private:
  static std::byte* row(const LevelCodes& codec, PageSpan page, index_t slot) {
    return page.data + slot * codec.row_bytes(page.dim);
  }
  static auto loader(const LevelCodes& codec, PageSpan page, index_t first) {
    std::array<float, 16> values{};
    for (int c = 0; c < 1 << codec.bits; ++c) values[static_cast<std::size_t>(c)] = codec.value(c);
    return [&codec, page, first, values](cpu::ScaledTile& tile, index_t at, index_t n) {
      std::uint8_t codes[max_head_dim + cpu::code_step];
      cpu::with_bits<4>(codec.bits, [&]<int Bits>() {
        for (index_t i = 0; i < n; ++i) {
          const std::byte* from = row(codec, page, first + at + i);
          cpu::unpack_codes<Bits>(from, page.dim, codes);
          float* to = tile.elements + i * tile.width;
          for (index_t c = 0; c < page.dim; ++c) to[c] = values[codes[c]];
          std::uint16_t half;
          std::memcpy(&half, from + codec.code_bytes(page.dim), sizeof half);
          tile.scale[i] = kvcondense::detail::half_value(half);
        }
      });
    };
  }

 public:
  static index_t encode(const LevelCodes& codec, PageSpan page, index_t first, index_t count, RowBlock<const float> rows) {
    index_t repaired = 0;
    cpu::with_bits<4>(codec.bits, [&]<int Bits>() {
      for (index_t i = 0; i < count; ++i)
        repaired += encode_row<Bits>(codec, rows.data + i * rows.step, page.dim, row(codec, page, first + i));
    });
    return repaired;
  }

  static void decode(const LevelCodes& codec, PageSpan page, index_t first, index_t count, RowBlock<float> rows) {
    cpu::ScaledTile tile(page.dim, page.dim, false);
    cpu::decode_tiles(tile, loader(codec, page, first), page.dim, count, rows);
  }
  static void move(const LevelCodes& codec, PageSpan to, index_t to_slot, PageSpan from, index_t from_slot) {
    std::memmove(row(codec, to, to_slot), row(codec, from, from_slot), static_cast<std::size_t>(codec.row_bytes(to.dim)));
  }
  static void scores(const LevelCodes& codec, PageSpan page, index_t first, index_t count, RowBlock<const float> queries,
                     RowBlock<float> out) {
    cpu::ScaledTile tile(page.dim, page.dim, false);
    cpu::score_tiles(tile, loader(codec, page, first), page.dim, count, queries, out);
  }
  static void accumulate(const LevelCodes& codec, PageSpan page, index_t first, index_t count,
                         RowBlock<const float> weights, RowBlock<float> out) {
    cpu::ScaledTile tile(page.dim, page.dim, false);
    cpu::add_tiles(tile, loader(codec, page, first), page.dim, count, weights, out);
  }

 private:
  template <int Bits>
  static index_t encode_row(const LevelCodes& codec, const float* in, index_t dim, std::byte* to) {
    float x[max_head_dim];
    const index_t repaired = cpu::clean_row(in, dim, x);
    double square = 0.0;
    for (index_t c = 0; c < dim; ++c) square += static_cast<double>(x[c]) * static_cast<double>(x[c]);
    const double length = std::sqrt(square);
    const auto inverse = static_cast<float>(length > 0.0 ? 1.0 / length : 0.0);
    std::uint8_t codes[max_head_dim];
    double own = 0.0, shared = 0.0;  // of the levels with themselves, and with the row over its length
    for (index_t c = 0; c < dim; ++c) {
      const float u = x[c] * inverse;
      codes[c] = code_of<Bits>(codec, u);
      const auto v = static_cast<double>(codec.value(codes[c]));
      own += v * v, shared += v * static_cast<double>(u);
    }
    double scale = length;
    if (codec.scale == LevelScale::unit) scale /= std::sqrt(own);
    if (codec.scale == LevelScale::least_squares) scale *= shared / own;
    bool saturated = false;
    const std::uint16_t half = kvcondense::detail::half_bits(stored(ParamType::f16, static_cast<float>(scale), saturated));
    cpu::pack_codes<Bits>(codes, dim, to);
    std::memcpy(to + codec.code_bytes(dim), &half, sizeof half);
    return repaired + static_cast<index_t>(saturated);
  }

  /// Midpoints at or below u.
  template <int Bits>
  static std::uint8_t code_of(const LevelCodes& codec, float u) {
    constexpr int half = 1 << (Bits - 1);
    int above = 0;  // midpoints of the positive half at or below |u|, or strictly below it on the other side
    const float size = std::fabs(u);
    for (int i = 0; i + 1 < half; ++i) {
      const float middle = 0.5f * (codec.level[static_cast<std::size_t>(i)] + codec.level[static_cast<std::size_t>(i) + 1]);
      above += u < 0.0f ? size > middle : size >= middle;
    }
    return static_cast<std::uint8_t>(u < 0.0f ? half - 1 - above : half + above);
  }
};

}  // namespace kvcondense::prim
