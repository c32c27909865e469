#pragma once

#include <cmath>

#include <kvcondense/backend/cuda/block.cuh>
#include <kvcondense/backend/cuda/context.cuh>
#include <kvcondense/backend/cuda/launch.cuh>
#include <kvcondense/core/status.hpp>
#include <kvcondense/core/view.hpp>
#include <kvcondense/prim/ends.hpp>
#include <kvcondense/prim/open_blocks.hpp>

namespace kvcondense::prim {
namespace cuda_kernels {

inline constexpr int open_threads = 256;

/// Places [first, last) of a row.
struct Competing {
  index_t first, last;
  __device__ index_t size() const { return last - first; }
};

/// From the first to the last place that competes, between the ends; empty where none does. All threads of a block.
template <int Threads>
__device__ inline Competing competing(const float* scores, index_t n, Ends ends, cuda::BlockScratch<index_t, Threads>& scratch) {
  index_t first = n, last = ends.prefix;
  for (index_t i = ends.prefix + threadIdx.x; i < n - ends.suffix; i += Threads) {
    if (scores[i] == INFINITY) continue;
    first = i < first ? i : first;
    last = i + 1;
  }
  last = cuda::block_reduce(last, [](index_t a, index_t b) { return a > b ? a : b; }, scratch);
  first = cuda::block_reduce(first, [](index_t a, index_t b) { return a < b ? a : b; }, scratch);
  return {first < last ? first : last, last};
}

/// A block a row.
template <int Threads>
__global__ void __launch_bounds__(Threads) mark_open(RaggedView<const float> settled, index_t first, index_t block, RaggedView<float> scores) {
  auto& scratch = cuda::shared_as<cuda::BlockScratch<index_t, Threads>>();
  const index_t h = blockIdx.x, n = scores.length(h);
  index_t base = 0;
  for (index_t i = threadIdx.x; i < n; i += Threads)
    if (settled.row(h)[i] >= 1.0f) base = i + 1;
  base = cuda::block_reduce(base, [](index_t a, index_t b) { return a > b ? a : b; }, scratch);
  const index_t least = first < n ? first : n;
  base = base > least ? base : least;
  const index_t blocks = (n - base) / block - 1, open = base + (blocks > 0 ? blocks * block : 0);
  for (index_t i = threadIdx.x; i < n; i += Threads) scores.row(h)[i] = i >= base && i < open ? 0.0f : INFINITY;
}

template <int Threads>
__global__ void __launch_bounds__(Threads) settle_open(RaggedView<const float> scores, RaggedView<float> settled) {
  auto& scratch = cuda::shared_as<cuda::BlockScratch<index_t, Threads>>();
  const index_t h = blockIdx.x;
  const Competing run = competing<Threads>(scores.row(h), scores.length(h), {}, scratch);
  for (index_t i = threadIdx.x; run.size() > 0 && i < run.last; i += Threads) settled.row(h)[i] = 1.0f;
}

template <int Threads>
__global__ void __launch_bounds__(Threads) count_open(RaggedView<const float> scores, const Ends* skip, index_t* count) {
  auto& scratch = cuda::shared_as<cuda::BlockScratch<index_t, Threads>>();
  const index_t h = blockIdx.x;
  const Ends ends = skip == nullptr ? Ends{} : skip[h].within(scores.length(h));
  const Competing run = competing<Threads>(scores.row(h), scores.length(h), ends, scratch);
  if (threadIdx.x == 0) count[h] = run.size();
}

}  // namespace cuda_kernels

template <>
struct OpenBlocks<Cuda> {
  static Status mark(Context<Cuda>& ctx, RaggedView<const float> settled, index_t first, index_t block, RaggedView<float> scores) {
    using namespace cuda_kernels;
    if (block < 1) return Status::invalid_argument;
    return cuda::launch(ctx, mark_open<open_threads>, {scores.heads}, open_threads, shared, settled, first, block, scores);
  }
  static Status settle(Context<Cuda>& ctx, RaggedView<const float> scores, RaggedView<float> settled) {
    using namespace cuda_kernels;
    return cuda::launch(ctx, settle_open<open_threads>, {scores.heads}, open_threads, shared, scores, settled);
  }
  static Status count(Context<Cuda>& ctx, RaggedView<const float> scores, const Ends* skip, index_t* count) {
    using namespace cuda_kernels;
    return cuda::launch(ctx, count_open<open_threads>, {scores.heads}, open_threads, shared, scores, skip, count);
  }

 private:
  static constexpr std::size_t shared = sizeof(cuda::BlockScratch<index_t, cuda_kernels::open_threads>);
};

}  // namespace kvcondense::prim
