#pragma once

#include <cstdint>

#include <kvcondense/backend/cuda/block.cuh>
#include <kvcondense/backend/cuda/context.cuh>
#include <kvcondense/backend/cuda/launch.cuh>
#include <kvcondense/backend/cuda/page_codec.cuh>
#include <kvcondense/backend/cuda/page_rows.cuh>
#include <kvcondense/core/status.hpp>
#include <kvcondense/prim/block_codes.hpp>

namespace kvcondense::prim {
namespace cuda_kernels {

/// Rows of small codes with block scales.
template <>
struct RowPage<BlockCodes> {
  BlockCodes codec;
  std::byte* data;
  int slots, dim;

  __device__ RowPage(const BlockCodes& c, std::byte* page, int page_slots, int row) : codec(c), data(page), slots(page_slots), dim(row) {}
  __device__ std::byte* row(int slot) const { return data + slot * codec.row_bytes(dim); }
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

/// A warp a slot, a block of numbers after the other.
template <Rounding Rule>
__global__ void __launch_bounds__(codec_threads, 8) encode_blocks(BlockCodes codec, PageBatch batch, index_t* repaired) {
  TokenShared& shared = cuda::shared_as<TokenShared>();
  const PageRows job = batch.jobs[blockIdx.y];
  const int i = static_cast<int>(blockIdx.x) * codec_warps + cuda::warp_of_block();
  if (i >= job.count) return;  // whole warps leave, and no block barrier follows
  const RowPage<BlockCodes> page(codec, job.page, static_cast<int>(batch.slots), static_cast<int>(batch.dim));
  const float* x = job.rows + i * job.step;
  std::uint8_t* codes = shared.codes[cuda::warp_of_block()];
  const int lane = cuda::lane_of_warp(), slot = job.first + i, group = static_cast<int>(codec.group(page.dim));
  const bool fixed = codec.scale == BlockScale::fixed;
  const float top = largest_of(codec.element);
  int bad = 0;
  for (int from = 0; from < page.dim; from += group) {
    const int end = from + group < page.dim ? from + group : page.dim;
    GroupRange range;
    for (int c = from + lane; c < end; c += cuda::warp_lanes) {
      range.include(x[c]);
      bad += repairs(x[c], false);
    }
    range.lo = cuda::warp_reduce(range.lo, [](float a, float b) { return a < b ? a : b; });
    range.hi = cuda::warp_max(range.hi);
    const float amax = range.lo <= range.hi ? (range.hi < -range.lo ? -range.lo : range.hi) : 0.0f;
    const BlockParams p = fit_block(codec.element, codec.scale, codec.factor, amax);
    if (lane == 0) {
      std::byte* at = page.scale_of(slot, from / group);
      for (int b = 0; b < static_cast<int>(codec.scale_bytes()); ++b) at[b] = static_cast<std::byte>(p.stored >> (8 * b) & 255u);
      bad += static_cast<int>(p.saturated);
    }
    for (int c = from + lane; c < end; c += cuda::warp_lanes) {
      const float clean = without_nan(x[c]), y = clean * p.inverse;
      codes[c] = static_cast<std::uint8_t>(element_code<Rule>(codec.element, limit_to(clean, fixed ? 2.0f * largest_coded : amax) * p.inverse));
      bad += static_cast<int>(fixed && repairs(x[c], false) == 0 && (y > top || y < -top));
    }
  }
  __syncwarp();
  for (int b = lane; b < static_cast<int>(codec.code_bytes(page.dim)); b += cuda::warp_lanes)
    page.row(slot)[b] = packed_byte(bits_of(codec.element), codes, page.dim, b);
  bad = cuda::warp_sum(bad);
  if (lane == 0) add_repaired(repaired, bad);
}

struct GgmlShared {
  float clean[codec_warps][max_head_dim];
};

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

/// A warp a slot: its numbers made finite, a lane a number of a group; then a lane a block, as ggml's reference writes it.
template <int Threads>
__global__ void __launch_bounds__(Threads) encode_ggml_rows(BlockCodes codec, PageBatch batch, index_t* repaired) {
  static_assert(Threads == codec_threads);
  GgmlShared& shared = cuda::shared_as<GgmlShared>();
  const PageRows job = batch.jobs[blockIdx.y];
  const int i = static_cast<int>(blockIdx.x) * codec_warps + cuda::warp_of_block();
  if (i >= job.count) return;  // whole warps leave, and no block barrier follows
  const RowPage<BlockCodes> page(codec, job.page, static_cast<int>(batch.slots), static_cast<int>(batch.dim));
  const float* x = job.rows + i * job.step;
  float* clean = shared.clean[cuda::warp_of_block()];
  const GgmlShape shape = ggml_shape(codec.ggml);
  const int lane = cuda::lane_of_warp(), group = static_cast<int>(shape.group), numbers = static_cast<int>(shape.numbers);
  int bad = 0;
  for (int from = 0; from < page.dim; from += group) {  // at most a warp's lanes
    GroupRange range;
    const float own = lane < group ? x[from + lane] : 0.0f;
    if (lane < group) range.include(own);
    const int broken = cuda::warp_sum(repairs(own, false));
    range.lo = cuda::warp_reduce(range.lo, [](float a, float b) { return a < b ? a : b; });
    range.hi = cuda::warp_max(range.hi);
    if (!(range.lo <= range.hi)) range = {0.0f, 0.0f};
    const float top = range.hi < -range.lo ? -range.lo : range.hi;
    const float lo = has_minimum(codec.ggml) ? range.lo : -top, hi = has_minimum(codec.ggml) ? range.hi : top, finite = without_nan(own);
    if (lane < group) clean[from + lane] = broken == 0 ? own : finite < lo ? lo : hi < finite ? hi : finite;
    bad += lane == 0 ? broken : 0;
  }
  __syncwarp();
  for (int b = lane; b < page.dim / numbers; b += cuda::warp_lanes)
    bad += static_cast<int>(encode_ggml(codec.ggml, clean + b * numbers, page.row(job.first + i) + b * shape.bytes));
  bad = cuda::warp_sum(bad);
  if (lane == 0) add_repaired(repaired, bad);
}

}  // namespace cuda_kernels

/// Mini floats and signed integers with any block scale, and blocks of ggml.
template <>
struct PageCodec<Cuda, BlockCodes> {
  static Status encode(Context<Cuda>& ctx, const BlockCodes& codec, const PageBatch& batch, index_t* repaired = nullptr) {
    using namespace cuda_kernels;
    if (const Status s = check(codec, batch); s != Status::ok) return s;
    if (codec.is_ggml())
      return cuda::launch(ctx, encode_ggml_rows<codec_threads>, {cuda::covering(batch.most, codec_warps), batch.size}, codec_threads, sizeof(GgmlShared), codec,
                          batch, repaired);
    const auto kernel = codec.rounding == Rounding::half_away ? encode_blocks<Rounding::half_away> : encode_blocks<Rounding::half_even>;
    return cuda::launch(ctx, kernel, {cuda::covering(batch.most, codec_warps), batch.size}, codec_threads, sizeof(TokenShared), codec, batch, repaired);
  }
  static Status decode(Context<Cuda>& ctx, const BlockCodes& codec, const PageBatch& batch) {
    using namespace cuda_kernels;
    if (const Status s = check(codec, batch); s != Status::ok) return s;
    return cuda::launch(ctx, decode_rows<BlockCodes>, {cuda::covering(batch.most, codec_warps), batch.size}, codec_threads, 0, codec, batch);
  }
};

}  // namespace kvcondense::prim
