#pragma once

#include <kvcondense/backend/cuda/context.cuh>
#include <kvcondense/backend/cuda/launch.cuh>
#include <kvcondense/core/status.hpp>
#include <kvcondense/core/view.hpp>
#include <kvcondense/prim/block_stride.hpp>

namespace kvcondense::prim {
namespace cuda_kernels {

inline constexpr int stride_threads = 128;

/// Grid: blocks that cover `count` places, heads.
template <int Threads>
__global__ void __launch_bounds__(Threads) mark_blocks(BlockPattern pattern, index_t first, index_t count, RaggedView<float> marks) {
  const index_t h = blockIdx.y, i = static_cast<index_t>(blockIdx.x) * Threads + threadIdx.x, place = marks.length(h) - count + i;
  if (i < count && place >= 0) marks.row(h)[place] = pattern.has(first + i, h) ? 1.0f : 0.0f;
}

}  // namespace cuda_kernels

template <>
struct BlockStride<Cuda> {
  static Status mark(Context<Cuda>& ctx, const BlockPattern& pattern, index_t first, index_t count, RaggedView<float> marks) {
    using namespace cuda_kernels;
    if (pattern.block < 1 || pattern.every < 1 || pattern.shift < 0) return Status::invalid_argument;
    return cuda::launch(ctx, mark_blocks<stride_threads>, {cuda::covering(count, stride_threads), marks.heads}, stride_threads, 0, pattern, first, count, marks);
  }
};

}  // namespace kvcondense::prim
