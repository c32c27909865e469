#pragma once

#include <cmath>
#include <cstdint>

#include <kvcondense/backend/cuda/block.cuh>
#include <kvcondense/backend/cuda/context.cuh>
#include <kvcondense/backend/cuda/launch.cuh>
#include <kvcondense/backend/cuda/slot_rows.cuh>
#include <kvcondense/core/shape.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/core/view.hpp>

// What a choice adds to the logits of chosen units, by the keys of their slots.

namespace kvcondense::prim {

/// Chosen units of query heads, a row each, and the queries that chose them.
struct BiasedUnits {
  RaggedView<const std::int32_t> units;  ///< counted from the head's first candidate
  const index_t* count = nullptr;
  const index_t* first = nullptr;        ///< per KV head: the first candidate
  index_t heads = 0;                     ///< KV heads
  index_t size = 1, origin = 0;          ///< unit u begins at slot origin + u * size
  const float* queries = nullptr;        ///< a row per row of the lists
};

namespace cuda_kernels {

inline constexpr int bias_threads = 128, bias_warps = bias_threads / cuda::warp_lanes;

struct BlockBiasShared {
  float query[max_head_dim];
  float row[bias_warps][max_head_dim];
  float top[bias_warps], sum[bias_warps];
};

/// Sums of exp(logit - top) of parts become one. A part without slots has no sum and the top -inf; one of NaN passes it on.
__device__ inline void join_weights(float& top, float& sum, float other_top, float other_sum) {
  const float largest = other_top > top ? other_top : top;
  const auto share = [&](float t) { return t > -INFINITY ? expf(t - largest) : 1.0f; };
  sum = sum * share(top) + other_sum * share(other_top), top = largest;
}

/// bias = the unit's own logit minus the logarithm of what its first `read` slots weigh: a block a unit, a warp a slot. Grid: places in the
/// lists, rows.
template <int Threads>
__global__ void __launch_bounds__(Threads, 4) block_biases(SlotRows<Cuda> keys, BiasedUnits chosen, index_t read, float scale, const float* scores, float* bias) {
  BlockBiasShared& shared = cuda::shared_as<BlockBiasShared>();
  const index_t i = blockIdx.x, row = blockIdx.y, head = row * chosen.heads / chosen.units.heads;
  if (i >= chosen.count[row]) return;  // the same in all threads
  const int dim = static_cast<int>(keys.dim()), warp = cuda::warp_of_block(), lane = cuda::lane_of_warp();
  for (int c = static_cast<int>(threadIdx.x); c < dim; c += Threads) shared.query[c] = chosen.queries[row * dim + c];
  __syncthreads();
  const index_t u = chosen.units.row(row)[i], begin = chosen.origin + (chosen.first[head] + u) * chosen.size;
  float top = -INFINITY, sum = 0.0f;  // the same in all lanes
  for (index_t slot = begin + warp; slot < begin + read; slot += bias_warps) {
    keys.load(keys.locate(head, slot), shared.row[warp]);
    float dot = 0.0f;
    for (int c = lane; c < dim; c += cuda::warp_lanes) dot += shared.query[c] * shared.row[warp][c];
    const float logit = scale * cuda::warp_sum(dot);
    if (logit > top) sum *= expf(top - logit), top = logit;
    sum += expf(logit - top);
  }
  if (lane == 0) shared.top[warp] = top, shared.sum[warp] = sum;
  __syncthreads();
  if (threadIdx.x != 0) return;
  for (int w = 1; w < bias_warps; ++w) join_weights(top, sum, shared.top[w], shared.sum[w]);
  const index_t at = chosen.units.offset[row];
  bias[at + i] = scale * scores[at + u] - top - logf(sum);
}

}  // namespace cuda_kernels

/// Lists, scores and biases lie on the device, and have the same offsets, which may lie in steering memory.
struct UnitBiases {
  /// A chosen unit's first `read` slots together weigh what its score says. `most`: no row has more units.
  static Status of_blocks(Context<Cuda>& ctx, const SlotRows<Cuda>& keys, const BiasedUnits& chosen, index_t read, float scale, const float* scores, index_t most,
                          float* bias) {
    using namespace cuda_kernels;
    return cuda::launch(ctx, block_biases<bias_threads>, {most, chosen.units.heads}, bias_threads, sizeof(BlockBiasShared), keys, chosen, read, scale, scores, bias);
  }
};

}  // namespace kvcondense::prim
