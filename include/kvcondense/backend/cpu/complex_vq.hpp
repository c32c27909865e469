#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>

#include <kvcondense/backend/cpu/clean_row.hpp>
#include <kvcondense/backend/cpu/group_quant_bits.hpp>
#include <kvcondense/backend/cpu/scaled_tiles.hpp>
#include <kvcondense/core/backend.hpp>
#include <kvcondense/prim/complex_vq.hpp>

namespace kvcondense::prim {

/// Codewords are added up once for all rows of a block, a tile at a time; the length of a row multiplies its dot product, or
/// its weight.
///
/// Numbers   `encode` returns the repaired numbers: NaN (coded as 0), infinities and magnitudes beyond `largest_coded`
///           (clamped to the largest of their row's others), and one for every length that fp16 does not hold.
template <>
struct PageCodec<Cpu, ComplexVq> {
 private:
  static std::byte* row(const ComplexVq& codec, PageSpan page, index_t slot) { return page.data + slot * codec.row_bytes(); }


  /// x[:] += z
  static void add(const float* z, index_t dim, float* KVCONDENSE_RESTRICT x) {
    for (index_t c = 0; c < dim; ++c) x[c] += z[c];
  }
  /// x[:] += i z: (re, im) becomes (-im, re).
  static void add_turned(const ComplexVq& codec, const float* z, float* KVCONDENSE_RESTRICT x) {
    for (index_t j = 0; j < codec.channels / 2; ++j) {
      x[codec.first_of(j)] -= z[codec.second_of(j)];
      x[codec.second_of(j)] += z[codec.first_of(j)];
    }
  }

  static auto loader(const ComplexVq& codec, PageSpan page, index_t first) {
    return [&codec, page, first](cpu::ScaledTile& tile, index_t at, index_t n) {
      std::uint8_t codes[ComplexVq::most_codes + cpu::code_step];
      for (index_t i = 0; i < n; ++i) {
        const std::byte* from = row(codec, page, first + at + i);
        cpu::with_bits<8>(codec.code_bits(), [&]<int Bits>() { cpu::unpack_codes<Bits>(from, codec.codes(), codes); });
        float* x = tile.elements + i * tile.width;
        std::fill_n(x, page.dim, 0.0f);
        for (index_t s = 0; s < codec.stages; ++s) {
          add(codec.word(s, known(codec, codes[2 * s])), page.dim, x);
          add_turned(codec, codec.word(s, known(codec, codes[2 * s + 1])), x);
        }
        std::uint16_t half;
        std::memcpy(&half, from + codec.code_bytes(), sizeof half);
        tile.scale[i] = kvcondense::detail::half_value(half);
      }
    };
  }
  /// A damaged code must not lead out of the book.
  static index_t known(const ComplexVq& codec, std::uint8_t code) { return std::min<index_t>(code, codec.base - 1); }

 public:
  static index_t encode(const ComplexVq& codec, PageSpan page, index_t first, index_t count, RowBlock<const float> rows) {
    index_t repaired = 0;
    for (index_t i = 0; i < count; ++i)
      repaired += encode_row(codec, rows.data + i * rows.step, page.dim, row(codec, page, first + i));
    return repaired;
  }
  static void decode(const ComplexVq& codec, PageSpan page, index_t first, index_t count, RowBlock<float> rows) {
    cpu::ScaledTile tile(page.dim, page.dim, false);
    cpu::decode_tiles(tile, loader(codec, page, first), page.dim, count, rows);
  }
  static void move(const ComplexVq& codec, PageSpan to, index_t to_slot, PageSpan from, index_t from_slot) {
    std::memmove(row(codec, to, to_slot), row(codec, from, from_slot), static_cast<std::size_t>(codec.row_bytes()));
  }
  static void scores(const ComplexVq& codec, PageSpan page, index_t first, index_t count, RowBlock<const float> queries,
                     RowBlock<float> out) {
    cpu::ScaledTile tile(page.dim, page.dim, false);
    cpu::score_tiles(tile, loader(codec, page, first), page.dim, count, queries, out);
  }
  static void accumulate(const ComplexVq& codec, PageSpan page, index_t first, index_t count, RowBlock<const float> weights,
                         RowBlock<float> out) {
    cpu::ScaledTile tile(page.dim, page.dim, false);
    cpu::add_tiles(tile, loader(codec, page, first), page.dim, count, weights, out);
  }

 private:
  static index_t encode_row(const ComplexVq& codec, const float* in, index_t dim, std::byte* to) {
    float rest[max_head_dim];
    index_t repaired = cpu::clean_row(in, dim, rest);
    float length = 1.0f;
    if (codec.lengths) {
      double square = 0.0;
      for (index_t c = 0; c < dim; ++c) square += static_cast<double>(rest[c]) * static_cast<double>(rest[c]);
      bool saturated = false;
      length = stored(ParamType::f16, static_cast<float>(std::sqrt(square)), saturated);
      repaired += static_cast<index_t>(saturated);
      const float inverse = length > 0.0f ? 1.0f / length : 0.0f;
      for (index_t c = 0; c < dim; ++c) rest[c] = limit_to(rest[c] * inverse, 1e6f);
    } else {
      for (index_t c = 0; c < dim; ++c) rest[c] = limit_to(rest[c], 1e6f);
    }
    std::uint8_t codes[ComplexVq::most_codes];
    for (index_t s = 0; s < codec.stages; ++s) choose(codec, s, rest, codes + 2 * s);
    cpu::with_bits<8>(codec.code_bits(), [&]<int Bits>() { cpu::pack_codes<Bits>(codes, codec.codes(), to); });
    const std::uint16_t half = kvcondense::detail::half_bits(length);
    std::memcpy(to + codec.code_bytes(), &half, sizeof half);
    return repaired;
  }

  /// The codes of a stage; `rest` becomes what they leave.
  static void choose(const ComplexVq& codec, index_t stage, float* rest, std::uint8_t* code) {
    const index_t dim = codec.channels;
    float square[ComplexVq::most_base], turned[max_head_dim], left[max_head_dim];
    std::int32_t order[ComplexVq::most_base];
    for (index_t a = 0; a < codec.base; ++a) square[a] = far(rest, codec.word(stage, a), dim);
    std::iota(order, order + codec.base, 0);
    const index_t beam = std::min(codec.beam, codec.base);
    std::partial_sort(order, order + beam, order + codec.base,
                      [&](std::int32_t a, std::int32_t b) { return square[a] != square[b] ? square[a] < square[b] : a < b; });
    std::sort(order, order + beam);  // of equal pairs the first
    float least = HUGE_VALF;
    code[0] = code[1] = 0;
    for (index_t k = 0; k < beam; ++k) {
      const float* z = codec.word(stage, order[k]);
      for (index_t c = 0; c < dim; ++c) left[c] = rest[c] - z[c];
      // |left - i z| = |-i left - z|: the rest is turned once, not every codeword.
      for (index_t j = 0; j < dim / 2; ++j) {
        turned[codec.first_of(j)] = left[codec.second_of(j)];
        turned[codec.second_of(j)] = -left[codec.first_of(j)];
      }
      for (index_t b = 0; b < codec.base; ++b) {
        const float error = far(turned, codec.word(stage, b), dim);
        if (!(error < least)) continue;
        least = error, code[0] = static_cast<std::uint8_t>(order[k]), code[1] = static_cast<std::uint8_t>(b);
      }
    }
    float sum[max_head_dim] = {};
    add(codec.word(stage, code[0]), dim, sum);
    add_turned(codec, codec.word(stage, code[1]), sum);
    for (index_t c = 0; c < dim; ++c) rest[c] -= sum[c];
  }

  /// Square distance.
  static float far(const float* a, const float* b, index_t n) {
    cpu::Lanes sum{}, x, y;
    index_t i = 0;
    for (; i + cpu::lanes <= n; i += cpu::lanes) {
      cpu::load(x, a + i), cpu::load(y, b + i);
      sum += (x - y) * (x - y);
    }
    float s = cpu::sum_lanes(sum);
    for (; i < n; ++i) s += (a[i] - b[i]) * (a[i] - b[i]);
    return s;
  }
};

}  // namespace kvcondense::prim
