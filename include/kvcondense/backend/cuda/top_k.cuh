#pragma once

#include <cstdint>

#include <kvcondense/backend/cuda/block.cuh>
#include <kvcondense/backend/cuda/context.cuh>
#include <kvcondense/backend/cuda/launch.cuh>
#include <kvcondense/backend/cuda/row_cutoff.cuh>
#include <kvcondense/core/status.hpp>
#include <kvcondense/core/view.hpp>
#include <kvcondense/core/workspace.hpp>
#include <kvcondense/prim/ends.hpp>
#include <kvcondense/prim/top_k.hpp>

namespace kvcondense::prim {
namespace cuda_kernels {

/// One block a row: the cutoff by counting, then the winners in order, a chunk at a time.
template <int Threads>
__global__ void __launch_bounds__(Threads, 4) top_k_row(RaggedView<const float> scores, const Ends* always,
                                                     const index_t* total, RaggedView<std::int32_t> slots,
                                                     index_t* count, index_t* nan, Ties order) {
  static_assert(Threads == winner_threads);
  WinnerShared& shared = cuda::shared_as<WinnerShared>();
  const OpenRow row = open_row(scores, always, total, slots, count);
  if (row.middle < 0) return;  // the same in all threads
  const index_t h = blockIdx.x, middle = row.middle, k = row.wanted;
  const Ends ends = row.ends;
  const float* s = row.scores;
  std::int32_t* out = slots.row(h);
  const BlockCutoff cut = block_cutoff<Threads>(s, middle, k, shared.cutoff);
  // Of equal scores these leave first: none, or those before the last `ties`.
  const std::uint32_t skip = order == Ties::first ? 0 : cut.equal - cut.ties;
  write_places(out, ends.prefix, 0);
  block_winners(
      middle, [&](index_t i) { return rank_bits(s[i]); }, cut, skip, [](index_t) { return false; },
      [&](index_t i, std::uint32_t place) { out[ends.prefix + place] = static_cast<std::int32_t>(ends.prefix + i); }, shared);
  write_places(out + ends.prefix + k, ends.suffix, ends.prefix + middle);
  count_nan(s, middle, nan, shared);
  if (threadIdx.x == 0) count[h] = ends.size() + k;
}

/// One block a row.
template <int Threads>
__global__ void __launch_bounds__(Threads) keep_ends_row(const Ends* ends, RaggedView<std::int32_t> slots, index_t* count) {
  const index_t h = blockIdx.x, n = slots.length(h);
  const Ends e = ends[h].within(n);
  write_places(slots.row(h), e.prefix, 0);
  write_places(slots.row(h) + e.prefix, e.suffix, n - e.suffix);
  if (threadIdx.x == 0) count[h] = e.size();
}

/// The own winners of a row: their number, and where they end. A block a row.
template <int Threads>
__global__ void __launch_bounds__(Threads, 2) own_winners(RaggedView<const float> scores, const Ends* skip, const index_t* own, index_t* count, BlockCutoff* safe) {
  CutoffScratch<Threads>& shared = cuda::shared_as<CutoffScratch<Threads>>();
  const index_t h = blockIdx.x;
  const Ends ends = skip == nullptr ? Ends{} : skip[h].within(scores.length(h));
  const index_t middle = scores.length(h) - ends.size(), wanted = own == nullptr ? 0 : own[h];
  const index_t k = wanted < 0 ? 0 : wanted < middle ? wanted : middle;
  const BlockCutoff cut = block_cutoff<Threads>(scores.row(h) + ends.prefix, middle, k, shared);
  if (threadIdx.x == 0) count[h] = k, safe[h] = cut;
}

inline constexpr int layer_threads = 1024;

struct LayerShared {
  CutoffScratch<layer_threads> cutoff;
  cuda::BlockScratch<std::uint32_t, layer_threads> sums;
};

/// k more places for the best of what the rows' own winners leave. One block for all rows, which are a layer's heads: every pass
/// wants all their keys counted.
template <int Threads>
__global__ void __launch_bounds__(Threads) best_of_rows(RaggedView<const float> scores, const Ends* skip, index_t k, const BlockCutoff* safe, index_t* count, bool strict) {
  LayerShared& shared = cuda::shared_as<LayerShared>();
  const auto ends = [&](index_t h) { return skip == nullptr ? Ends{} : skip[h].within(scores.length(h)); };
  index_t left = 0;
  for (index_t h = 0; h < scores.heads; ++h) left += scores.length(h) - ends(h).size() - count[h];
  if (left < k) k = left;
  if (k <= 0) return;  // the same in all threads
  // Of the keys at a row's own cutoff the first `ties` are its own; which of them they are does not matter to a count of keys.
  const auto each = [&](index_t h, auto&& use) {
    const Ends e = ends(h);
    const float* s = scores.row(h) + e.prefix;
    const index_t n = scores.length(h) - e.size();
    const BlockCutoff own = safe[h];
    for (index_t i = threadIdx.x; i < n; i += Threads) {
      const std::uint32_t key = rank_bits(s[i]);
      if (own.ties == 0 || key < own.bits) use(key, 1u);
    }
    if (threadIdx.x == 0 && own.equal > own.ties) use(own.bits, own.equal - own.ties);
  };
  const BlockCutoff cut = block_cutoff<Threads>(
      k,
      [&](auto&& use) {
        for (index_t h = 0; h < scores.heads; ++h) each(h, use);
      },
      shared.cutoff);
  std::uint32_t ties = strict && k < left ? 0 : cut.ties;  // the first rows take them
  for (index_t h = 0; h < scores.heads; ++h) {
    std::uint32_t above = 0, equal = 0;
    each(h, [&](std::uint32_t key, std::uint32_t times) {
      if (key > cut.bits) above += times;
      if (key == cut.bits) equal += times;
    });
    above = cuda::block_sum<std::uint32_t, Threads>(above, shared.sums);
    equal = cuda::block_sum<std::uint32_t, Threads>(equal, shared.sums);
    const std::uint32_t taken = equal < ties ? equal : ties;
    ties -= taken;
    if (threadIdx.x == 0) count[h] += above + taken;
  }
}

}  // namespace cuda_kernels

/// A block a row; all pointers are the device's, so lengths and totals may come from kernels. Rows of at most
/// 2^31 - 1 places.
template <>
struct TopK<Cuda> {
  static Status run(Context<Cuda>& ctx, RaggedView<const float> scores, const Ends* always, const index_t* total,
                    RaggedView<std::int32_t> slots, index_t* count, index_t* nan = nullptr, Ties order = Ties::first,
                    Ends* = nullptr) {
    using namespace cuda_kernels;
    return cuda::launch(ctx, top_k_row<winner_threads>, {scores.heads}, winner_threads, sizeof(WinnerShared), scores, always,
                        total, slots, count, nan, order);
  }
};

/// The scratch is the device's; `k` is a number of the host, all else lies on the device.
template <>
struct TopKCounts<Cuda> {
  static Status run(Context<Cuda>& ctx, RaggedView<const float> scores, const Ends* skip, const index_t* own, index_t k, index_t* count,
                    Scratch& scratch, bool strict = false) {
    using namespace cuda_kernels;
    static_assert(sizeof(BlockCutoff) <= sizeof(RowCutoff));
    auto* safe = reinterpret_cast<BlockCutoff*>(scratch.take<RowCutoff>(scores.heads));
    if (safe == nullptr) return Status::workspace_too_small;
    const Status s = cuda::launch(ctx, own_winners<winner_threads>, {scores.heads}, winner_threads, sizeof(CutoffScratch<winner_threads>), scores, skip,
                                  own, count, safe);
    if (s != Status::ok || k <= 0 || scores.heads == 0) return s;
    return cuda::launch(ctx, best_of_rows<layer_threads>, {1}, layer_threads, sizeof(LayerShared), scores, skip, k, safe, count, strict);
  }
};

template <>
struct KeepEnds<Cuda> {
  static Status run(Context<Cuda>& ctx, const Ends* ends, RaggedView<std::int32_t> slots, index_t* count) {
    using namespace cuda_kernels;
    return cuda::launch(ctx, keep_ends_row<128>, {slots.heads}, 128, 0, ends, slots, count);
  }
};

}  // namespace kvcondense::prim
