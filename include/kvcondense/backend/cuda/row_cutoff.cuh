#pragma once

#include <cstdint>

#include <kvcondense/backend/cuda/block.cuh>
#include <kvcondense/core/config.hpp>
#include <kvcondense/core/view.hpp>
#include <kvcondense/prim/ends.hpp>
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

/// The cutoff of the k largest keys, by all threads of a block: three passes whatever the data. In each of them a thread says
/// what it has: each(use) calls use(key, how often). At least k keys in all.
template <int Threads, class Each>
__device__ inline BlockCutoff block_cutoff(index_t k, Each&& each, CutoffScratch<Threads>& scratch) {
  static_assert(digit_bins % Threads == 0);
  BlockCutoff cut;
  if (k <= 0) return cut;
  auto left = static_cast<std::uint32_t>(k);
  std::uint32_t known = 0, mask = 0;
  for (int pass = 0; pass < 3; ++pass) {
    const Digit digit = digit_of(pass);
    for (int i = static_cast<int>(threadIdx.x); i < digit_bins; i += Threads) scratch.keys[i] = 0;
    __syncthreads();
    each([&](std::uint32_t key, std::uint32_t times) {
      if ((key & mask) == known) atomicAdd(&scratch.keys[(key >> digit.shift) & digit.most], times);
    });
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

/// The same for the k largest of n scores.
template <int Threads>
__device__ inline BlockCutoff block_cutoff(const float* scores, index_t n, index_t k, CutoffScratch<Threads>& scratch) {
  return block_cutoff<Threads>(
      k,
      [&](auto&& use) {
        for (index_t i = threadIdx.x; i < n; i += Threads) use(rank_bits(scores[i]), 1u);
      },
      scratch);
}

inline constexpr int winner_threads = 256, winner_each = 4;

/// What a block that cuts a row and lists its winners has in shared memory.
struct WinnerShared {
  CutoffScratch<winner_threads> cutoff;
  cuda::BlockScratch<std::uint32_t, winner_threads> sums;
};

/// Walks n keys in order, by a block of winner_threads: write(i, place) for every key that stays, place counting those. A key stays
/// when it is above the cutoff, or one of the `ties` equal ones behind the first `skip` of them, or because always(i) says so.
/// Returns how many stay; all threads.
template <class Key, class Always, class Write>
__device__ inline std::uint32_t block_winners(index_t n, Key&& key_of, const BlockCutoff& cut, std::uint32_t skip, Always&& always, Write&& write,
                                              WinnerShared& shared) {
  constexpr int threads = winner_threads, each = winner_each;
  std::uint32_t equal_before = 0, kept_before = 0;
  for (index_t from = 0; from < n; from += threads * each) {
    const index_t mine = from + static_cast<index_t>(threadIdx.x) * each;
    std::uint32_t key[each], equal = 0, kept = 0;
    bool stays[each];
#pragma unroll
    for (int j = 0; j < each; ++j) {
      key[j] = mine + j < n ? key_of(mine + j) : 0;
      stays[j] = mine + j < n && key[j] > cut.bits;
      equal += static_cast<std::uint32_t>(mine + j < n && key[j] == cut.bits);
    }
    const auto equals = cuda::block_running<std::uint32_t, threads>(equal, shared.sums);
    std::uint32_t rank = equal_before + equals.before;
#pragma unroll
    for (int j = 0; j < each; ++j) {
      if (mine + j < n && key[j] == cut.bits) {
        stays[j] = rank >= skip && rank - skip < cut.ties;
        ++rank;
      }
      stays[j] = stays[j] || (mine + j < n && always(mine + j));
      kept += static_cast<std::uint32_t>(stays[j]);
    }
    const auto places = cuda::block_running<std::uint32_t, threads>(kept, shared.sums);
    std::uint32_t to = kept_before + places.before;
#pragma unroll
    for (int j = 0; j < each; ++j)
      if (stays[j]) write(mine + j, to++);
    equal_before += equals.all;
    kept_before += places.all;
  }
  return kept_before;
}

/// use(i, stays) once for each of n keys: whether it is above the cutoff or one of the first `ties` equal ones. By a block of
/// winner_threads, all of them.
template <class Key, class Use>
__device__ inline void block_ranked(index_t n, Key&& key_of, const BlockCutoff& cut, Use&& use, WinnerShared& shared) {
  std::uint32_t equal_before = 0;
  for (index_t from = 0; from < n; from += winner_threads) {
    const index_t i = from + static_cast<index_t>(threadIdx.x);
    const std::uint32_t key = i < n ? key_of(i) : 0;
    const bool equal = i < n && key == cut.bits;
    const auto equals = cuda::block_running<std::uint32_t, winner_threads>(static_cast<std::uint32_t>(equal), shared.sums);
    if (i < n) use(i, key > cut.bits || (equal && equal_before + equals.before < cut.ties));
    equal_before += equals.all;
  }
}

/// use(place, chosen) once for each place of [begin, end): whether it has one of the k largest numbers among those that `in` names, which
/// are at least k; the first of equal ones. `use` may change what `in` says of its own place. All threads.
template <class In, class Use>
__device__ inline void block_best(index_t begin, index_t end, const float* x, index_t k, In&& in, Use&& use, WinnerShared& shared) {
  // Keys of ranks begin at 1: those that are not in have 0.
  const auto key_of = [&](index_t i) { return in(begin + i) ? rank_bits(x[begin + i]) + 1 : 0u; };
  const BlockCutoff cut = block_cutoff<winner_threads>(
      k,
      [&](auto&& count) {
        for (index_t i = threadIdx.x; i < end - begin; i += winner_threads)
          if (const std::uint32_t key = key_of(i); key != 0) count(key, 1u);
      },
      shared.cutoff);
  block_ranked(end - begin, key_of, cut, [&](index_t i, bool chosen) { use(begin + i, chosen); }, shared);
}

/// How many of n scores are NaN, added to `nan`. All threads; null: not wanted.
__device__ inline void count_nan(const float* scores, index_t n, index_t* nan, WinnerShared& shared) {
  if (nan == nullptr) return;  // the same in all threads
  std::uint32_t bad = 0;
  for (index_t i = threadIdx.x; i < n; i += winner_threads) bad += static_cast<std::uint32_t>(scores[i] != scores[i]);
  bad = cuda::block_sum<std::uint32_t, winner_threads>(bad, shared.sums);
  if (threadIdx.x == 0 && bad > 0) atomicAdd(reinterpret_cast<unsigned long long*>(nan), static_cast<unsigned long long>(bad));
}

/// out[0, n) = first, first + 1, ...
__device__ inline void write_places(std::int32_t* out, index_t n, index_t first) {
  for (index_t i = threadIdx.x; i < n; i += blockDim.x) out[i] = static_cast<std::int32_t>(first + i);
}

/// What a row keeps before any of its scores is looked at.
struct OpenRow {
  Ends ends;            ///< stay whatever they score
  const float* scores;  ///< of the places between
  index_t middle;       ///< how many those are
  index_t wanted;       ///< how many of those may stay, at most `middle`
};

/// The row of a block whose places compete for `total` in all, the ends among them. Where there is room for every place all are written and
/// `middle` is negative: the row is done. All threads.
__device__ inline OpenRow open_row(RaggedView<const float> scores, const Ends* always, const index_t* total, RaggedView<std::int32_t> slots, index_t* count) {
  const index_t h = blockIdx.x, n = scores.length(h);
  const Ends ends = always == nullptr ? Ends{} : always[h].within(n);
  if (total[h] >= n) {
    write_places(slots.row(h), n, 0);
    if (threadIdx.x == 0) count[h] = n;
    return {ends, nullptr, -1, 0};
  }
  const index_t rest = total[h] - ends.size();
  return {ends, scores.row(h) + ends.prefix, n - ends.size(), rest < 0 ? 0 : rest};
}

}  // namespace kvcondense::prim::cuda_kernels
