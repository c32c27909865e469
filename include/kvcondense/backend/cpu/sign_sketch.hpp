#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numbers>
#include <numeric>

#include <kvcondense/backend/cpu/clean_row.hpp>
#include <kvcondense/backend/cpu/group_quant_bits.hpp>
#include <kvcondense/backend/cpu/group_quant_tile.hpp>
#include <kvcondense/backend/cpu/row_transform.hpp>
#include <kvcondense/backend/cpu/slot_groups.hpp>
#include <kvcondense/core/backend.hpp>
#include <kvcondense/core/random.hpp>
#include <kvcondense/prim/sign_sketch.hpp>

namespace kvcondense::prim {

namespace cpu {

inline constexpr index_t sketch_rows = 16;  ///< query or weight rows that share one unpacking; bounds the stack

/// Block `k` of the directions of a sketch without a matrix.
inline void turn_block(const SignSketch& s, index_t k, bool back, index_t dim, float* x) {
  const auto map = [&](std::uint64_t round) {
    const Hadamard h{0, random_bits(s.seed, static_cast<std::uint64_t>(2 * k) + round) | 1u, true};
    if (back) RowTransform<Cpu, Hadamard>::backward(h, dim, {x, 1, dim});
    else RowTransform<Cpu, Hadamard>::forward(h, dim, {x, 1, dim});
  };
  map(back ? 1 : 0), map(back ? 0 : 1);
}

/// y[j] = s_j . x
inline void project(const SignSketch& s, index_t dim, const float* x, float* y) {
  if (s.matrix != nullptr) {
    for (index_t j = 0; j < s.bits; ++j) y[j] = dot(s.matrix + j * dim, x, dim);
    return;
  }
  const float length = std::sqrt(static_cast<float>(dim));
  float turned[max_head_dim];
  for (index_t k = 0; k * dim < s.bits; ++k) {
    std::copy_n(x, dim, turned);
    turn_block(s, k, false, dim, turned);
    const index_t n = std::min(dim, s.bits - k * dim);
    for (index_t j = 0; j < n; ++j) y[k * dim + j] = length * turned[j];
  }
}

/// x[:] += sum_j y[j] s_j
inline void add_back(const SignSketch& s, index_t dim, const float* y, float* x) {
  if (s.matrix != nullptr) {
    for (index_t j = 0; j < s.bits; ++j)
      for (index_t c = 0; c < dim; ++c) x[c] += y[j] * s.matrix[j * dim + c];
    return;
  }
  const float length = std::sqrt(static_cast<float>(dim));
  float turned[max_head_dim];
  for (index_t k = 0; k * dim < s.bits; ++k) {
    const index_t n = std::min(dim, s.bits - k * dim);
    std::copy_n(y + k * dim, n, turned);
    std::fill(turned + n, turned + dim, 0.0f);
    turn_block(s, k, true, dim, turned);
    for (index_t c = 0; c < dim; ++c) x[c] += length * turned[c];
  }
}

/// Signs and lengths of consecutive slots, `step` bytes apart.
struct SignRows {
  const SignSketch& sketch;
  index_t dim, step;
  std::byte *signs, *lengths;

  float unit() const { return std::sqrt(std::numbers::pi_v<float> / 2.0f) / static_cast<float>(sketch.bits); }

  /// Returns whether the length did not fit fp16.
  bool write(index_t slot, const float* x) const {
    float y[SignSketch::most_bits];
    project(sketch, dim, x, y);
    std::uint8_t codes[SignSketch::most_bits];
    for (index_t j = 0; j < sketch.bits; ++j) codes[j] = y[j] > 0.0f;
    pack_codes<1>(codes, sketch.bits, signs + slot * step);
    double square = 0.0;
    for (index_t c = 0; c < dim; ++c) square += static_cast<double>(x[c]) * static_cast<double>(x[c]);
    bool saturated = false;
    const float length = stored(ParamType::f16, static_cast<float>(std::sqrt(square)), saturated);
    write_numbers(ParamType::f16, &length, 1, lengths + slot * step);
    return saturated;
  }

  /// out[r][i] += queries[r] . (what slot first + i stands for); `projected` are s_j . query, rows sketch.bits apart.
  void add_scores(index_t first, index_t count, const float* projected, RowBlock<float> out) const {
    alignas(64) float tile[tile_slots * SignSketch::most_bits], part[sketch_rows * tile_slots], scale[tile_slots];
    for (index_t done = 0; done < count; done += tile_slots) {
      const index_t n = std::min(tile_slots, count - done);
      load(first + done, n, tile, scale);
      dot_tile(tile, n, sketch.bits, projected, out.rows, part);
      for (index_t r = 0; r < out.rows; ++r)
        for (index_t i = 0; i < n; ++i) out.data[r * out.step + done + i] += scale[i] * part[r * tile_slots + i];
    }
  }

  /// sums[r][j] += sum_i weights[r][i] * (length and sign j of slot first + i), rows sketch.bits apart.
  void add_signs(index_t first, index_t count, RowBlock<const float> weights, float* sums) const {
    alignas(64) float tile[tile_slots * SignSketch::most_bits], scaled[sketch_rows * tile_slots], scale[tile_slots];
    for (index_t done = 0; done < count; done += tile_slots) {
      const index_t n = std::min(tile_slots, count - done);
      load(first + done, n, tile, scale);
      for (index_t r = 0; r < weights.rows; ++r)
        for (index_t i = 0; i < n; ++i) scaled[r * tile_slots + i] = scale[i] * weights.data[r * weights.step + done + i];
      add_tile(tile, n, sketch.bits, 0, sketch.bits, scaled, tile_slots, weights.rows, sums);
    }
  }

 private:
  /// Signs as +1 and -1, rows sketch.bits apart, and what multiplies them.
  void load(index_t first, index_t n, float* KVCONDENSE_RESTRICT tile, float* scale) const {
    std::uint8_t codes[SignSketch::most_bits + code_step];
    for (index_t i = 0; i < n; ++i) {
      unpack_codes<1>(signs + (first + i) * step, sketch.bits, codes);
      for (index_t j = 0; j < sketch.bits; ++j) tile[i * sketch.bits + j] = codes[j] != 0 ? 1.0f : -1.0f;
      read_numbers(ParamType::f16, lengths + (first + i) * step, 1, scale + i);
      scale[i] *= unit();
    }
    std::fill(tile + n * sketch.bits, tile + padded(n, 4) * sketch.bits, 0.0f);
  }
};

}  // namespace cpu

/// Queries are projected once per group of slots, sums of signs projected back once; a slot costs one addition per sign.
///
/// Numbers   `encode` returns the repaired numbers: NaN (coded as 0), infinities and magnitudes beyond `largest_coded`
///           (clamped to the largest of their row's others), and one for every length that fp16 does not hold. Strength
///           is a sum of squares in double, slot by slot; of equal channels the smaller is stronger.
template <>
struct PageCodec<Cpu, SketchRows> {
  using Codec = SketchRows;

  static index_t encode(const Codec& codec, PageSpan page, index_t first, index_t count, RowBlock<const float> rows) {
    return cpu::encode_groups(codec.group_slots(), first, {rows.data, count, rows.step},
                              [&](index_t slot, RowBlock<const float> group) { return encode_group(codec, page, slot, group); });
  }

  static void decode(const Codec& codec, PageSpan page, index_t first, index_t count, RowBlock<float> rows) {
    const float one = 1.0f;
    for (index_t i = 0; i < count; ++i) {
      std::fill_n(rows.data + i * rows.step, page.dim, 0.0f);
      accumulate(codec, page, first + i, 1, {&one, 1, 1}, {rows.data + i * rows.step, 1, rows.step});
    }
  }

  /// Only where slots are independent.
  static void move(const Codec& codec, PageSpan to, index_t to_slot, PageSpan from, index_t from_slot) {
    std::memmove(to.data + to_slot * codec.row_bytes(), from.data + from_slot * codec.row_bytes(),
                 static_cast<std::size_t>(codec.row_bytes()));
  }

  static void scores(const Codec& codec, PageSpan page, index_t first, index_t count, RowBlock<const float> queries,
                     RowBlock<float> out) {
    alignas(64) float most[cpu::sketch_rows * SignSketch::most_bits], few[cpu::sketch_rows * SignSketch::most_bits];
    const index_t dim = page.dim;
    each_group(codec, page, first, count, queries.rows, [&](const bool* strong, index_t done, index_t n, index_t from, index_t many) {
      float x[max_head_dim], y[max_head_dim];
      for (index_t r = 0; r < many; ++r) {
        const float* q = queries.data + (from + r) * queries.step;
        std::copy_n(q, dim, x);
        split(strong, dim, x, y);
        cpu::project(codec.sketch, dim, x, most + r * codec.sketch.bits);
        if (codec.channels > 0) cpu::project(codec.strong, dim, y, few + r * codec.strong.bits);
        std::fill_n(out.data + (from + r) * out.step + done, n, 0.0f);
      }
      const RowBlock<float> to{out.data + from * out.step + done, many, out.step};
      part(codec, page, false).add_scores(first + done, n, most, to);
      if (codec.channels > 0) part(codec, page, true).add_scores(first + done, n, few, to);
    });
  }

  static void accumulate(const Codec& codec, PageSpan page, index_t first, index_t count, RowBlock<const float> weights,
                         RowBlock<float> out) {
    alignas(64) float sums[cpu::sketch_rows * SignSketch::most_bits];
    const index_t dim = page.dim;
    each_group(codec, page, first, count, weights.rows, [&](const bool* strong, index_t done, index_t n, index_t from, index_t many) {
      for (const bool which : {false, true}) {
        if (which && codec.channels == 0) continue;
        const SignSketch& s = which ? codec.strong : codec.sketch;
        std::fill_n(sums, many * s.bits, 0.0f);
        part(codec, page, which).add_signs(first + done, n, {weights.data + from * weights.step + done, many, weights.step}, sums);
        for (index_t r = 0; r < many; ++r) {
          float x[max_head_dim] = {};
          cpu::add_back(s, dim, sums + r * s.bits, x);
          float* o = out.data + (from + r) * out.step;
          for (index_t c = 0; c < dim; ++c) o[c] += strong[c] == which ? x[c] : 0.0f;
        }
      }
    });
  }

 private:
  static cpu::SignRows part(const Codec& codec, PageSpan page, bool strong) {
    const index_t more = codec.channels == 0 ? 0 : codec.strong.sign_bytes();
    std::byte* lengths = page.data + codec.sketch.sign_bytes() + more;
    if (strong) return {codec.strong, page.dim, codec.row_bytes(), page.data + codec.sketch.sign_bytes(), lengths + 2};
    return {codec.sketch, page.dim, codec.row_bytes(), page.data, lengths};
  }

  /// Calls f(strong channels, slots done, slots, first row, rows) for the parts of groups in [first, first + count).
  template <class F>
  static void each_group(const Codec& codec, PageSpan page, index_t first, index_t count, index_t rows, F&& f) {
    cpu::each_group(codec.channels == 0 ? page.slots : codec.group_size, first, count, [&](index_t done, index_t n) {
      bool strong[max_head_dim] = {};
      const std::byte* at = page.data + codec.group_at(page.slots, first + done);
      for (index_t k = 0; k < codec.channels; ++k) strong[static_cast<index_t>(at[k])] = true;
      for (index_t r = 0; r < rows; r += cpu::sketch_rows) f(strong, done, n, r, std::min(cpu::sketch_rows, rows - r));
    });
  }

  static index_t encode_group(const Codec& codec, PageSpan page, index_t slot, RowBlock<const float> rows) {
    const index_t dim = page.dim;
    float x[max_head_dim], few[max_head_dim];
    bool strong[max_head_dim] = {};
    find_strong(codec, dim, rows, strong);
    std::byte* at = page.data + codec.group_at(page.slots, slot);
    for (index_t c = 0; c < dim; ++c)
      if (strong[c]) *at++ = static_cast<std::byte>(c);
    index_t repaired = 0;
    for (index_t i = 0; i < rows.rows; ++i) {
      repaired += cpu::clean_row(rows.data + i * rows.step, dim, x);
      split(strong, dim, x, few);
      repaired += static_cast<index_t>(part(codec, page, false).write(slot + i, x));
      if (codec.channels > 0) repaired += static_cast<index_t>(part(codec, page, true).write(slot + i, few));
    }
    return repaired;
  }

  /// Moves the strong channels of x to `few`, zeros in their places.
  static void split(const bool* strong, index_t dim, float* x, float* few) {
    for (index_t c = 0; c < dim; ++c) {
      few[c] = strong[c] ? x[c] : 0.0f;
      x[c] = strong[c] ? 0.0f : x[c];
    }
  }

  static void find_strong(const Codec& codec, index_t dim, RowBlock<const float> rows, bool* strong) {
    if (codec.channels == 0) return;
    double square[max_head_dim] = {};
    float x[max_head_dim];
    for (index_t i = 0; i < rows.rows; ++i) {
      cpu::clean_row(rows.data + i * rows.step, dim, x);
      for (index_t c = 0; c < dim; ++c) square[c] += static_cast<double>(x[c]) * static_cast<double>(x[c]);
    }
    std::int32_t order[max_head_dim];
    std::iota(order, order + dim, 0);
    std::partial_sort(order, order + codec.channels, order + dim,
                      [&](std::int32_t a, std::int32_t b) { return square[a] != square[b] ? square[a] > square[b] : a < b; });
    for (index_t k = 0; k < codec.channels; ++k) strong[order[k]] = true;
  }
};

/// The codec's scores and sums, and those of the sketch of what it leaves.
///
/// Numbers   `encode` returns what the codec does, and one for every length that fp16 does not hold. What the codec leaves
///           is measured from repaired rows.
template <class C>
struct PageCodec<Cpu, Sketched<C>> {
  using Codec = Sketched<C>;
  using Inner = PageCodec<Cpu, C>;

  static index_t encode(const Codec& codec, PageSpan page, index_t first, index_t count, RowBlock<const float> rows) {
    index_t repaired = Inner::encode(codec.codec, page, first, count, rows);
    float x[max_head_dim], back[max_head_dim];
    for (index_t i = 0; i < (codec.sketch.bits == 0 ? 0 : count); ++i) {
      cpu::clean_row(rows.data + i * rows.step, page.dim, x);
      Inner::decode(codec.codec, page, first + i, 1, {back, 1, page.dim});
      for (index_t c = 0; c < page.dim; ++c) x[c] -= back[c];
      repaired += static_cast<index_t>(part(codec, page).write(first + i, x));
    }
    return repaired;
  }

  static void decode(const Codec& codec, PageSpan page, index_t first, index_t count, RowBlock<float> rows) {
    Inner::decode(codec.codec, page, first, count, rows);
    if (codec.sketch.bits == 0) return;
    const float one = 1.0f;
    for (index_t i = 0; i < count; ++i) add_sums(codec, page, first + i, 1, {&one, 1, 1}, {rows.data + i * rows.step, 1, rows.step});
  }

  static void move(const Codec& codec, PageSpan to, index_t to_slot, PageSpan from, index_t from_slot)
    requires requires { &Inner::move; }
  {
    Inner::move(codec.codec, to, to_slot, from, from_slot);
    const index_t bytes = codec.sketch.row_bytes();
    std::memmove(part(codec, to).signs + to_slot * bytes, part(codec, from).signs + from_slot * bytes,
                 static_cast<std::size_t>(bytes));
  }

  static void scores(const Codec& codec, PageSpan page, index_t first, index_t count, RowBlock<const float> queries,
                     RowBlock<float> out) {
    Inner::scores(codec.codec, page, first, count, queries, out);
    if (codec.sketch.bits == 0) return;
    alignas(64) float projected[cpu::sketch_rows * SignSketch::most_bits];
    for (index_t at = 0; at < queries.rows; at += cpu::sketch_rows) {
      const index_t many = std::min(cpu::sketch_rows, queries.rows - at);
      for (index_t r = 0; r < many; ++r)
        cpu::project(codec.sketch, page.dim, queries.data + (at + r) * queries.step, projected + r * codec.sketch.bits);
      part(codec, page).add_scores(first, count, projected, {out.data + at * out.step, many, out.step});
    }
  }

  static void accumulate(const Codec& codec, PageSpan page, index_t first, index_t count, RowBlock<const float> weights,
                         RowBlock<float> out) {
    Inner::accumulate(codec.codec, page, first, count, weights, out);
    if (codec.sketch.bits > 0) add_sums(codec, page, first, count, weights, out);
  }

 private:
  static cpu::SignRows part(const Codec& codec, PageSpan page) {
    std::byte* at = page.data + codec.sketch_at(page.slots, page.dim);
    return {codec.sketch, page.dim, codec.sketch.row_bytes(), at, at + codec.sketch.sign_bytes()};
  }
  static void add_sums(const Codec& codec, PageSpan page, index_t first, index_t count, RowBlock<const float> weights,
                       RowBlock<float> out) {
    alignas(64) float sums[cpu::sketch_rows * SignSketch::most_bits];
    for (index_t at = 0; at < weights.rows; at += cpu::sketch_rows) {
      const index_t many = std::min(cpu::sketch_rows, weights.rows - at);
      std::fill_n(sums, many * codec.sketch.bits, 0.0f);
      part(codec, page).add_signs(first, count, {weights.data + at * weights.step, many, weights.step}, sums);
      for (index_t r = 0; r < many; ++r)
        cpu::add_back(codec.sketch, page.dim, sums + r * codec.sketch.bits, out.data + (at + r) * out.step);
    }
  }
};

}  // namespace kvcondense::prim
