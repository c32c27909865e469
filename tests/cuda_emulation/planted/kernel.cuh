#pragma once

// A small kernel with everything a large one has: a ring of asynchronous copies, warps that read what other
// lanes fetched, a merge through shared memory that is used twice, a tail. And one bug, chosen at compile time,
// or none: what an emulation must find.

#include <kvcondense/backend/cuda/dialect.cuh>

namespace planted {

enum class Bug {
  none,
  no_copy_wait,            ///< reads the ring without waiting for the copy
  weak_copy_wait,          ///< waits for one group too few
  no_sync_after_wait,      ///< reads what other lanes fetched, without a warp barrier
  no_sync_before_refill,   ///< refills a stage that other lanes may still read
  no_sync_before_merge,    ///< reads the other warps' sums without a barrier
  no_sync_between_merges,  ///< writes the second merge over the first one
  barrier_in_branch,       ///< half the block is not in the barrier
  two_barriers,            ///< the halves of the block are in different barriers
  shuffle_in_branch,       ///< a shuffle of the whole warp that half of it reaches
  mask_without_me,         ///< a shuffle by lanes that its mask does not name
  source_outside_mask,     ///< a shuffle from a lane that its mask does not name
  exit_with_copy,          ///< the last copy is never waited for
  unaligned_copy,          ///< 16 bytes from an address that is a multiple of 4
  shared_overrun,          ///< writes behind its shared memory
  global_overrun,          ///< writes behind the result
  no_tail_mask,            ///< sums what lies behind the input
};

inline constexpr const char* names[] = {
    "none",           "no_copy_wait",        "weak_copy_wait",         "no_sync_after_wait", "no_sync_before_refill",
    "no_sync_before_merge", "no_sync_between_merges", "barrier_in_branch", "two_barriers", "shuffle_in_branch",
    "mask_without_me", "source_outside_mask", "exit_with_copy",        "unaligned_copy",     "shared_overrun",
    "global_overrun", "no_tail_mask"};
inline constexpr int bugs = sizeof(names) / sizeof(names[0]);

inline constexpr int warps = 4, stages = 2, tile = 128;  // floats; 16 bytes a lane
inline constexpr int ring_bytes = warps * stages * tile * 4, merge_bytes = warps * 4;

/// The sum over a warp, in every lane.
__device__ inline float warp_sum(float x) {
  for (int d = 16; d > 0; d /= 2) x += __shfl_xor_sync(kvcondense::cuda::full_warp, x, d);
  return x;
}

/// out[0] = sum of x[0, n), out[1] = the largest of the warps' parts of it. x holds whole tiles, all of them
/// finite; n may end inside one.
template <Bug B>
__global__ void __launch_bounds__(warps * 32) sum(const float* x, int n, int tiles, float* out) {
  namespace cuda = kvcondense::cuda;
  const int lane = static_cast<int>(threadIdx.x % 32), warp = static_cast<int>(threadIdx.x / 32);
  float* ring = reinterpret_cast<float*>(cuda::dyn_smem()) + warp * stages * tile;
  float* merge = reinterpret_cast<float*>(cuda::dyn_smem() + ring_bytes);

  const auto fetch = [&](int t, int stage) {
    if (t < tiles) cuda::copy_async(ring + stage * tile + lane * 4, x + t * tile + lane * 4 + (B == Bug::unaligned_copy));
    cuda::copy_async_commit();
  };
  fetch(warp, 0);
  float mine = 0.0f;
  for (int t = warp, stage = 0; t < tiles; t += warps, stage ^= 1) {
    fetch(t + warps, stage ^ 1);
    if constexpr (B == Bug::weak_copy_wait) cuda::copy_async_wait<2>();
    else if constexpr (B != Bug::no_copy_wait) cuda::copy_async_wait<1>();
    if constexpr (B != Bug::no_sync_after_wait) __syncwarp();
    for (int i = 0; i < 4; ++i) {  // a column of the tile: three of four numbers came from other lanes
      const int at = i * 32 + lane;
      if (B == Bug::no_tail_mask || t * tile + at < n) mine += ring[stage * tile + at];
    }
    if constexpr (B != Bug::no_sync_before_refill) __syncwarp();
  }
  if constexpr (B == Bug::exit_with_copy) {
    if (threadIdx.x == 5) cuda::copy_async(ring + lane * 4, x + lane * 4), cuda::copy_async_commit();
  } else {
    cuda::copy_async_wait<0>();
  }

  if constexpr (B == Bug::mask_without_me) mine += __shfl_xor_sync(0x0000ffffu, 0.0f, 1);
  if constexpr (B == Bug::source_outside_mask) {
    if (lane < 16) mine += 0.0f * __shfl_sync(0x0000ffffu, 1.0f, 20);
  }
  if constexpr (B == Bug::shuffle_in_branch) {
    if (lane < 16) mine += __shfl_xor_sync(cuda::full_warp, 0.0f, 1);
  }
  if constexpr (B == Bug::barrier_in_branch) {
    if (warp < 2) __syncthreads();
  }
  if constexpr (B == Bug::two_barriers) {
    if (warp < 2) {
      __syncthreads();
    } else {
      __syncthreads();
    }
  }

  mine = warp_sum(mine);
  if (lane == 0) merge[warp + (B == Bug::shared_overrun ? 16 : 0)] = mine;
  if constexpr (B != Bug::no_sync_before_merge) __syncthreads();
  float all = 0.0f;
  for (int w = 0; w < warps; ++w) all += merge[w];
  if constexpr (B != Bug::no_sync_between_merges) __syncthreads();
  if (lane == 0) merge[warp] = mine < 0.0f ? 0.0f : mine;
  __syncthreads();
  float top = 0.0f;
  for (int w = 0; w < warps; ++w) top = merge[w] > top ? merge[w] : top;
  if (threadIdx.x == 0) {
    out[0] = all;
    out[B == Bug::global_overrun ? 4 : 1] = top;
  }
}

}  // namespace planted
