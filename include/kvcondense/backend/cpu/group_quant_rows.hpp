#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include <kvcondense/backend/cpu/group_quant_bits.hpp>
#include <kvcondense/backend/cpu/group_quant_lanes.hpp>
#include <kvcondense/backend/cpu/group_quant_tile.hpp>
#include <kvcondense/core/shape.hpp>
#include <kvcondense/prim/group_quant.hpp>
#include <kvcondense/prim/page_codec.hpp>

// Rows and parameters of a GroupInt page: where they are, how they are read and written.

namespace kvcondense::prim::cpu {

inline constexpr index_t code_buffer = max_head_dim + code_step;  ///< codes of a row, whole last step

inline void read_numbers(ParamType type, const std::byte* at, index_t n, float* out) {
  if (type == ParamType::f32) {
    std::memcpy(out, at, static_cast<std::size_t>(n) * sizeof(float));
    return;
  }
  std::uint16_t bits[64];
  for (index_t i = 0; i < n; i += 64) {
    const index_t m = std::min<index_t>(64, n - i);
    std::memcpy(bits, at + 2 * i, static_cast<std::size_t>(m) * sizeof *bits);
    row_ops().widen(type == ParamType::f16 ? DType::f16 : DType::bf16, bits, m, out + i);
  }
}

/// The numbers are already rounded to the type: writing loses nothing.
inline void write_numbers(ParamType type, const float* in, index_t n, std::byte* at) {
  if (type == ParamType::f32) {
    std::memcpy(at, in, static_cast<std::size_t>(n) * sizeof(float));
    return;
  }
  std::uint16_t bits[64];
  for (index_t i = 0; i < n; i += 64) {
    const index_t m = std::min<index_t>(64, n - i);
    row_ops().narrow(type == ParamType::f16 ? DType::f16 : DType::bf16, in + i, m, bits);
    std::memcpy(at + 2 * i, bits, static_cast<std::size_t>(m) * sizeof *bits);
  }
}

/// Calls f with the form as a constant: f.template operator()<Form>().
template <class F>
void with_form(GroupForm form, F&& f) {
  switch (form) {
    case GroupForm::minimum: return f.template operator()<GroupForm::minimum>();
    case GroupForm::integer_zero: return f.template operator()<GroupForm::integer_zero>();
    case GroupForm::float_zero: return f.template operator()<GroupForm::float_zero>();
    case GroupForm::symmetric: return f.template operator()<GroupForm::symmetric>();
    case GroupForm::mid_rise: return f.template operator()<GroupForm::mid_rise>();
  }
}

/// The range of one group of consecutive numbers: sixteen ranges side by side, then joined.
inline GroupRange range_of(const float* x, index_t n, index_t& bad) {
  constexpr index_t side = 16;
  GroupRange range;
  float lo[side], hi[side];
  std::fill_n(lo, side, range.lo), std::fill_n(hi, side, range.hi);
  const CodingOps& ops = coding_ops();
  for (index_t i = 0; i < n; i += side) bad += ops.widen_ranges(x + i, std::min(side, n - i), lo, hi);
  for (index_t k = 0; k < side; ++k) {
    range.lo = lo[k] < range.lo ? lo[k] : range.lo;
    range.hi = hi[k] > range.hi ? hi[k] : range.hi;
  }
  return range;
}

/// Rows of codes as one little-endian bit stream.
template <int Bits>
struct DenseRows {
  static void unpack(const std::byte* row, index_t dim, std::uint8_t* codes) { unpack_codes<Bits>(row, dim, codes); }
  static void pack(const std::uint8_t* codes, index_t dim, std::byte* row) { pack_codes<Bits>(codes, dim, row); }
};

/// Raw codes of `count` rows, `row_bytes` apart, as floats, rows `width` apart; padding columns and rows are zero.
template <class Rows>
void unpack_tile(const std::byte* rows, index_t row_bytes, index_t count, index_t dim, index_t width,
                 float* KVCONDENSE_RESTRICT tile) {
  std::uint8_t codes[code_buffer];
  for (index_t i = 0; i < count; ++i) {
    Rows::unpack(rows + i * row_bytes, dim, codes);
    float* t = tile + i * width;
    for (index_t c = 0; c < dim; ++c) t[c] = static_cast<float>(codes[c]);
    for (index_t c = dim; c < width; ++c) t[c] = 0.0f;
  }
  for (index_t i = count * width; i < padded(count, 4) * width; ++i) tile[i] = 0.0f;
}

/// A page of GroupInt rows: addresses. `RowsOf` says how a row lies in its bytes.
template <int Bits, class RowsOf = DenseRows<Bits>>
struct GroupPage {
  using Rows = RowsOf;
  static constexpr int bits = Bits;
  static constexpr bool has_lanes = Bits == 2 || Bits == 4 || Bits == 8;

  GroupInt<Bits> codec;
  const PageSpan& page;  // a copy, made of what was just written, would wait for it

  CodeLayout layout() const { return codec.layout_of(page.slots, page.dim); }
  bool in_rows() const { return layout() == CodeLayout::rows; }
  CodeLanes<has_lanes ? Bits : 8> in_lanes() const { return {page.data, layout(), page.dim}; }

  /// Only where codes lie in rows.
  std::byte* row(index_t slot) const { return page.data + slot * codec.row_bytes(page.dim); }
  void put_codes(index_t slot, const std::uint8_t* codes) const {
    if (in_rows()) Rows::pack(codes, page.dim, row(slot));
    else in_lanes().put(slot, codes);
  }
  void get_codes(index_t slot, std::uint8_t* codes) const {
    if (in_rows()) Rows::unpack(row(slot), page.dim, codes);
    else in_lanes().get(slot, codes);
  }

  /// Whether the parameters of a slot lie apart, those of the other slots between them.
  bool strided() const { return codec.axis == GroupAxis::token && !in_rows(); }
  /// Parameters of the group that slot belongs to: scales, then offsets.
  std::byte* params(index_t slot) const {
    const std::byte* at = page.data + codec.params_at(page.slots, page.dim);
    return const_cast<std::byte*>(at) + (strided() ? slot * size_of(codec.params)
                                                   : slot / codec.group_slots() * codec.group_bytes(page.dim));
  }
  /// From one parameter of a slot to the next.
  index_t params_step() const { return strided() ? page.slots * size_of(codec.params) : size_of(codec.params); }

  /// Scales and offsets of the slot's group, `codec.scales(dim)` each; absent offsets read as 0.
  void read_params(index_t slot, float* scale, float* offset) const {
    const index_t n = codec.scales(page.dim);
    read_some(params(slot), n, scale);
    if (has_offset(codec.form)) read_some(params(slot) + n * params_step(), n, offset);
    else std::fill_n(offset, n, 0.0f);
  }
  void write_params(index_t slot, const float* scale, const float* offset) const {
    const index_t n = codec.scales(page.dim);
    write_some(params(slot), n, scale);
    if (has_offset(codec.form)) write_some(params(slot) + n * params_step(), n, offset);
  }

  /// offset[j] becomes the constant term of folding.
  void fold_offsets(const float* scale, float* offset, index_t n) const {
    with_form(codec.form, [&]<GroupForm Form>() {
      for (index_t j = 0; j < n; ++j) offset[j] = base_of<Bits, Form>(scale[j], offset[j]);
    });
  }

  /// Raw codes of `count` slots as a tile.
  void unpack(index_t first, index_t count, index_t width, float* tile) const {
    if (in_rows()) unpack_tile<Rows>(row(first), codec.row_bytes(page.dim), count, page.dim, width, tile);
    else in_lanes().unpack(first, count, width, tile);
  }

 private:
  void read_some(const std::byte* at, index_t n, float* out) const {
    if (!strided()) return read_numbers(codec.params, at, n, out);
    for (index_t j = 0; j < n; ++j) read_numbers(codec.params, at + j * params_step(), 1, out + j);
  }
  void write_some(std::byte* at, index_t n, const float* in) const {
    if (!strided()) return write_numbers(codec.params, in, n, at);
    for (index_t j = 0; j < n; ++j) write_numbers(codec.params, in + j, 1, at + j * params_step());
  }
};

/// Codes one slot of the token axis; returns the repaired numbers.
template <class Page>
index_t encode_slot(const Page& to, index_t slot, const float* x) {
  const auto& codec = to.codec;
  const index_t dim = to.page.dim, group = codec.group_channels(dim);
  const index_t groups = codec.scales(dim);
  float lo[max_head_dim], hi[max_head_dim], scale[max_head_dim], inverse[max_head_dim];
  float wide_offset[max_head_dim], wide_inverse[max_head_dim];
  std::uint8_t codes[code_buffer];
  index_t repaired = 0;
  lo[0] = hi[0] = 0.0f;
  for (index_t j = 0; j < groups; ++j) {
    const GroupRange range = range_of(x + j * group, group, repaired);
    lo[j] = range.lo, hi[j] = range.hi;
  }
  float* offset = lo;  // each range is read before its offset is written
  repaired += coding_ops().fit_groups(codec.form, Page::bits, codec.params, lo, hi, groups, scale, offset, inverse);
  for (index_t j = 0; j < groups; ++j) {
    std::fill_n(wide_offset + j * group, group, offset[j]);
    std::fill_n(wide_inverse + j * group, group, inverse[j]);
  }
  coding_ops().code_row(codec.form, codec.rounding, Page::bits, x, wide_offset, wide_inverse, dim, codes);
  to.put_codes(slot, codes);
  to.write_params(slot, scale, offset);
  return repaired;
}

/// Numbers of `count` slots.
template <class Page>
void decode_slots(const Page& from, index_t first, index_t count, RowBlock<float> rows) {
  const index_t dim = from.page.dim, group = from.codec.group_channels(dim), groups = from.codec.scales(dim);
  std::uint8_t codes[code_buffer];
  float scale[max_head_dim], offset[max_head_dim];
  for (index_t i = 0; i < count; ++i) {
    const index_t slot = first + i;
    if (i == 0 || slot % from.codec.group_slots() == 0) from.read_params(slot, scale, offset);
    from.get_codes(slot, codes);
    float* x = rows.data + i * rows.step;
    with_form(from.codec.form, [&]<GroupForm Form>() {
      if (group == 1) {
        for (index_t c = 0; c < dim; ++c) x[c] = value_of<Page::bits, Form>(codes[c], scale[c], offset[c]);
        return;
      }
      for (index_t j = 0; j < groups; ++j)
        for (index_t c = j * group; c < (j + 1) * group; ++c) x[c] = value_of<Page::bits, Form>(codes[c], scale[j], offset[j]);
    });
  }
}

/// A slot of the token axis, with its parameters, to another place.
template <class Page>
void move_slot(const Page& to, index_t to_slot, const Page& from, index_t from_slot) {
  if (to.in_rows()) {
    std::memmove(to.row(to_slot), from.row(from_slot), static_cast<std::size_t>(to.codec.row_bytes(to.page.dim)));
    std::memmove(to.params(to_slot), from.params(from_slot), static_cast<std::size_t>(to.codec.group_bytes(to.page.dim)));
    return;
  }
  from.in_lanes().move_to(to.in_lanes(), to_slot, from_slot);
  const auto size = static_cast<std::size_t>(size_of(to.codec.params));
  for (index_t at = 0; at < to.codec.group_bytes(to.page.dim) / size_of(to.codec.params); ++at)
    std::memmove(to.params(to_slot) + at * to.params_step(), from.params(from_slot) + at * from.params_step(), size);
}

}  // namespace kvcondense::prim::cpu
