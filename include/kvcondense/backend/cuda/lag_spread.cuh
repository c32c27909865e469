#pragma once

#include <cmath>

#include <kvcondense/backend/cuda/block.cuh>
#include <kvcondense/backend/cuda/context.cuh>
#include <kvcondense/backend/cuda/launch.cuh>
#include <kvcondense/backend/cuda/open_blocks.cuh>
#include <kvcondense/backend/cuda/row_tile.cuh>
#include <kvcondense/backend/cuda/slot_rows.cuh>
#include <kvcondense/core/shape.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/core/view.hpp>
#include <kvcondense/prim/lag_spread.hpp>

namespace kvcondense::prim {
namespace cuda_kernels {

inline constexpr index_t lag_blocks = 16;  ///< a head; lengths are known to the device only, so blocks stride
static_assert(tile_threads >= max_head_dim);

struct LagShared {
  cuda::BlockScratch<index_t, tile_threads> run;
  cuda::BlockScratch<float, tile_threads> sums;
  float lowest[max_head_dim], inverse[max_head_dim];
};

/// A block of threads a block of slots: extremes of the one behind it, a thread a channel, then deviations, a warp a row. What it adds
/// to scores leaves places that compete competing, so other blocks may look at them meanwhile. Grid: blocks, heads.
template <int Threads>
__global__ void __launch_bounds__(Threads, 2) lag_spread(SlotRows<Cuda> rows, index_t block, float weight, RaggedView<float> spread, RaggedView<float> scores) {
  static_assert(Threads == tile_threads);
  LagShared& shared = cuda::shared_as<LagShared>();
  auto* tile = reinterpret_cast<float*>(cuda::dyn_smem() + (sizeof(LagShared) + 15) / 16 * 16);
  const int dim = static_cast<int>(rows.dim()), stride = tile_stride(dim), c = static_cast<int>(threadIdx.x);
  const index_t h = blockIdx.y;
  float *u = spread.row(h), *s = scores.row(h);
  const Competing run = competing<Threads>(s, scores.length(h), {}, shared.run);
  for (index_t b = blockIdx.x; b * block < run.size(); b += lag_blocks) {
    const index_t first = run.first + b * block;
    float lowest = INFINITY, highest = -INFINITY;
    // Both blocks pass through one loop, the later one first, so that codes are taken apart in one place.
    for (int own = 0; own < 2; ++own) {
      for (index_t at = 0; at < block; at += tile_rows) {
        const index_t from = first + (own == 0 ? block : 0) + at;
        const int count = block - at < tile_rows ? static_cast<int>(block - at) : tile_rows;
        __syncthreads();
        load_rows(rows, h, [&](int r) { return from + r; }, count, count, tile);
        __syncthreads();
        if (own == 0) {
          for (int r = 0; r < count && c < dim; ++r) {
            const float x = tile[r * stride + c];
            lowest = x < lowest ? x : lowest;
            highest = x > highest ? x : highest;
          }
          continue;
        }
        for (int r = cuda::warp_of_block(); r < count; r += tile_warps) {
          float sum = 0.0f, squares = 0.0f;
          for (int k = cuda::lane_of_warp(); k < dim; k += cuda::warp_lanes) sum += (tile[r * stride + k] - shared.lowest[k]) * shared.inverse[k];
          const float mean = cuda::warp_sum(sum) / static_cast<float>(dim);
          for (int k = cuda::lane_of_warp(); k < dim; k += cuda::warp_lanes) {
            const float y = (tile[r * stride + k] - shared.lowest[k]) * shared.inverse[k] - mean;
            squares += y * y;
          }
          squares = cuda::warp_sum(squares);
          if (cuda::lane_of_warp() == 0) u[from + r] = dim < 2 ? 0.0f : sqrtf(squares / static_cast<float>(dim - 1));
        }
      }
      if (own == 0 && c < dim) {
        const float range = highest - lowest;
        const bool good = range - range == 0.0f;
        shared.inverse[c] = good ? 1.0f / (range > 1e-6f ? range : 1e-6f) : 0.0f;
        shared.lowest[c] = good ? lowest : 0.0f;
      }
    }
    __syncthreads();
    float top = -INFINITY, sum = 0.0f;
    const auto finite = [](float x) { return x - x == 0.0f; };
    for (index_t j = first + c; j < first + block; j += Threads)
      if (finite(u[j])) top = u[j] > top ? u[j] : top;
    top = cuda::block_reduce(top, [](float x, float y) { return x > y ? x : y; }, shared.sums);
    for (index_t j = first + c; j < first + block; j += Threads)
      if (finite(u[j])) sum += expf(u[j] - top);
    sum = cuda::block_sum<float, Threads>(sum, shared.sums);
    for (index_t j = first + c; j < first + block; j += Threads) s[j] += finite(u[j]) ? weight * (expf(u[j] - top) / sum) : NAN;
  }
}

}  // namespace cuda_kernels

/// Sums of a row and of a block in another order than the CPU's.
template <>
struct LagSpread<Cuda> {
  static Status add(Context<Cuda>& ctx, const SlotRows<Cuda>& rows, index_t block, float weight, RaggedView<float> spread, RaggedView<float> scores) {
    using namespace cuda_kernels;
    if (block < 1) return Status::invalid_argument;
    if (scores.heads != rows.heads()) return Status::shape_mismatch;
    const std::size_t bytes = (sizeof(LagShared) + 15) / 16 * 16 + tile_bytes(tile_rows, rows.dim());
    return cuda::launch(ctx, lag_spread<tile_threads>, {lag_blocks, scores.heads}, tile_threads, bytes, rows, block, weight, spread, scores);
  }
};

}  // namespace kvcondense::prim
