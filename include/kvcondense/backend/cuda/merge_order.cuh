#pragma once

#include <cstdint>

#include <kvcondense/backend/cuda/block.cuh>
#include <kvcondense/core/config.hpp>

// Slots that fold, sorted by their target: what sums over a target's members need, where floats may not be added by atomics.

namespace kvcondense::prim::cuda_kernels {

inline constexpr int order_threads = 512, order_each = 8;
using OrderScratch = cuda::BlockScratch<std::uint32_t, order_threads>;

/// out[0, ...) = the items of n for which `first` holds, then, from `others` on, those for which `second` does; both in their order.
/// Returns how many the first are. All threads of a block.
template <class Item, class First, class Second>
__device__ inline std::uint32_t split_items(index_t n, Item&& item, First&& first, Second&& second, std::int32_t* out, std::uint32_t others, OrderScratch& sums) {
  std::uint32_t ones = 0, twos = others;
  for (index_t from = 0; from < n; from += order_threads * order_each) {
    const index_t mine = from + static_cast<index_t>(threadIdx.x) * order_each;
    std::uint32_t a = 0, b = 0;
    for (int k = 0; k < order_each && mine + k < n; ++k) {
      const std::int32_t x = item(mine + k);
      if (first(x)) ++a;
      else if (second(x)) ++b;
    }
    const auto before_a = cuda::block_running<std::uint32_t, order_threads>(a, sums), before_b = cuda::block_running<std::uint32_t, order_threads>(b, sums);
    std::uint32_t at_a = ones + before_a.before, at_b = twos + before_b.before;
    for (int k = 0; k < order_each && mine + k < n; ++k) {
      const std::int32_t x = item(mine + k);
      if (first(x)) out[at_a++] = x;
      else if (second(x)) out[at_b++] = x;
    }
    ones += before_a.all, twos += before_b.all;
  }
  return ones;
}

/// order[0, m) = those of n slots that fold (`to` is another place), by target and then by slot; returns m. `other`: scratch of n
/// numbers. A bit of the target a pass, the lowest first. All threads of a block.
__device__ inline index_t order_members(const std::int32_t* to, index_t n, std::int32_t* order, std::int32_t* other, OrderScratch& sums) {
  const auto never = [](std::int32_t) { return false; };
  const index_t m = split_items(
      n, [](index_t i) { return static_cast<std::int32_t>(i); }, [&](std::int32_t j) { return to[j] >= 0 && to[j] != j; }, never, order, 0, sums);
  std::int32_t *from = order, *into = other;
  for (int bit = 0; m > 0 && (n - 1) >> bit != 0; ++bit) {
    __syncthreads();  // what the pass before wrote is seen
    std::uint32_t zeros = 0;
    for (index_t i = threadIdx.x; i < m; i += order_threads) zeros += static_cast<std::uint32_t>((to[from[i]] >> bit & 1) == 0);
    zeros = cuda::block_sum<std::uint32_t, order_threads>(zeros, sums);
    if (zeros == 0 || zeros == m) continue;
    split_items(
        m, [&](index_t i) { return from[i]; }, [&](std::int32_t j) { return (to[j] >> bit & 1) == 0; }, [](std::int32_t) { return true; }, into, zeros, sums);
    std::int32_t* const last = from;
    from = into, into = last;
  }
  __syncthreads();
  for (index_t i = threadIdx.x; from != order && i < m; i += order_threads) order[i] = from[i];
  __syncthreads();
  return m;
}

/// The first of m ordered members whose target is not below t.
__device__ inline index_t first_member(const std::int32_t* to, const std::int32_t* order, index_t m, index_t t) {
  index_t low = 0, high = m;
  while (low < high) {
    const index_t middle = low + (high - low) / 2;
    if (to[order[middle]] < t) low = middle + 1;
    else high = middle;
  }
  return low;
}

/// Members of one target: order[first, end).
struct Members {
  index_t first, end;
};

/// What folds into target t, of m ordered members: with a fan the members of the last `fan` targets up to itself. target(t) says what is one.
template <class Target>
__device__ inline Members members_of(const std::int32_t* to, const std::int32_t* order, index_t m, index_t t, index_t fan, Target&& target) {
  index_t oldest = t;
  if (fan > 1) {
    index_t open = 1;
    while (oldest > 0 && open <= fan) open += target(--oldest);
    if (open > fan) ++oldest;  // this one is beyond
  }
  return {first_member(to, order, m, oldest), first_member(to, order, m, t + 1)};
}

}  // namespace kvcondense::prim::cuda_kernels
