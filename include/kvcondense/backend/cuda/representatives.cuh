#pragma once

#include <cmath>
#include <cstdint>

#include <kvcondense/backend/cuda/block.cuh>
#include <kvcondense/backend/cuda/context.cuh>
#include <kvcondense/backend/cuda/launch.cuh>
#include <kvcondense/backend/cuda/row_cutoff.cuh>
#include <kvcondense/backend/cuda/slot_numbers.cuh>
#include <kvcondense/core/status.hpp>
#include <kvcondense/core/view.hpp>
#include <kvcondense/prim/representatives.hpp>

namespace kvcondense::prim {
namespace cuda_kernels {

/// Whether bits differ from the anchor's; of blocks the sum already. A block a head.
template <int Threads>
__global__ void __launch_bounds__(Threads, 4) signature_bits(SignatureRequest request, RaggedView<const float> scores, const Ends* skip, const index_t* top,
                                                             RaggedView<float> out) {
  static_assert(Threads == winner_threads);
  WinnerShared& shared = cuda::shared_as<WinnerShared>();
  const index_t h = blockIdx.x, n = scores.length(h), first = skip[h].prefix, last = n - skip[h].suffix, block = request.block;
  const index_t candidates = last > first ? last - first : 0, asked = block == 0 ? top[h] : candidates / 2;
  const index_t best = asked < 0 ? 0 : asked < candidates ? asked : candidates;
  float* bit = out.row(h);
  for (index_t j = threadIdx.x; j < n; j += Threads) bit[j] = 0.0f;
  __syncthreads();
  block_best(first, first + candidates, scores.row(h), best, [](index_t) { return true; }, [&](index_t j, bool chosen) { bit[j] = chosen ? 1.0f : 0.0f; }, shared);
  __syncthreads();
  const auto differs = [](float x, bool one) { return (x > 0.0f) != one ? 1.0f : 0.0f; };
  if (block == 0) {
    const bool one = anchor_bit(request, h, best, candidates);
    for (index_t j = threadIdx.x; j < n; j += Threads) bit[j] = differs(bit[j], one);
    return;
  }
  const index_t whole = candidates / block, end = first + whole * block;
  for (index_t i = threadIdx.x; i < block; i += Threads) {
    index_t ones = 0;
    for (index_t b = 0; b < whole; ++b) ones += bit[first + b * block + i] > 0.0f;
    const bool one = anchor_bit(request, i, ones, whole);
    for (index_t b = 0; b < whole; ++b) bit[first + b * block + i] = differs(bit[first + b * block + i], one);
  }
  __syncthreads();
  for (index_t b = threadIdx.x; b < whole; b += Threads) {
    float* x = bit + first + b * block;
    float sum = 0.0f;
    for (index_t i = 0; i < block; ++i) sum += x[i];
    for (index_t i = 0; i < block; ++i) x[i] = sum;
  }
  for (index_t j = end + threadIdx.x; j < n; j += Threads) bit[j] = INFINITY;
}

struct PickShared {
  cuda::BlockScratch<std::uint32_t, winner_threads> sums;
  cuda::BlockScratch<float, winner_threads> tops;
};

/// A block a head: distances from the smallest to the largest, a walk over the candidates for each; then all that stays, in order.
template <int Threads>
__global__ void __launch_bounds__(Threads) pick_steps(index_t block, RaggedView<float> distances, const Ends* skip, const index_t* count,
                                                      RaggedView<std::int32_t> slots, index_t* kept) {
  static_assert(Threads == winner_threads);
  constexpr float chosen = -1.0f, held = -2.0f;
  PickShared& shared = cuda::shared_as<PickShared>();
  const index_t h = blockIdx.x, n = distances.length(h), first = skip[h].prefix, last = n - skip[h].suffix, width = block > 1 ? block : 1, old = kept[h];
  float* distance = distances.row(h);
  std::int32_t* list = slots.row(h);
  // What is kept is no candidate, and its block is none.
  const auto listed = [&](index_t j) {  // the first of the list that is not before j
    index_t low = 0, high = old;
    while (low < high) {
      const index_t middle = low + (high - low) / 2;
      if (list[middle] < j) low = middle + 1;
      else high = middle;
    }
    return low < old ? static_cast<index_t>(list[low]) : n;
  };
  std::uint32_t open = 0;
  float most = -1.0f;
  for (index_t j = first + static_cast<index_t>(threadIdx.x) * width; j < last; j += Threads * width) {
    if (listed(j) < (j + width < last ? j + width : last)) distance[j] = INFINITY;
    const float d = distance[j];
    if (d - d == 0.0f) ++open, most = d > most ? d : most;
  }
  open = cuda::block_sum<std::uint32_t, Threads>(open, shared.sums);
  most = cuda::block_reduce(most, [](float a, float b) { return a > b ? a : b; }, shared.tops);
  const index_t asked = count[h] / width, wanted = asked < open ? asked : open;
  if (wanted <= 0) return;  // the same in all threads
  const index_t step = open / wanted;
  index_t rank = 0;
  for (float d = 0.0f; d <= most && (rank + step - 1) / step < wanted; d += 1.0f)
    for (index_t from = first; from < last; from += Threads * width) {
      const index_t j = from + static_cast<index_t>(threadIdx.x) * width;
      const bool here = j < last && distance[j] == d;
      const auto before = cuda::block_running<std::uint32_t, Threads>(static_cast<std::uint32_t>(here), shared.sums);
      const index_t own = rank + before.before;
      if (here && own % step == 0 && own / step < wanted) distance[j] = chosen;
      rank += before.all;
    }
  __syncthreads();
  // The list is written anew, so what it holds is marked first. A block that was chosen has nothing of it.
  for (index_t i = threadIdx.x; i < old; i += Threads) distance[list[i]] = held;
  __syncthreads();
  const auto of_chosen = [&](index_t j) { return j >= first && j < last && distance[first + (j - first) / width * width] == chosen; };
  std::uint32_t to = 0;
  for (index_t from = 0; from < n; from += Threads) {
    const index_t j = from + static_cast<index_t>(threadIdx.x);
    const bool stays = j < n && (of_chosen(j) || distance[j] == held);
    const auto place = cuda::block_running<std::uint32_t, Threads>(static_cast<std::uint32_t>(stays), shared.sums);
    if (stays) list[to + place.before] = static_cast<std::int32_t>(j);
    to += place.all;
  }
  if (threadIdx.x == 0) kept[h] = to;
}

}  // namespace cuda_kernels

/// The same slots as the CPU's. Whether heads are equally long is not known on the host: with block 0, `distances` of others are NaN instead of a
/// Status.
template <>
struct Representatives<Cuda> {
  static Status distances(Context<Cuda>& ctx, const SignatureRequest& request, RaggedView<const float> scores, const Ends* skip, const index_t* top,
                          RaggedView<float> out) {
    using namespace cuda_kernels;
    if (out.heads != scores.heads) return Status::shape_mismatch;
    const Status s = cuda::launch(ctx, signature_bits<winner_threads>, {scores.heads}, winner_threads, sizeof(WinnerShared), request, scores, skip, top, out);
    return s != Status::ok || request.block > 0 ? s : SlotNumbers<Cuda>::sum_heads(ctx, out, 1.0f, 0.0f, out);
  }
  static Status pick(Context<Cuda>& ctx, index_t block, RaggedView<float> distances, const Ends* skip, const index_t* count, RaggedView<std::int32_t> slots,
                     index_t* kept) {
    using namespace cuda_kernels;
    return cuda::launch(ctx, pick_steps<winner_threads>, {distances.heads}, winner_threads, sizeof(PickShared), block, distances, skip, count, slots, kept);
  }
};

}  // namespace kvcondense::prim
