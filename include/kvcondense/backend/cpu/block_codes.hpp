#pragma once

#include <algorithm>
#include <cstring>

#include <kvcondense/backend/cpu/block_codes_tile.hpp>
#include <kvcondense/backend/cpu/group_quant_rows.hpp>
#include <kvcondense/backend/cpu/scaled_tiles.hpp>
#include <kvcondense/core/backend.hpp>
#include <kvcondense/prim/block_codes.hpp>

namespace kvcondense::prim {

/// Small codes with block scales. `scores` scales the dot product of each block, `accumulate` the
/// weights; rows are never multiplied out.
///
/// Numbers   `encode` returns the repaired numbers: NaN (coded as 0), infinities and magnitudes beyond
///           `largest_coded` (clamped to the range of their block), numbers beyond a `fixed` scale's range,
///           and one more for every block whose scale or minimum did not fit its type.
template <>
struct PageCodec<Cpu, BlockCodes> {
 private:
  static auto loader(const BlockCodes& codec, PageSpan page, index_t first) {
    return [&codec, page, first](cpu::BlockTile& tile, index_t at, index_t n) { tile.load(codec, page, first + at, n); };
  }

 public:
  static index_t encode(const BlockCodes& codec, PageSpan page, index_t first, index_t count,
                        RowBlock<const float> rows) {
    index_t repaired = 0;
    for (index_t i = 0; i < count; ++i) {
      const float* x = rows.data + i * rows.step;
      std::byte* to = row(codec, page, first + i);
      if (codec.is_ggml()) {
        with_ggml_type(codec.ggml, [&]<GgmlType T>() { repaired += encode_ggml<T>(x, page.dim, to); });
      } else {
        repaired += with_element(codec, [&]<BlockElement E, Rounding R>() { return encode_row<E, R>(codec, x, page.dim, to); });
      }
    }
    return repaired;
  }

  static void decode(const BlockCodes& codec, PageSpan page, index_t first, index_t count, RowBlock<float> rows) {
    cpu::BlockTile tile(codec, page.dim);
    cpu::decode_tiles(tile, loader(codec, page, first), page.dim, count, rows);
  }

  static void move(const BlockCodes& codec, PageSpan to, index_t to_slot, PageSpan from, index_t from_slot) {
    std::memmove(row(codec, to, to_slot), row(codec, from, from_slot), static_cast<std::size_t>(codec.row_bytes(to.dim)));
  }

  static void scores(const BlockCodes& codec, PageSpan page, index_t first, index_t count,
                     RowBlock<const float> queries, RowBlock<float> out) {
    cpu::BlockTile tile(codec, page.dim);
    cpu::score_tiles(tile, loader(codec, page, first), page.dim, count, queries, out);
  }

  static void accumulate(const BlockCodes& codec, PageSpan page, index_t first, index_t count,
                         RowBlock<const float> weights, RowBlock<float> out) {
    cpu::BlockTile tile(codec, page.dim);
    cpu::add_tiles(tile, loader(codec, page, first), page.dim, count, weights, out);
  }

 private:
  static std::byte* row(const BlockCodes& codec, PageSpan page, index_t slot) {
    return page.data + slot * codec.row_bytes(page.dim);
  }

  /// Calls f with element and rounding as constants.
  template <class F>
  static index_t with_element(const BlockCodes& codec, F&& f) {
    const auto rounded = [&]<BlockElement E>() {
      return codec.rounding == Rounding::half_away ? f.template operator()<E, Rounding::half_away>()
                                                   : f.template operator()<E, Rounding::half_even>();
    };
    switch (codec.element) {
      case BlockElement::e2m1: return rounded.template operator()<BlockElement::e2m1>();
      case BlockElement::e2m3: return rounded.template operator()<BlockElement::e2m3>();
      case BlockElement::e3m2: return rounded.template operator()<BlockElement::e3m2>();
      case BlockElement::e4m3: return rounded.template operator()<BlockElement::e4m3>();
      case BlockElement::e5m2: return rounded.template operator()<BlockElement::e5m2>();
      case BlockElement::int2: return rounded.template operator()<BlockElement::int2>();
      case BlockElement::int3: return rounded.template operator()<BlockElement::int3>();
      case BlockElement::int4: return rounded.template operator()<BlockElement::int4>();
      case BlockElement::int5: return rounded.template operator()<BlockElement::int5>();
      case BlockElement::int6: return rounded.template operator()<BlockElement::int6>();
      case BlockElement::int7: return rounded.template operator()<BlockElement::int7>();
      case BlockElement::int8:
      case BlockElement::ggml: break;
    }
    return rounded.template operator()<BlockElement::int8>();
  }

  template <BlockElement E, Rounding R>
  static index_t encode_row(const BlockCodes& codec, const float* x, index_t dim, std::byte* to) {
    std::uint8_t codes[max_head_dim];
    index_t repaired = 0;
    const index_t group = codec.group(dim), bytes = codec.scale_bytes();
    std::byte* scales = to + codec.code_bytes(dim);
    for (index_t from = 0; from < dim; from += group, scales += bytes) {
      const index_t end = std::min(dim, from + group);
      const GroupRange range = cpu::range_of(x + from, end - from, repaired);
      const float amax = range.lo <= range.hi ? std::max(range.hi, -range.lo) : 0.0f;
      const BlockParams p = fit_block(E, codec.scale, codec.factor, amax);
      std::memcpy(scales, &p.stored, static_cast<std::size_t>(bytes));
      repaired += static_cast<index_t>(p.saturated);
      const bool fixed = codec.scale == BlockScale::fixed;
      const float limit = fixed ? 2.0f * largest_coded : amax, inverse = p.inverse;
      for (index_t c = from; c < end; ++c)
        codes[c] = code_of_element<E, R>(limit_to(without_nan(x[c]), limit) * inverse);
      if (fixed) repaired += beyond(x + from, end - from, largest_of(E), inverse);
    }
    cpu::pack_codes<bits_of(E)>(codes, dim, to);
    return repaired;
  }

  template <BlockElement E, Rounding R>
  static std::uint8_t code_of_element(float y) {
    if constexpr (is_integer(E))
      return static_cast<std::uint8_t>(round_code(R, limit_to(y, largest_of(E)) * (1.0f / unit_of(E))) & ((1 << bits_of(E)) - 1));
    else
      return static_cast<std::uint8_t>(mini_float_code<mini_float_of(E), R>(y));
  }

  /// Numbers that a fixed scale cannot reach, without those that are repaired for being infinite.
  static index_t beyond(const float* x, index_t n, float top, float inverse) {
    std::int32_t many = 0;
    for (index_t c = 0; c < n; ++c) {
      const float y = without_nan(x[c]) * inverse;
      many += static_cast<std::int32_t>(!needs_repair(x[c]) && (y > top || y < -top));
    }
    return many;
  }

  /// Blocks get finite numbers: NaN as 0, infinities as the end of the range of the others.
  template <GgmlType T>
  static index_t encode_ggml(const float* x, index_t dim, std::byte* to) {
    constexpr GgmlShape shape = ggml_shape(T);
    index_t repaired = 0;
    float clean[static_cast<std::size_t>(shape.numbers)];
    for (index_t from = 0; from < dim; from += shape.numbers, to += shape.bytes) {
      for (index_t g = 0; g < shape.numbers; g += shape.group) {
        const float* in = x + from + g;
        const index_t before = repaired;
        GroupRange range = cpu::range_of(in, shape.group, repaired);
        if (repaired == before) {
          std::copy_n(in, shape.group, clean + g);
          continue;
        }
        if (!(range.lo <= range.hi)) range = {0.0f, 0.0f};
        const float top = std::max(range.hi, -range.lo);
        const float lo = has_minimum(T) ? range.lo : -top, hi = has_minimum(T) ? range.hi : top;
        for (index_t i = 0; i < shape.group; ++i) clean[g + i] = std::clamp(without_nan(in[i]), lo, hi);
      }
      repaired += static_cast<index_t>(ggml_encode<T>(clean, to));
    }
    return repaired;
  }
};

}  // namespace kvcondense::prim
