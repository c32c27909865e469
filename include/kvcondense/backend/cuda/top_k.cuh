#pragma once

#include <cstdint>

#include <kvcondense/backend/cuda/block.cuh>
#include <kvcondense/backend/cuda/context.cuh>
#include <kvcondense/backend/cuda/launch.cuh>
#include <kvcondense/backend/cuda/row_cutoff.cuh>
#include <kvcondense/core/status.hpp>
#include <kvcondense/core/view.hpp>
#include <kvcondense/prim/ends.hpp>
#include <kvcondense/prim/top_k.hpp>

namespace kvcondense::prim {
namespace cuda_kernels {

inline constexpr int top_k_threads = 256, top_k_each = 4;

struct TopKShared {
  CutoffScratch<top_k_threads> cutoff;
  cuda::BlockScratch<std::uint32_t, top_k_threads> sums;
};

/// out[0, n) = first, first + 1, ...
__device__ inline void write_places(std::int32_t* out, index_t n, index_t first) {
  for (index_t i = threadIdx.x; i < n; i += blockDim.x) out[i] = static_cast<std::int32_t>(first + i);
}

/// One block a row: the cutoff by counting, then the winners in order, a chunk at a time.
template <int Threads>
__global__ void __launch_bounds__(Threads, 4) top_k_row(RaggedView<const float> scores, const Ends* always,
                                                     const index_t* total, RaggedView<std::int32_t> slots,
                                                     index_t* count, index_t* nan, Ties order) {
  TopKShared& shared = cuda::shared_as<TopKShared>();
  const index_t h = blockIdx.x, n = scores.length(h);
  const Ends ends = always == nullptr ? Ends{} : always[h].within(n);
  const float* s = scores.row(h);
  std::int32_t* out = slots.row(h);
  if (total[h] >= n) {
    write_places(out, n, 0);
    if (threadIdx.x == 0) count[h] = n;
    return;
  }

  const index_t last = n - ends.suffix, middle = last - ends.prefix, wanted = total[h] - ends.size();
  const index_t k = wanted < 0 ? 0 : wanted < middle ? wanted : middle;
  const BlockCutoff cut = block_cutoff<Threads>(s + ends.prefix, middle, k, shared.cutoff);
  // Of equal scores these leave first: none, or those before the last `ties`.
  const std::uint32_t skip = order == Ties::first ? 0 : cut.equal - cut.ties;

  write_places(out, ends.prefix, 0);
  out += ends.prefix;
  std::uint32_t equal_before = 0, kept_before = 0, bad = 0;
  for (index_t from = ends.prefix; from < last; from += Threads * top_k_each) {
    const index_t mine = from + static_cast<index_t>(threadIdx.x) * top_k_each;
    std::uint32_t key[top_k_each], equal = 0, kept = 0;
    bool stays[top_k_each];
#pragma unroll
    for (int j = 0; j < top_k_each; ++j) {
      key[j] = mine + j < last ? rank_bits(s[mine + j]) : 0;
      bad += static_cast<std::uint32_t>(mine + j < last && key[j] == 0);
      stays[j] = mine + j < last && key[j] > cut.bits;
      equal += static_cast<std::uint32_t>(mine + j < last && key[j] == cut.bits);
    }
    const auto equals = cuda::block_running<std::uint32_t, Threads>(equal, shared.sums);
    std::uint32_t rank = equal_before + equals.before;
#pragma unroll
    for (int j = 0; j < top_k_each; ++j) {
      if (mine + j < last && key[j] == cut.bits) {
        stays[j] = rank >= skip && rank - skip < cut.ties;
        ++rank;
      }
      kept += static_cast<std::uint32_t>(stays[j]);
    }
    const auto places = cuda::block_running<std::uint32_t, Threads>(kept, shared.sums);
    std::uint32_t to = kept_before + places.before;
#pragma unroll
    for (int j = 0; j < top_k_each; ++j)
      if (stays[j]) out[to++] = static_cast<std::int32_t>(mine + j);
    equal_before += equals.all;
    kept_before += places.all;
  }
  write_places(out + k, ends.suffix, last);
  bad = cuda::block_sum<std::uint32_t, Threads>(bad, shared.sums);
  if (threadIdx.x == 0) {
    count[h] = ends.size() + k;
    if (nan != nullptr && bad > 0) atomicAdd(reinterpret_cast<unsigned long long*>(nan), static_cast<unsigned long long>(bad));
  }
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

}  // namespace cuda_kernels

/// A block a row; all pointers are the device's, so lengths and totals may come from kernels. Rows of at most
/// 2^31 - 1 places.
template <>
struct TopK<Cuda> {
  static Status run(Context<Cuda>& ctx, RaggedView<const float> scores, const Ends* always, const index_t* total,
                    RaggedView<std::int32_t> slots, index_t* count, index_t* nan = nullptr, Ties order = Ties::first,
                    Ends* = nullptr) {
    using namespace cuda_kernels;
    return cuda::launch(ctx, top_k_row<top_k_threads>, {scores.heads}, top_k_threads, sizeof(TopKShared), scores, always,
                        total, slots, count, nan, order);
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
