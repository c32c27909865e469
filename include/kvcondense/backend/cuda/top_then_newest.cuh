#pragma once

#include <cstdint>

#include <kvcondense/backend/cuda/context.cuh>
#include <kvcondense/backend/cuda/launch.cuh>
#include <kvcondense/backend/cuda/row_cutoff.cuh>
#include <kvcondense/core/status.hpp>
#include <kvcondense/core/view.hpp>
#include <kvcondense/prim/top_then_newest.hpp>

namespace kvcondense::prim {
namespace cuda_kernels {

/// A block a row. What the first and the best leave of the total goes to the newest that are neither: those from some place on,
/// found by halving over the list of what stays.
template <int Threads>
__global__ void __launch_bounds__(Threads) top_then_newest_row(RaggedView<const float> scores, index_t first, index_t best, const index_t* total,
                                                            RaggedView<std::int32_t> slots, index_t* count, index_t* nan) {
  static_assert(Threads == winner_threads);
  WinnerShared& shared = cuda::shared_as<WinnerShared>();
  const index_t h = blockIdx.x, n = scores.length(h);
  const float* s = scores.row(h);
  std::int32_t* out = slots.row(h);
  if (total[h] >= n) {
    write_places(out, n, 0);
    if (threadIdx.x == 0) count[h] = n;
    return;
  }
  const BlockCutoff cut = block_cutoff<Threads>(s, n, best < n ? best : n, shared.cutoff);
  const std::uint32_t kept = block_winners(
      n, [&](index_t i) { return rank_bits(s[i]); }, cut, 0, [&](index_t i) { return i < first; },
      [&](index_t i, std::uint32_t place) { out[place] = static_cast<std::int32_t>(i); }, shared);
  index_t all = kept;
  if (kept < total[h]) {
    __syncthreads();
    // With all places from out[i] on there are i + n - out[i] of them: the least i for which these are not too many. Between it
    // and the one before lies where the newest begin.
    index_t low = 0, high = kept;
    while (low < high) {
      const index_t middle = low + (high - low) / 2;
      if (middle + n - out[middle] <= total[h]) high = middle;
      else low = middle + 1;
    }
    all = total[h];
    __syncthreads();  // the list is read before its end is written
    write_places(out + low, all - low, n - (all - low));
  }
  count_nan(s, n, nan, shared);
  if (threadIdx.x == 0) count[h] = all;
}

}  // namespace cuda_kernels

template <>
struct TopThenNewest<Cuda> {
  static Status run(Context<Cuda>& ctx, RaggedView<const float> scores, index_t first, index_t best, const index_t* total,
                    RaggedView<std::int32_t> slots, index_t* count, index_t* nan = nullptr) {
    using namespace cuda_kernels;
    if (first < 0 || best < 0) return Status::invalid_argument;
    return cuda::launch(ctx, top_then_newest_row<winner_threads>, {scores.heads}, winner_threads, sizeof(WinnerShared), scores, first, best, total, slots,
                        count, nan);
  }
};

}  // namespace kvcondense::prim
