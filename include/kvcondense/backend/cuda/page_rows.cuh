#pragma once

#include <cstdint>

#include <kvcondense/backend/cuda/dialect.cuh>
#include <kvcondense/core/dtype.hpp>
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
__device__ inline DType number_type(ParamType t) {
  return t == ParamType::f32 ? DType::f32 : t == ParamType::f16 ? DType::f16 : DType::bf16;
}

/// Rows of a page in their stored form. `Codec` says which.
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
};

/// Whether pages of a codec lie row by row, which is how these kernels read and write them.
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
  GroupInt<Bits> codec;
  std::byte* data;
  int slots, dim;

  __device__ RowPage(const GroupInt<Bits>& c, std::byte* page, int page_slots, int row) : codec(c), data(page), slots(page_slots), dim(row) {}
  __device__ int row_bytes() const { return (dim * Bits + 7) / 8; }
  __device__ int group_slots() const { return static_cast<int>(codec.group_slots()); }
  __device__ int group_channels() const { return static_cast<int>(codec.group_channels(dim)); }
  __device__ int scales() const { return static_cast<int>(codec.scales(dim)); }
  __device__ std::byte* row(int slot) const { return data + slot * row_bytes(); }
  /// Parameters of the group that slot belongs to: scales, then offsets.
  __device__ std::byte* params(int slot) const {
    return data + codec.params_at(slots, dim) + slot / group_slots() * codec.group_bytes(dim);
  }

  __device__ int code(int slot, int c) const {
    if constexpr (8 % Bits == 0) {
      const int at = c * Bits;
      return static_cast<int>(static_cast<std::uint32_t>(row(slot)[at / 8]) >> (at % 8) & ((1u << Bits) - 1u));
    } else {
      return static_cast<int>(DenseLe<Bits>{}.get(row(slot), c));
    }
  }
  __device__ float scale(int slot, int group) const { return read_number(number_type(codec.params), params(slot), group); }
  __device__ float offset(int slot, int group) const {
    return has_offset(codec.form) ? read_number(number_type(codec.params), params(slot), scales() + group) : 0.0f;
  }
  __device__ void write_params(int slot, int group, float scale, float offset) const {
    write_number(number_type(codec.params), params(slot), group, scale);
    if (has_offset(codec.form)) write_number(number_type(codec.params), params(slot), scales() + group, offset);
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
  /// The stored code of x.
  __device__ int code_for(float x, float offset, float inverse) const {
    return with_form(codec.form, [&]<GroupForm Form>() {
      return with_rounding(codec.rounding, [&]<Rounding Rule>() { return static_cast<int>(code_of<Bits, Form, Rule>(x, offset, inverse)); });
    });
  }
};

/// Byte `index` of a row whose codes stand one a byte in `codes`.
template <int Bits>
__device__ inline std::byte packed_byte(const std::uint8_t* codes, int dim, int index) {
  const int from = index * 8;
  std::uint32_t byte = 0;
  for (int c = from / Bits; c < dim && c * Bits < from + 8; ++c) {
    const int at = c * Bits - from;  // negative: the code begins in the byte before
    byte |= at < 0 ? static_cast<std::uint32_t>(codes[c]) >> -at : static_cast<std::uint32_t>(codes[c]) << at;
  }
  return static_cast<std::byte>(byte & 255u);
}

}  // namespace kvcondense::prim::cuda_kernels
