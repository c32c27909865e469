#pragma once

#include <cstdint>
#include <type_traits>

#include <kvcondense/backend/cuda/dialect.cuh>
#include <kvcondense/core/config.hpp>

// Sums and running sums over a warp and a block. All threads call them together; orders are fixed, so results
// repeat bit for bit.

namespace kvcondense::cuda {

inline constexpr int warp_lanes = 32;

/// The block's dynamic shared memory, all of it, as one struct. Kernels are started with sizeof(T).
template <class T>
__device__ inline T& shared_as() {
  static_assert(std::is_trivially_default_constructible_v<T>);
  return *reinterpret_cast<T*>(dyn_smem());
}

__device__ inline int lane_of_warp() { return static_cast<int>(threadIdx.x) % warp_lanes; }
__device__ inline int warp_of_block() { return static_cast<int>(threadIdx.x) / warp_lanes; }

/// join over the warp, in every lane. `width`: over aligned parts of that many lanes.
template <class T, class Join>
__device__ inline T warp_reduce(T x, Join&& join, int width = warp_lanes) {
  for (int d = width / 2; d > 0; d /= 2) x = join(x, __shfl_xor_sync(full_warp, x, d));
  return x;
}
template <class T>
__device__ inline T warp_sum(T x, int width = warp_lanes) {
  return warp_reduce(x, [](T a, T b) { return a + b; }, width);
}
__device__ inline float warp_max(float x, int width = warp_lanes) {
  return warp_reduce(x, [](float a, float b) { return a > b ? a : b; }, width);
}

/// What lanes before this one hold, and all of them together.
template <class T>
struct Running {
  T before;
  T all;
};

template <class T>
__device__ inline Running<T> warp_running(T x) {
  T sum = x;
  for (int d = 1; d < warp_lanes; d *= 2) {
    const T lower = __shfl_up_sync(full_warp, sum, static_cast<unsigned>(d));
    if (lane_of_warp() >= d) sum += lower;
  }
  T before = static_cast<T>(sum - x);
  if constexpr (!std::is_integral_v<T>) {  // where a difference is rounded
    before = __shfl_up_sync(full_warp, sum, 1u);
    if (lane_of_warp() == 0) before = T{};
  }
  return {before, __shfl_sync(full_warp, sum, warp_lanes - 1)};
}

/// Shared memory of a block's sums: one number per warp. It may be used again after the next barrier.
template <class T, int Threads>
struct BlockScratch {
  static_assert(Threads % warp_lanes == 0 && Threads <= 1024);
  static constexpr int warps = Threads / warp_lanes;
  T part[warps];
};

/// The same over the block's threads. Two barriers, one of them first: scratch may be of the call before.
template <class T, int Threads>
__device__ inline Running<T> block_running(T x, BlockScratch<T, Threads>& scratch) {
  const Running<T> mine = warp_running(x);
  __syncthreads();
  if (lane_of_warp() == 0) scratch.part[warp_of_block()] = mine.all;
  __syncthreads();
  T before = mine.before, all = T{};
  for (int w = 0; w < scratch.warps; ++w) {
    if (w < warp_of_block()) before += scratch.part[w];
    all += scratch.part[w];
  }
  return {before, all};
}

/// join over the block, in every thread: lanes first, then warps in order. The same barriers.
template <class T, int Threads, class Join>
__device__ inline T block_reduce(T x, Join&& join, BlockScratch<T, Threads>& scratch) {
  x = warp_reduce(x, join);
  __syncthreads();
  if (lane_of_warp() == 0) scratch.part[warp_of_block()] = x;
  __syncthreads();
  x = scratch.part[0];
  for (int w = 1; w < scratch.warps; ++w) x = join(x, scratch.part[w]);
  return x;
}

template <class T, int Threads>
__device__ inline T block_sum(T x, BlockScratch<T, Threads>& scratch) {
  return block_reduce<T, Threads>(x, [](T a, T b) { return a + b; }, scratch);
}

}  // namespace kvcondense::cuda
