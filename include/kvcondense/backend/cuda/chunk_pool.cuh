#pragma once

#include <cmath>

#include <kvcondense/backend/cuda/context.cuh>
#include <kvcondense/backend/cuda/launch.cuh>
#include <kvcondense/core/status.hpp>
#include <kvcondense/core/view.hpp>
#include <kvcondense/prim/chunk_pool.hpp>
#include <kvcondense/prim/ends.hpp>

namespace kvcondense::prim {
namespace cuda_kernels {

/// A thread a chunk, so that its sum is made in ascending order. Grid: blocks, heads.
template <int Threads>
__global__ void __launch_bounds__(Threads) pool_chunks(const Ends* skip, ChunkReduce reduce, index_t chunk, RaggedView<float> scores) {
  const index_t head = blockIdx.y, n = scores.length(head);
  const Ends ends = skip == nullptr ? Ends{} : skip[head].within(n);
  const index_t last = n - ends.suffix, step = static_cast<index_t>(gridDim.x) * Threads * chunk;
  float* s = scores.row(head);
  for (index_t first = ends.prefix + (static_cast<index_t>(blockIdx.x) * Threads + threadIdx.x) * chunk; first < last; first += step) {
    const index_t end = first + chunk < last ? first + chunk : last;
    float sum = 0.0f;
    index_t terms = 0;
    for (index_t j = first; j < end; ++j) {
      if (s[j] != s[j]) continue;
      sum += s[j];
      ++terms;
    }
    if (reduce == ChunkReduce::mean && terms > 0) sum /= static_cast<float>(terms);
    for (index_t j = first; j < end; ++j)
      if (s[j] == s[j]) s[j] = sum;
  }
}

}  // namespace cuda_kernels

/// Bit for bit the CPU's.
template <>
struct ChunkPool<Cuda> {
  static Status run(Context<Cuda>& ctx, const Ends* skip, ChunkReduce reduce, index_t chunk, RaggedView<float> scores) {
    if (chunk < 1) return Status::invalid_argument;
    return cuda::launch(ctx, cuda_kernels::pool_chunks<64>, {16, scores.heads}, 64, 0, skip, reduce, chunk, scores);
  }
};

}  // namespace kvcondense::prim
