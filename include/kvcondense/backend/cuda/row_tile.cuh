#pragma once

#include <cmath>
#include <cstddef>

#include <kvcondense/backend/cuda/block.cuh>
#include <kvcondense/backend/cuda/slot_rows.cuh>
#include <kvcondense/core/config.hpp>

// Stored rows as floats in shared memory, and products of many of them with many others: what words share that compare rows.

namespace kvcondense::prim::cuda_kernels {

inline constexpr int tile_threads = 256, tile_warps = tile_threads / cuda::warp_lanes;
inline constexpr int tile_rows = 32;    ///< rows that others are compared with together
inline constexpr int tile_others = 16;  ///< of those
inline constexpr int tile_lanes = tile_threads / tile_rows;          ///< threads of a row, neighbours in a warp
inline constexpr int tile_each = tile_others / tile_lanes;           ///< others of a thread: its lane, its lane + tile_lanes ...

/// Numbers from a row to the next: whole 16 bytes, of which neighbouring rows begin in other banks.
KVCONDENSE_HD constexpr int tile_stride(index_t dim) { return static_cast<int>((dim + 3) / 4 * 4 + 4); }
KVCONDENSE_HD constexpr std::size_t tile_bytes(index_t rows, index_t dim) { return static_cast<std::size_t>(rows * tile_stride(dim)) * sizeof(float); }

/// to[r] = slot(r)'s row for r < count, zeros for rows up to `all` and behind a row's end. A warp a row; all threads of the block, no
/// barrier. `slot` may be negative: zeros.
template <class Slot>
__device__ inline void load_rows(const SlotRows<Cuda>& rows, index_t head, Slot&& slot, int count, int all, float* to) {
  const int dim = static_cast<int>(rows.dim()), stride = tile_stride(dim), lane = cuda::lane_of_warp();
  for (int r = cuda::warp_of_block(); r < all; r += static_cast<int>(blockDim.x) / cuda::warp_lanes) {
    const index_t j = r < count ? slot(r) : -1;
    const SlotRun at = j < 0 ? SlotRun{} : rows.locate(head, j);
    if (j >= 0) rows.load(at, to + r * stride);
    for (int c = (j >= 0 ? dim : 0) + lane; c < stride; c += cuda::warp_lanes) to[r * stride + c] = 0.0f;
  }
}

/// 1 / length of a loaded row, in every lane of the warp: 0 for zeros, NaN where the square is not finite.
__device__ inline float inverse_length(const float* row, int dim) {
  float square = 0.0f;
  for (int c = cuda::lane_of_warp(); c < dim; c += cuda::warp_lanes) square += row[c] * row[c];
  square = cuda::warp_sum(square);
  return !(square < INFINITY) ? NAN : square > 0.0f ? 1.0f / sqrtf(square) : 0.0f;
}

/// Products of this thread's row with its others.
__device__ inline void tile_products(const float* rows, const float* others, int dim, float (&out)[tile_each]) {
  const int stride = tile_stride(dim), row = static_cast<int>(threadIdx.x) / tile_lanes, lane = static_cast<int>(threadIdx.x) % tile_lanes;
#pragma unroll
  for (int e = 0; e < tile_each; ++e) out[e] = 0.0f;
  for (int c = 0; c < dim; c += 4) {
    const float4 x = *reinterpret_cast<const float4*>(rows + row * stride + c);
#pragma unroll
    for (int e = 0; e < tile_each; ++e) {
      const float4 y = *reinterpret_cast<const float4*>(others + (lane + e * tile_lanes) * stride + c);
      out[e] += x.x * y.x, out[e] += x.y * y.y, out[e] += x.z * y.z, out[e] += x.w * y.w;
    }
  }
}

}  // namespace kvcondense::prim::cuda_kernels
