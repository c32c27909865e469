#pragma once

#include <cstdint>

#include <kvcondense/backend/cuda/block.cuh>
#include <kvcondense/core/config.hpp>
#include <kvcondense/prim/rank_bits.hpp>

namespace kvcondense::prim::cuda_kernels {

inline constexpr int digit_bins = 2048;

/// Where the winners of a row end: all keys above `bits` and `ties` of the `equal` keys that have these bits.
struct BlockCutoff {
  std::uint32_t bits = 0xffffffffu;
  std::uint32_t ties = 0;
  std::uint32_t equal = 0;
};

template <int Threads>
struct CutoffScratch {
  std::uint32_t keys[digit_bins];
  cuda::BlockScratch<std::uint32_t, Threads> sums;
  std::uint32_t digit, rest, equal;
};

/// A key is looked at from the top bits down: 11, 11 and 10 of them.
struct Digit {
  int shift;
  std::uint32_t most;
};
__device__ inline Digit digit_of(int pass) {
  return pass == 0 ? Digit{21, 2047} : pass == 1 ? Digit{10, 2047} : Digit{0, 1023};
}

/// Of the counts in scratch.keys: the bin of the k-th largest key, how many of the k fall into it, how many
/// are in it. All threads; 1 <= k <= sum of the counts.
template <int Threads>
__device__ inline void pick_bin(std::uint32_t k, CutoffScratch<Threads>& scratch) {
  constexpr int each = digit_bins / Threads;
  const int top = digit_bins - static_cast<int>(threadIdx.x) * each;  // this thread's bins end here
  std::uint32_t mine = 0;
  for (int i = 1; i <= each; ++i) mine += scratch.keys[top - i];
  const std::uint32_t above = cuda::block_running<std::uint32_t, Threads>(mine, scratch.sums).before;
  if (above < k && k <= above + mine) {
    std::uint32_t left = k - above;
    int bin = top - 1;
    while (scratch.keys[bin] < left) left -= scratch.keys[bin--];
    scratch.digit = static_cast<std::uint32_t>(bin);
    scratch.rest = left;
    scratch.equal = scratch.keys[bin];
  }
  __syncthreads();
}

/// The cutoff of the k largest of n scores, by all threads of a block: three passes whatever the data.
template <int Threads>
__device__ inline BlockCutoff block_cutoff(const float* scores, index_t n, index_t k, CutoffScratch<Threads>& scratch) {
  static_assert(digit_bins % Threads == 0);
  BlockCutoff cut;
  if (k <= 0) return cut;
  auto left = static_cast<std::uint32_t>(k);
  std::uint32_t known = 0, mask = 0;
  for (int pass = 0; pass < 3; ++pass) {
    const Digit digit = digit_of(pass);
    for (int i = static_cast<int>(threadIdx.x); i < digit_bins; i += Threads) scratch.keys[i] = 0;
    __syncthreads();
    for (index_t i = threadIdx.x; i < n; i += Threads) {
      const std::uint32_t key = rank_bits(scores[i]);
      if ((key & mask) == known) atomicAdd(&scratch.keys[(key >> digit.shift) & digit.most], 1u);
    }
    __syncthreads();
    pick_bin<Threads>(left, scratch);
    left = scratch.rest;
    known |= scratch.digit << digit.shift;
    mask |= digit.most << digit.shift;
    cut.equal = scratch.equal;
    __syncthreads();
  }
  cut.bits = known;
  cut.ties = left;
  return cut;
}

}  // namespace kvcondense::prim::cuda_kernels
