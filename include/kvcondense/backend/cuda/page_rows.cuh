#pragma once

#include <cstdint>

#include <kvcondense/backend/cuda/dialect.cuh>
#include <kvcondense/core/dtype.hpp>
#include <kvcondense/core/shape.hpp>
#include <kvcondense/prim/bipolar_int.hpp>
#include <kvcondense/prim/group_quant.hpp>
#include <kvcondense/prim/pack_bits.hpp>
#include <kvcondense/prim/page_codec.hpp>

// Where numbers, codes and parameters lie in a page on the device, and how one of them is read or written: the one
// place that knows. Pages are byte for byte those of the CPU backend.

namespace kvcondense::prim::cuda_kernels {

/// Calls f with the form as a constant: f.template operator()<Form>().
template <class F>
__device__ inline auto with_form(GroupForm form, F&& f) {
  switch (form) {
    case GroupForm::integer_zero: return f.template operator()<GroupForm::integer_zero>();
    case GroupForm::float_zero: return f.template operator()<GroupForm::float_zero>();
    case GroupForm::symmetric: return f.template operator()<GroupForm::symmetric>();
    case GroupForm::mid_rise: return f.template operator()<GroupForm::mid_rise>();
    case GroupForm::minimum: break;
  }
  return f.template operator()<GroupForm::minimum>();
}
template <class F>
__device__ inline auto with_rounding(Rounding rule, F&& f) {
  switch (rule) {
    case Rounding::half_up: return f.template operator()<Rounding::half_up>();
    case Rounding::half_away: return f.template operator()<Rounding::half_away>();
    case Rounding::half_even: break;
  }
  return f.template operator()<Rounding::half_even>();
}

/// Number i of an array of halves, bfloat16 or floats. Bytes need only the alignment of their type.
__device__ inline float read_number(DType type, const std::byte* at, int i) {
  if (type == DType::f32) return reinterpret_cast<const float*>(at)[i];
  const std::uint16_t bits = reinterpret_cast<const std::uint16_t*>(at)[i];
  return type == DType::f16 ? kvcondense::detail::half_value(bits) : kvcondense::detail::bfloat16_value(bits);
}
__device__ inline void write_number(DType type, std::byte* at, int i, float x) {
  if (type == DType::f32) {
    reinterpret_cast<float*>(at)[i] = x;
    return;
  }
  reinterpret_cast<std::uint16_t*>(at)[i] =
      type == DType::f16 ? kvcondense::detail::half_bits(x) : kvcondense::detail::bfloat16_bits(x);
}
/// As on the host (`cache::bring_into_range`), what the type has no number for becomes the nearest one it has, a NaN becomes 0.
__device__ inline float in_range(DType type, float x) { return limit_to(without_nan(x), largest_kept(type)); }

/// Whether a stored number is surely finite.
__device__ inline bool can_store(DType type, float x) { return fabsf(x) <= largest_taken(type); }

/// The two pieces of a slot in its page: numbers or codes, then parameters of its own.
struct SlotBytes {
  std::byte* row = nullptr;
  std::byte* params = nullptr;
  int row_bytes = 0, param_bytes = 0;

  __device__ int size() const { return row_bytes + param_bytes; }
  __device__ std::byte* at(int i) const { return i < row_bytes ? row + i : params + (i - row_bytes); }
};

/// Shared memory of a block that codes a group of slots.
struct ChannelShared;

/// Rows of a page in their stored form. `Codec` says which: row_codec.cuh tells what it has.
template <class Codec>
struct RowPage;

template <>
struct RowPage<ExactRows> {
  ExactRows codec;
  std::byte* data;
  int slots, dim;

  __device__ RowPage(const ExactRows& c, std::byte* page, int page_slots, int row) : codec(c), data(page), slots(page_slots), dim(row) {}
  __device__ std::byte* row(int slot) const { return data + static_cast<std::size_t>(slot) * row_bytes(); }
  __device__ int row_bytes() const { return dim * (codec.dtype == DType::f32 ? 4 : 2); }
  __device__ float value(int slot, int c) const { return read_number(codec.dtype, row(slot), c); }
  __device__ SlotBytes slot_bytes(int slot) const { return {row(slot), nullptr, row_bytes(), 0}; }

  struct Scratch {};
  /// A warp. Repairs nothing.
  template <class Rows>
  __device__ int encode(int slot, const Rows& rows, int i, Scratch&) const {
    const auto x = rows.row(i);
    for (int c = cuda::lane_of_warp(); c < dim; c += cuda::warp_lanes) write_number(codec.dtype, row(slot), c, x(c));
    return 0;
  }
};

/// Whether a codec asks for pages whose codes lie row by row, which is all that some kernels read.
template <class Codec>
constexpr bool lies_in_rows(const Codec&) {
  return true;
}
template <int Bits>
constexpr bool lies_in_rows(const GroupInt<Bits>& codec) {
  return codec.layout == CodeLayout::rows;
}

template <int Bits>
struct RowPage<GroupInt<Bits>> {
  static constexpr int fields = 8 / Bits, outputs = 16 * fields;  ///< codes of a byte and outputs of a block, in lanes

  GroupInt<Bits> codec;
  std::byte* data;
  int slots, dim;
  CodeLayout layout;

  __device__ RowPage(const GroupInt<Bits>& c, std::byte* page, int page_slots, int row)
      : codec(c), data(page), slots(page_slots), dim(row), layout(c.layout == CodeLayout::rows ? c.layout : c.layout_of(page_slots, row)) {}
  __device__ int row_bytes() const { return (dim * Bits + 7) / 8; }
  __device__ int group_slots() const { return static_cast<int>(codec.group_slots()); }
  __device__ int group_channels() const { return static_cast<int>(codec.group_channels(dim)); }
  __device__ int scales() const { return static_cast<int>(codec.scales(dim)); }
  /// Of pages in rows.
  __device__ std::byte* row(int slot) const { return data + slot * row_bytes(); }
  /// The word with four channels of a slot, in slot_lanes; the byte with a slot's channels c, c + 16 ..., in channel_lanes.
  __device__ std::byte* slot_word(int slot, int c) const { return data + (slot / outputs * (dim / 4) + c / 4) * 64 + 4 * (slot % 16); }
  __device__ int slot_shift(int slot) const { return slot % outputs / 16 * Bits; }
  __device__ std::byte* channel_byte(int slot, int c) const { return data + (slot / 4 * (dim / outputs) + c / outputs) * 64 + slot % 4 + 4 * (c % 16); }

  /// Parameters of the group that slot belongs to: scales, then offsets, `step` numbers apart.
  __device__ std::byte* params(int slot) const {
    std::byte* at = data + codec.params_at(slots, dim);
    if (step() != 1) return at + slot * static_cast<int>(size_of(codec.params));
    return at + slot / group_slots() * codec.group_bytes(dim);
  }
  __device__ int step() const { return layout != CodeLayout::rows && codec.axis == GroupAxis::token ? slots : 1; }

  __device__ int code(int slot, int c) const {
    if constexpr (8 % Bits == 0) {
      const int at = c * Bits;
      std::uint32_t byte;
      int shift;
      if (layout == CodeLayout::slot_lanes) byte = static_cast<std::uint32_t>(slot_word(slot, c)[c % 4]), shift = slot_shift(slot);
      else if (layout == CodeLayout::channel_lanes) byte = static_cast<std::uint32_t>(*channel_byte(slot, c)), shift = c % outputs / 16 * Bits;
      else byte = static_cast<std::uint32_t>(row(slot)[at / 8]), shift = at % 8;
      return static_cast<int>(byte >> shift & ((1u << Bits) - 1u));
    } else {
      return static_cast<int>(DenseLe<Bits>{}.get(row(slot), c));
    }
  }
  /// The codes of a slot, one a byte in `codes`, by `threads` threads of which this is one. Other slots may be written at the same time.
  __device__ void write_codes(int slot, const std::uint8_t* codes, int thread, int threads) const;
  __device__ float scale(int slot, int group) const { return read_number(number_type(codec.params), params(slot), group * step()); }
  __device__ float offset(int slot, int group) const {
    return has_offset(codec.form) ? read_number(number_type(codec.params), params(slot), (scales() + group) * step()) : 0.0f;
  }
  __device__ void write_params(int slot, int group, float scale, float offset) const {
    write_number(number_type(codec.params), params(slot), group * step(), scale);
    if (has_offset(codec.form)) write_number(number_type(codec.params), params(slot), (scales() + group) * step(), offset);
  }
  /// Those of the group of `slot` in a page of another layout, bit for bit, by `threads` threads of which this is one.
  __device__ void copy_params(const RowPage& from, int slot, int thread, int threads) const {
    const int bytes = static_cast<int>(size_of(codec.params)), all = static_cast<int>(codec.group_bytes(dim));
    for (int i = thread; i < all; i += threads) {
      const int number = i / bytes * bytes, byte = i % bytes;
      params(slot)[number * step() + byte] = from.params(slot)[number * from.step() + byte];
    }
  }

  /// The number at (slot, channel), product and sum rounded one by one as on the host.
  __device__ float value(int slot, int c) const {
    const int group = c / group_channels();
    return number(code(slot, c), scale(slot, group), offset(slot, group));
  }
  __device__ float number(int code, float scale, float offset) const {
    if (codec.form == GroupForm::minimum) return __fadd_rn(__fmul_rn(static_cast<float>(code), scale), offset);
    return with_form(codec.form, [&]<GroupForm Form>() { return value_of<Bits, Form>(code, scale, offset); });
  }
  __device__ GroupParams fit(const GroupRange& range) const { return fit_group(codec.form, Bits, codec.params, range); }
  /// The stored code of x.
  __device__ int code_for(float x, float offset, float inverse) const {
    return with_form(codec.form, [&]<GroupForm Form>() {
      return with_rounding(codec.rounding, [&]<Rounding Rule>() { return static_cast<int>(code_of<Bits, Form, Rule>(x, offset, inverse)); });
    });
  }

  /// Of the token axis, in rows.
  __device__ SlotBytes slot_bytes(int slot) const { return {row(slot), params(slot), row_bytes(), static_cast<int>(codec.group_bytes(dim))}; }
  struct Scratch {
    std::uint8_t codes[max_head_dim];
  };
  template <class Rows>
  __device__ int encode(int slot, const Rows& rows, int i, Scratch& s) const;
  /// Of the channel axis.
  using GroupScratch = ChannelShared;
  template <class Rows>
  __device__ int encode_group(int slot, const Rows& rows, int begin, ChannelShared& shared) const;
};

/// The code of channel c in a row of planes of bits.
__device__ inline int plane_code(const std::byte* row, int dim, int bits, int c) {
  unsigned code = 0;
  for (int p = 0; p < bits; ++p) code |= (static_cast<unsigned>(row[p * (dim / 8) + c / 8]) >> (c % 8) & 1u) << p;
  return static_cast<int>(code);
}

/// Byte `index` of a row whose codes of `bits` bits stand one a byte in `codes`.
__device__ inline std::byte packed_byte(int bits, const std::uint8_t* codes, int dim, int index) {
  const int from = index * 8;
  std::uint32_t byte = 0;
  for (int c = from / bits; c < dim && c * bits < from + 8; ++c) {
    const int at = c * bits - from;  // negative: the code begins in the byte before
    byte |= at < 0 ? static_cast<std::uint32_t>(codes[c]) >> -at : static_cast<std::uint32_t>(codes[c]) << at;
  }
  return static_cast<std::byte>(byte & 255u);
}

template <int Bits>
__device__ void RowPage<GroupInt<Bits>>::write_codes(int slot, const std::uint8_t* codes, int thread, int threads) const {
  if constexpr (8 % Bits == 0) {
    if (layout == CodeLayout::slot_lanes) {  // a word has codes of other slots, which other warps may write
      const int shift = slot_shift(slot);
      for (int c = 4 * thread; c < dim; c += 4 * threads) {
        auto* word = reinterpret_cast<unsigned*>(slot_word(slot, c));
        const unsigned four = codes[c] | static_cast<unsigned>(codes[c + 1]) << 8 | static_cast<unsigned>(codes[c + 2]) << 16 | static_cast<unsigned>(codes[c + 3]) << 24;
        atomicAnd(word, ~(((1u << Bits) - 1u) * 0x01010101u << shift));
        atomicOr(word, four << shift);
      }
      return;
    }
    if (layout == CodeLayout::channel_lanes) {
      for (int i = thread; i < dim / fields; i += threads) {
        const int c = i / 16 * outputs + i % 16;
        unsigned byte = 0;
        for (int f = 0; f < fields; ++f) byte |= static_cast<unsigned>(codes[c + 16 * f]) << (f * Bits);
        *channel_byte(slot, c) = static_cast<std::byte>(byte);
      }
      return;
    }
  }
  for (int b = thread; b < row_bytes(); b += threads) row(slot)[b] = packed_byte(Bits, codes, dim, b);
}

/// RowPage<GroupInt<Bits>>::value for readers that learn the width of codes when they run: where things lie was worked out by the host, and one
/// text serves all widths.
struct GroupPlaces {
  int bits = 0;
  int params_at = 0, step = 1;  ///< where parameters begin, and from one of a slot to its next
  int group_slots = 1, group_channels = 1, group_bytes = 0, scales = 0;
  int param_bytes = 2;
  GroupForm form = GroupForm::minimum;
  DType params = DType::f16;
  CodeLayout layout = CodeLayout::rows;
  bool planes = false;  ///< rows are planes of bits

  GroupPlaces() = default;
  template <int Bits>
  GroupPlaces(const BipolarInt<Bits>& c, index_t slots, index_t dim) : GroupPlaces(c.numbers(), slots, dim) {
    planes = true;
  }
  template <int Bits>
  GroupPlaces(const GroupInt<Bits>& c, index_t slots, index_t dim)
      : bits(Bits),
        params_at(static_cast<int>(c.params_at(slots, dim))),
        group_slots(static_cast<int>(c.group_slots())),
        group_channels(static_cast<int>(c.group_channels(dim))),
        group_bytes(static_cast<int>(c.group_bytes(dim))),
        scales(static_cast<int>(c.scales(dim))),
        param_bytes(static_cast<int>(size_of(c.params))),
        form(c.form),
        params(number_type(c.params)),
        layout(c.layout == CodeLayout::rows ? c.layout : c.layout_of(slots, dim)) {
    if (layout != CodeLayout::rows && c.axis == GroupAxis::token) step = static_cast<int>(slots);
  }

  __device__ int code(const std::byte* page, int dim, int slot, int c) const {
    if (planes) return plane_code(page + slot * ((dim * bits + 7) / 8), dim, bits, c);
    const int outputs = 128 / bits;  // of a block, in lanes
    int at = c * bits;
    std::uint32_t word;
    if (layout == CodeLayout::slot_lanes) {
      word = static_cast<std::uint32_t>(page[(slot / outputs * (dim / 4) + c / 4) * 64 + 4 * (slot % 16) + c % 4]);
      at = slot % outputs / 16 * bits;
    } else if (layout == CodeLayout::channel_lanes) {
      word = static_cast<std::uint32_t>(page[(slot / 4 * (dim / outputs) + c / outputs) * 64 + slot % 4 + 4 * (c % 16)]);
      at = c % outputs / 16 * bits;
    } else {
      const std::byte* from = page + slot * ((dim * bits + 7) / 8) + at / 8;
      word = static_cast<std::uint32_t>(from[0]);
      if (at % 8 + bits > 8) word |= static_cast<std::uint32_t>(from[1]) << 8;
    }
    return static_cast<int>(word >> at % 8 & ((1u << bits) - 1u));
  }
  __device__ float value(const std::byte* page, int dim, int slot, int c) const {
    const std::byte* at = page + params_at + (step != 1 ? slot * param_bytes : slot / group_slots * group_bytes);
    const int group = c / group_channels;
    const float scale = read_number(params, at, group * step), offset = has_offset(form) ? read_number(params, at, (scales + group) * step) : 0.0f;
    const auto counted = static_cast<float>(code(page, dim, slot, c));
    if (form == GroupForm::minimum) return __fadd_rn(__fmul_rn(counted, scale), offset);
    const auto levels = static_cast<float>((1 << bits) - 1);
    const float zero = form == GroupForm::symmetric ? static_cast<float>((1 << (bits - 1)) - 1) : form == GroupForm::mid_rise ? 0.5f * levels : offset;
    return __fmul_rn(counted - zero, scale);
  }
};

}  // namespace kvcondense::prim::cuda_kernels
