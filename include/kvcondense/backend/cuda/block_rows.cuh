#pragma once

#include <cstdint>

#include <kvcondense/backend/cuda/page_rows.cuh>
#include <kvcondense/prim/block_codes.hpp>

namespace kvcondense::prim::cuda_kernels {

/// Rows of small codes with block scales.
template <>
struct RowPage<BlockCodes> {
  BlockCodes codec;
  std::byte* data;
  int slots, dim, bytes;  ///< of a row

  __device__ RowPage(const BlockCodes& c, std::byte* page, int page_slots, int row)
      : codec(c), data(page), slots(page_slots), dim(row), bytes(static_cast<int>(c.row_bytes(row))) {}
  __device__ std::byte* row(int slot) const { return data + slot * bytes; }
  __device__ std::byte* scale_of(int slot, int group) const { return row(slot) + codec.code_bytes(dim) + group * codec.scale_bytes(); }
  __device__ std::uint32_t code(int slot, int c) const {
    const int bits = bits_of(codec.element), at = c * bits;
    const std::byte* from = row(slot) + at / 8;
    std::uint32_t word = static_cast<std::uint32_t>(from[0]);
    if (at % 8 + bits > 8) word |= static_cast<std::uint32_t>(from[1]) << 8;
    return word >> (at % 8) & ((1u << bits) - 1u);
  }
  /// What a code of the group counts, the element's own unit in it.
  __device__ float scale(int slot, int group) const {
    const std::byte* at = scale_of(slot, group);
    std::uint32_t stored = 0;
    for (int b = 0; b < static_cast<int>(codec.scale_bytes()); ++b) stored |= static_cast<std::uint32_t>(at[b]) << (8 * b);
    return __fmul_rn(block_scale_value(codec.scale, stored, codec.factor), unit_of(codec.element));
  }
  /// The number at (slot, channel), rounded as on the host.
  __device__ float value(int slot, int c) const {
    if (codec.is_ggml()) return ggml_value(slot, c);
    const std::uint32_t stored = code(slot, c);
    const float element = is_integer(codec.element) ? static_cast<float>(integer_value(bits_of(codec.element), stored))
                                                    : mini_float_value(mini_float_of(codec.element), stored);
    return __fmul_rn(element, scale(slot, c / static_cast<int>(codec.group(dim))));
  }
  __device__ SlotBytes slot_bytes(int slot) const { return {row(slot), nullptr, bytes, 0}; }
  struct Scratch {
    union {
      std::uint8_t codes[max_head_dim];
      float clean[max_head_dim];  ///< of ggml's blocks
    };
  };
  template <class Rows>
  __device__ int encode(int slot, const Rows& rows, int i, Scratch& s) const;
  __device__ float ggml_value(int slot, int c) const {
    const GgmlType type = codec.ggml;
    const GgmlShape shape = ggml_shape(type);
    const std::byte* at = row(slot) + c / static_cast<int>(shape.numbers) * shape.bytes;
    const int i = c % static_cast<int>(shape.numbers);
    const auto byte = [&](int b) { return static_cast<std::uint32_t>(at[b]); };
    const auto half = [&](int b) { return kvcondense::detail::half_value(static_cast<std::uint16_t>(byte(b) | byte(b + 1) << 8)); };
    if (type == GgmlType::nvfp4) return __fmul_rn(mini_float_value<float_e2m1>(SplitHalf{16}.get(at + 4 + i / 16 * 8, i % 16)), ue4m3_value(byte(i / 16)));
    if (type == GgmlType::mxfp4) return __fmul_rn(mini_float_value<float_e2m1>(SplitHalf{32}.get(at + 1, i)), e8m0_value(byte(0)));
    const int codes = has_minimum(type) ? 4 : 2;
    const std::uint32_t code = type == GgmlType::q8_0                              ? byte(codes + i)
                               : type == GgmlType::q4_0 || type == GgmlType::q4_1 ? SplitHalf{32}.get(at + codes, i)
                                                                                   : Qh5{}.get(at + codes, i);
    const float product = __fmul_rn(static_cast<float>(ggml_element(type, code)), half(0));
    return has_minimum(type) ? __fadd_rn(product, half(2)) : product;
  }
};

}  // namespace kvcondense::prim::cuda_kernels
