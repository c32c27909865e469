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

/// Rows of small codes with block scales; not of ggml.
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
    const std::uint32_t stored = code(slot, c);
    const float element = is_integer(codec.element) ? static_cast<float>(integer_value(bits_of(codec.element), stored))
                                                    : mini_float_value(mini_float_of(codec.element), stored);
    return __fmul_rn(element, scale(slot, c / static_cast<int>(codec.group(dim))));
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

}  // namespace cuda_kernels

/// Mini floats and signed integers with any block scale; blocks of ggml are `not_supported`.
template <>
struct PageCodec<Cuda, BlockCodes> {
  static Status encode(Context<Cuda>& ctx, const BlockCodes& codec, const PageBatch& batch, index_t* repaired = nullptr) {
    using namespace cuda_kernels;
    if (const Status s = usable(codec, batch); s != Status::ok) return s;
    const auto kernel = codec.rounding == Rounding::half_away ? encode_blocks<Rounding::half_away> : encode_blocks<Rounding::half_even>;
    return cuda::launch(ctx, kernel, {cuda::covering(batch.most, codec_warps), batch.size}, codec_threads, sizeof(TokenShared), codec, batch, repaired);
  }
  static Status decode(Context<Cuda>& ctx, const BlockCodes& codec, const PageBatch& batch) {
    using namespace cuda_kernels;
    if (const Status s = usable(codec, batch); s != Status::ok) return s;
    return cuda::launch(ctx, decode_rows<BlockCodes>, {cuda::covering(batch.most, codec_warps), batch.size}, codec_threads, 0, codec, batch);
  }

 private:
  static Status usable(const BlockCodes& codec, const PageBatch& batch) {
    if (const Status s = cuda_kernels::check(codec, batch); s != Status::ok) return s;
    return codec.is_ggml() ? Status::not_supported : Status::ok;
  }
};

}  // namespace kvcondense::prim
