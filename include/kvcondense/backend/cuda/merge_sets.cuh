#pragma once

#include <cmath>
#include <cstdint>

#include <kvcondense/backend/cuda/block.cuh>
#include <kvcondense/backend/cuda/context.cuh>
#include <kvcondense/backend/cuda/launch.cuh>
#include <kvcondense/backend/cuda/merge_order.cuh>
#include <kvcondense/backend/cuda/row_cutoff.cuh>
#include <kvcondense/core/status.hpp>
#include <kvcondense/core/view.hpp>
#include <kvcondense/prim/merge_sets.hpp>

namespace kvcondense::prim {
namespace cuda_kernels {

inline constexpr int link_threads = winner_threads;
inline constexpr index_t link_blocks = 16;  ///< a head; lengths are known to the device only, so blocks stride

/// A block a head.
template <int Threads>
__global__ void __launch_bounds__(Threads) begin_links(RaggedView<const std::int32_t> kept, const index_t* count, MergeLinks links) {
  const index_t h = blockIdx.x, n = links.slots(h);
  std::int32_t* to = links.to.row(h);
  const bool all = count[h] == n;  // no list needed
  for (index_t j = threadIdx.x; j < n; j += Threads) to[j] = all ? static_cast<std::int32_t>(j) : unlinked;
  if (all) return;
  __syncthreads();
  for (index_t i = threadIdx.x; i < count[h]; i += Threads) to[kept.row(h)[i]] = kept.row(h)[i];
}

/// A block a head.
template <int Threads>
__global__ void __launch_bounds__(Threads) end_links(MergeLinks links, RaggedView<std::int32_t> kept, index_t* count, index_t* folded) {
  static_assert(Threads == order_threads);
  auto& sums = cuda::shared_as<OrderScratch>();
  const index_t h = blockIdx.x, n = links.slots(h);
  const std::int32_t* to = links.to.row(h);
  const std::uint32_t stay = split_items(
      n, [](index_t j) { return static_cast<std::int32_t>(j); }, [&](std::int32_t j) { return to[j] == j; }, [](std::int32_t) { return false; }, kept.row(h), 0,
      sums);
  std::uint32_t fold = 0;
  for (index_t j = threadIdx.x; j < n; j += Threads) fold += static_cast<std::uint32_t>(links.folds(h, j));
  fold = cuda::block_sum<std::uint32_t, Threads>(fold, sums);
  if (threadIdx.x == 0) count[h] = stay, folded[h] = fold;
}

/// What is unlinked leaves for good; with `heirs` every slot goes to its heir or does so. An heir is its own, so no block writes what
/// another one reads. Grid: blocks, heads.
template <int Threads>
__global__ void __launch_bounds__(Threads) link_heirs(RaggedView<const std::int32_t> heirs, MergeLinks links) {
  const index_t h = blockIdx.y, n = links.slots(h);
  std::int32_t* to = links.to.row(h);
  for (index_t j = static_cast<index_t>(blockIdx.x) * Threads + threadIdx.x; j < n; j += link_blocks * Threads) {
    if (heirs.data == nullptr) {
      if (to[j] == unlinked) to[j] = dropped;
    } else if (const std::int32_t heir = heirs.row(h)[j]; heir != j) {
      to[j] = to[heir] == heir ? heir : dropped;
      links.likeness.row(h)[j] = 1.0f;
    }
  }
}

/// use(i, before) for each of n places in order: the last place before it for which `is` holds, or -1. `use` may change what `is` says of
/// places for which it does not hold. All threads of a block.
template <int Threads, class Is, class Use>
__device__ inline void block_nearest(index_t n, Is&& is, Use&& use, cuda::BlockScratch<std::int32_t, Threads>& scratch) {
  std::int32_t last = -1;
  for (index_t from = 0; from < n; from += Threads) {
    const index_t i = from + static_cast<index_t>(threadIdx.x);
    const unsigned votes = __ballot_sync(cuda::full_warp, i < n && is(i)), lower = votes & ((1u << cuda::lane_of_warp()) - 1u);
    const auto place = [&](int warp, unsigned of) { return static_cast<std::int32_t>(from) + warp * cuda::warp_lanes + 31 - __clz(static_cast<int>(of)); };
    __syncthreads();
    if (cuda::lane_of_warp() == 0) scratch.part[cuda::warp_of_block()] = votes != 0 ? place(cuda::warp_of_block(), votes) : -1;
    __syncthreads();
    std::int32_t before = last;
    for (int w = 0; w < scratch.warps; ++w) {
      if (scratch.part[w] < 0) continue;
      if (w < cuda::warp_of_block()) before = scratch.part[w];
      last = scratch.part[w];
    }
    if (lower != 0) before = place(cuda::warp_of_block(), lower);
    if (i < n) use(i, before);
  }
}

/// A block a head, from the back.
template <int Threads>
__global__ void __launch_bounds__(Threads) link_next(const SlotRange* targets, MergeLinks links) {
  auto& scratch = cuda::shared_as<cuda::BlockScratch<std::int32_t, Threads>>();
  const index_t h = blockIdx.x, n = links.slots(h);
  std::int32_t* to = links.to.row(h);
  const auto slot = [&](index_t i) { return n - 1 - i; };
  block_nearest<Threads>(
      n, [&](index_t i) { return to[slot(i)] == slot(i) && targets[h].has(slot(i)); },
      [&](index_t i, std::int32_t behind) {
        if (to[slot(i)] != unlinked) return;
        to[slot(i)] = behind < 0 ? unlinked : static_cast<std::int32_t>(slot(behind));
        links.likeness.row(h)[slot(i)] = 1.0f;
      },
      scratch);
}

/// A block a head: forward to the target before, then from the back to the nearer one of that and the one behind.
template <int Threads>
__global__ void __launch_bounds__(Threads) link_nearest_token(RaggedView<const std::int32_t> tokens, index_t first, index_t last, const SlotRange* targets,
                                                              MergeLinks links) {
  auto& scratch = cuda::shared_as<cuda::BlockScratch<std::int32_t, Threads>>();
  constexpr std::int32_t pointing = dropped - 1;  // pointing - t: unlinked, and t is the target before
  const index_t h = blockIdx.x, n = links.slots(h);
  std::int32_t* to = links.to.row(h);
  const std::int32_t* token = tokens.row(h);
  const auto stays = [&](index_t j) { return to[j] == j && targets[h].has(j) && token[j] >= first && token[j] < last; };
  block_nearest<Threads>(
      n, stays,
      [&](index_t j, std::int32_t before) {
        if (to[j] == unlinked && before >= 0) to[j] = pointing - before;
      },
      scratch);
  __syncthreads();
  block_nearest<Threads>(
      n, [&](index_t i) { return stays(n - 1 - i); },
      [&](index_t i, std::int32_t back) {
        const index_t j = n - 1 - i, behind = back < 0 ? -1 : n - 1 - back;
        if (to[j] != unlinked && to[j] > pointing) return;
        const std::int32_t before = to[j] == unlinked ? -1 : pointing - to[j];
        const std::int32_t a = before < 0 ? -1 : token[j] - token[before], b = behind < 0 ? -1 : token[behind] - token[j];
        const bool older = b < 0 || (a >= 0 && a <= b);
        to[j] = a < 0 && b < 0 ? unlinked : older ? before : static_cast<std::int32_t>(behind);
        if (a >= 0 || b >= 0) links.likeness.row(h)[j] = -static_cast<float>(older ? a : b);
      },
      scratch);
}

/// A block a head: links that are cut, then a thread a run.
template <int Threads>
__global__ void __launch_bounds__(Threads) link_runs(RunRequest request, RaggedView<const float> scores, MergeLinks links) {
  static_assert(Threads == winner_threads);
  WinnerShared& shared = cuda::shared_as<WinnerShared>();
  const index_t h = blockIdx.x;
  const SlotRange region = request.region[h];
  const index_t begin = region.begin, end = region.end, size = end - begin;
  if (size <= 0) return;  // the whole block
  std::int32_t* to = links.to.row(h);
  float *like = links.likeness.row(h), *alone = links.key.row(h);
  const float* score = scores.row(h);
  // Slots that stay alone first: what they touch is no link.
  const auto heavy = static_cast<index_t>(floor(request.heavy * static_cast<double>(size) + 1e-6));
  block_best(begin, end, score, heavy < size ? heavy : size, [](index_t) { return true; }, [&](index_t j, bool chosen) { alone[j] = chosen ? 1.0f : 0.0f; }, shared);
  __syncthreads();
  std::uint32_t open_links = 0;
  const auto open = [&](index_t j) { return like[j] != -INFINITY; };
  for (index_t j = begin + threadIdx.x; j < end; j += Threads) {
    const bool cut = j + 1 == end || alone[j] != 0.0f || alone[j + 1] != 0.0f || to[j] != j || to[j + 1] != j + 1 || like[j] != like[j];
    if (cut) like[j] = -INFINITY;
    open_links += static_cast<std::uint32_t>(open(j));
  }
  open_links = cuda::block_sum<std::uint32_t, Threads>(open_links, shared.sums);
  if (request.sets != nullptr) {  // a link for every slot that is too much
    const index_t much = size - request.sets[h], wanted = much < 0 ? 0 : much < open_links ? much : open_links;
    block_best(begin, end, like, wanted, open, [&](index_t j, bool chosen) { if (!chosen) like[j] = -INFINITY; }, shared);
  }
  __syncthreads();
  const auto joined = [&](index_t j) { return open(j) && (request.sets != nullptr || like[j] > request.least); };
  for (index_t first = begin + threadIdx.x; first < end; first += Threads) {
    if (first > begin && joined(first - 1)) continue;
    index_t last = first, best = first;
    while (joined(last))
      if (rank_bits(score[++last]) > rank_bits(score[best])) best = last;
    for (index_t j = first; j <= last; ++j)
      if (to[j] == j) to[j] = static_cast<std::int32_t>(best);
  }
  __syncthreads();
  for (index_t j = begin + threadIdx.x; j < end; j += Threads) like[j] = 1.0f;
}

/// A thread a head.
template <int Threads>
__global__ void __launch_bounds__(Threads) find_spans(RaggedView<const std::int32_t> tokens, const TokenSpan* spans, const SlotRange* targets, double share,
                                                      SlotRange* region, index_t* parts) {
  const index_t h = static_cast<index_t>(blockIdx.x) * Threads + threadIdx.x;
  if (h >= tokens.heads) return;
  const std::int32_t* token = tokens.row(h);
  const auto below = [&](index_t t) {
    index_t low = 0, high = tokens.length(h);
    while (low < high) {
      const index_t middle = low + (high - low) / 2;
      if (token[middle] < t) low = middle + 1;
      else high = middle;
    }
    return low;
  };
  const SpannedSlots s = SpannedSlots::of(below(spans[h].first), below(spans[h].last), targets[h], share);
  region[h] = s.region, parts[h] = s.part;
}

/// A block a head.
template <int Threads>
__global__ void __launch_bounds__(Threads) unlink_alternate(const SlotRange* region, MergeLinks links) {
  auto& sums = cuda::shared_as<cuda::BlockScratch<std::uint32_t, Threads>>();
  const index_t h = blockIdx.x;
  std::int32_t* to = links.to.row(h);
  std::uint32_t before = 0;
  for (index_t from = region[h].begin; from < region[h].end; from += Threads) {
    const index_t j = from + static_cast<index_t>(threadIdx.x);
    const bool stays = j < region[h].end && to[j] == j;
    const auto rank = cuda::block_running<std::uint32_t, Threads>(static_cast<std::uint32_t>(stays), sums);
    if (stays && (before + rank.before) % 2 == 0) to[j] = unlinked;
    before += rank.all;
  }
}

/// A block a chunk, or all of them one after another. Grid: blocks, heads.
template <int Threads>
__global__ void __launch_bounds__(Threads, 4) keep_strongest(const SlotRange* region, index_t chunk, const index_t* most, MergeLinks links) {
  static_assert(Threads == winner_threads);
  WinnerShared& shared = cuda::shared_as<WinnerShared>();
  const index_t h = blockIdx.y, begin = region[h].begin, end = region[h].end, step = chunk > 0 ? chunk : end > begin ? end - begin : 1;
  std::int32_t* to = links.to.row(h);
  const float* like = links.likeness.row(h);
  const auto folds = [&](index_t j) { return to[j] >= 0 && to[j] != j && like[j] == like[j]; };
  for (index_t first = begin + static_cast<index_t>(blockIdx.x) * step; first < end; first += link_blocks * step) {
    const index_t last = first + step < end ? first + step : end;
    std::uint32_t count = 0;
    for (index_t j = first + threadIdx.x; j < last; j += Threads) count += static_cast<std::uint32_t>(folds(j));
    count = cuda::block_sum<std::uint32_t, Threads>(count, shared.sums);
    block_best(
        first, last, like, most[h] < count ? most[h] : count, folds,
        [&](index_t j, bool chosen) {
          if (to[j] == unlinked || (to[j] >= 0 && !chosen)) to[j] = static_cast<std::int32_t>(j);
        },
        shared);
  }
}

}  // namespace cuda_kernels

/// Exactly the CPU's targets and likeness, a block a head. `runs` takes `links.key` of its region as scratch, on the CPU only with `sets`; it
/// walks each run by one thread: long runs take their time.
template <>
struct MergeSets<Cuda> {
  static Status begin(Context<Cuda>& ctx, RaggedView<const std::int32_t> kept, const index_t* count, const MergeLinks& links) {
    using namespace cuda_kernels;
    return cuda::launch(ctx, begin_links<link_threads>, {links.heads()}, link_threads, 0, kept, count, links);
  }
  static Status end(Context<Cuda>& ctx, const MergeLinks& links, RaggedView<std::int32_t> kept, index_t* count, index_t* folded) {
    using namespace cuda_kernels;
    return cuda::launch(ctx, end_links<order_threads>, {links.heads()}, order_threads, sizeof(OrderScratch), links, kept, count, folded);
  }
  static Status drop(Context<Cuda>& ctx, const MergeLinks& links) { return heirs(ctx, {}, links); }
  static Status heirs(Context<Cuda>& ctx, RaggedView<const std::int32_t> heirs, const MergeLinks& links) {
    using namespace cuda_kernels;
    return cuda::launch(ctx, link_heirs<link_threads>, {link_blocks, links.heads()}, link_threads, 0, heirs, links);
  }
  static Status next(Context<Cuda>& ctx, const SlotRange* targets, const MergeLinks& links) {
    using namespace cuda_kernels;
    return cuda::launch(ctx, link_next<link_threads>, {links.heads()}, link_threads, sizeof(cuda::BlockScratch<std::int32_t, link_threads>), targets, links);
  }
  static Status nearest_token(Context<Cuda>& ctx, RaggedView<const std::int32_t> tokens, index_t first, index_t last, const SlotRange* targets,
                              const MergeLinks& links) {
    using namespace cuda_kernels;
    return cuda::launch(ctx, link_nearest_token<link_threads>, {links.heads()}, link_threads, sizeof(cuda::BlockScratch<std::int32_t, link_threads>), tokens,
                        first, last, targets, links);
  }
  static Status spans(Context<Cuda>& ctx, RaggedView<const std::int32_t> tokens, const TokenSpan* spans, const SlotRange* targets, double share,
                      SlotRange* region, index_t* parts) {
    using namespace cuda_kernels;
    return cuda::launch(ctx, find_spans<64>, {cuda::covering(tokens.heads, 64)}, 64, 0, tokens, spans, targets, share, region, parts);
  }
  static Status runs(Context<Cuda>& ctx, const RunRequest& request, RaggedView<const float> scores, const MergeLinks& links) {
    using namespace cuda_kernels;
    return cuda::launch(ctx, link_runs<link_threads>, {links.heads()}, link_threads, sizeof(WinnerShared), request, scores, links);
  }
  static Status alternate(Context<Cuda>& ctx, const SlotRange* region, const MergeLinks& links) {
    using namespace cuda_kernels;
    return cuda::launch(ctx, unlink_alternate<link_threads>, {links.heads()}, link_threads, sizeof(cuda::BlockScratch<std::uint32_t, link_threads>), region,
                        links);
  }
  static Status strongest(Context<Cuda>& ctx, const SlotRange* region, index_t chunk, const index_t* most, const MergeLinks& links) {
    using namespace cuda_kernels;
    return cuda::launch(ctx, keep_strongest<link_threads>, {link_blocks, links.heads()}, link_threads, sizeof(WinnerShared), region, chunk, most, links);
  }
};

}  // namespace kvcondense::prim
