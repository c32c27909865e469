#pragma once

#include <cstdint>

#include <kvcondense/backend/cuda/block.cuh>
#include <kvcondense/backend/cuda/block_rows.cuh>
#include <kvcondense/backend/cuda/context.cuh>
#include <kvcondense/backend/cuda/launch.cuh>
#include <kvcondense/backend/cuda/page_codec.cuh>
#include <kvcondense/core/status.hpp>
#include <kvcondense/prim/block_codes.hpp>

namespace kvcondense::prim {
namespace cuda_kernels {

/// The code next to y, in units of the block's scale.
template <Rounding Rule>
__device__ inline std::uint32_t element_code(BlockElement element, float y) {
  switch (element) {
    case BlockElement::e2m1: return mini_float_code<float_e2m1, Rule>(y);
    case BlockElement::e2m3: return mini_float_code<float_e2m3, Rule>(y);
    case BlockElement::e3m2: return mini_float_code<float_e3m2, Rule>(y);
    case BlockElement::e4m3: return mini_float_code<float_e4m3, Rule>(y);
    case BlockElement::e5m2: return mini_float_code<float_e5m2, Rule>(y);
    default: break;
  }
  const auto code = static_cast<std::uint32_t>(round_code(Rule, limit_to(y, largest_of(element)) * (1.0f / unit_of(element))));
  return code & ((1u << bits_of(element)) - 1u);
}

/// A block of numbers after the other.
template <Rounding Rule, class X>
__device__ inline int encode_blocks(const RowPage<BlockCodes>& page, int slot, const X& x, bool counted, std::uint8_t* codes) {
  const BlockCodes& codec = page.codec;
  const int lane = cuda::lane_of_warp(), group = static_cast<int>(codec.group(page.dim));
  const bool fixed = codec.scale == BlockScale::fixed;
  const float top = largest_of(codec.element);
  int bad = 0;
  for (int from = 0; from < page.dim; from += group) {
    const int end = from + group < page.dim ? from + group : page.dim;
    const GroupRange range = warp_range(x, from, end, counted, bad);
    const float amax = range.lo <= range.hi ? (range.hi < -range.lo ? -range.lo : range.hi) : 0.0f;
    const BlockParams p = fit_block(codec.element, codec.scale, codec.factor, amax);
    if (lane == 0) {
      std::byte* at = page.scale_of(slot, from / group);
      for (int b = 0; b < static_cast<int>(codec.scale_bytes()); ++b) at[b] = static_cast<std::byte>(p.stored >> (8 * b) & 255u);
      bad += static_cast<int>(p.saturated);
    }
    for (int c = from + lane; c < end; c += cuda::warp_lanes) {
      const float clean = without_nan(x(c)), y = clean * p.inverse;
      codes[c] = static_cast<std::uint8_t>(element_code<Rule>(codec.element, limit_to(clean, fixed ? 2.0f * largest_coded : amax) * p.inverse));
      bad += static_cast<int>(fixed && repairs(x(c), false) == 0 && (y > top || y < -top));
    }
  }
  __syncwarp();
  for (int b = lane; b < static_cast<int>(codec.code_bytes(page.dim)); b += cuda::warp_lanes)
    page.row(slot)[b] = packed_byte(bits_of(codec.element), codes, page.dim, b);
  return bad;
}

/// Writes one block of finite numbers; true when a scale or a minimum did not fit its type.
__device__ inline bool encode_ggml(GgmlType type, const float* x, std::byte* out) {
  switch (type) {
    case GgmlType::q4_0: return ggml_encode<GgmlType::q4_0>(x, out);
    case GgmlType::q4_1: return ggml_encode<GgmlType::q4_1>(x, out);
    case GgmlType::q5_0: return ggml_encode<GgmlType::q5_0>(x, out);
    case GgmlType::q5_1: return ggml_encode<GgmlType::q5_1>(x, out);
    case GgmlType::q8_0: return ggml_encode<GgmlType::q8_0>(x, out);
    case GgmlType::mxfp4: return ggml_encode<GgmlType::mxfp4>(x, out);
    case GgmlType::nvfp4: break;
  }
  return ggml_encode<GgmlType::nvfp4>(x, out);
}

/// The row's numbers made finite, a lane a number of a group; then a lane a block, as ggml's reference writes it.
template <class X>
__device__ inline int encode_ggml_blocks(const RowPage<BlockCodes>& page, int slot, const X& x, bool counted, float* clean) {
  const GgmlType type = page.codec.ggml;
  const GgmlShape shape = ggml_shape(type);
  const int lane = cuda::lane_of_warp(), group = static_cast<int>(shape.group), numbers = static_cast<int>(shape.numbers);
  int bad = 0;
  for (int from = 0; from < page.dim; from += group) {  // at most a warp's lanes
    GroupRange range;
    const float own = lane < group ? x(from + lane) : 0.0f;
    if (lane < group) range.include(own);
    const bool broken = cuda::warp_sum(repairs(own, false)) != 0;
    bad += repairs(own, counted);
    range.lo = cuda::warp_reduce(range.lo, [](float a, float b) { return a < b ? a : b; });
    range.hi = cuda::warp_max(range.hi);
    if (!(range.lo <= range.hi)) range = {0.0f, 0.0f};
    const float top = range.hi < -range.lo ? -range.lo : range.hi;
    const float lo = has_minimum(type) ? range.lo : -top, hi = has_minimum(type) ? range.hi : top, finite = without_nan(own);
    if (lane < group) clean[from + lane] = !broken ? own : finite < lo ? lo : hi < finite ? hi : finite;
  }
  __syncwarp();
  for (int b = lane; b < page.dim / numbers; b += cuda::warp_lanes)
    bad += static_cast<int>(encode_ggml(type, clean + b * numbers, page.row(slot) + b * shape.bytes));
  return bad;
}

template <class Rows>
__device__ int RowPage<BlockCodes>::encode(int slot, const Rows& rows, int i, Scratch& s) const {
  const auto x = rows.row(i);
  int bad;
  if (codec.is_ggml()) bad = encode_ggml_blocks(*this, slot, x, rows.counted, s.clean);
  else if (codec.rounding == Rounding::half_away) bad = encode_blocks<Rounding::half_away>(*this, slot, x, rows.counted, s.codes);
  else bad = encode_blocks<Rounding::half_even>(*this, slot, x, rows.counted, s.codes);
  return cuda::warp_sum(bad);
}

}  // namespace cuda_kernels

}  // namespace kvcondense::prim
