#pragma once

#include <cstdint>

#include <kvcondense/backend/cuda/block.cuh>
#include <kvcondense/backend/cuda/context.cuh>
#include <kvcondense/backend/cuda/keep_rows.cuh>
#include <kvcondense/backend/cuda/launch.cuh>
#include <kvcondense/backend/cuda/page_codec.cuh>
#include <kvcondense/backend/cuda/slot_rows.cuh>
#include <kvcondense/core/config.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/core/view.hpp>
#include <kvcondense/prim/slot_runs.hpp>

// Means of the keys and values that left heads: what PagedSummaries reads.

namespace kvcondense::prim {

/// As PagedSummaries, to be written. `counts` has an entry per head for its keys and, behind all of these, one for its values, which are equal.
struct SummaryNumbers {
  float* means = nullptr;
  index_t* counts = nullptr;
  index_t heads = 0, width = 0;
};

namespace cuda_kernels {

inline constexpr int summary_threads = 256, summary_warps = summary_threads / cuda::warp_lanes, summary_tile = 16;
static_assert(summary_threads >= max_head_dim);  // a thread has a channel

struct SummaryShared {
  float row[summary_tile][max_head_dim];
  SlotRun run[summary_tile];
  bool joins[summary_tile];  ///< it does not live on in another slot
};

/// The i-th slot that is not kept: kept entry k stands behind kept[k] - k of them.
__device__ inline index_t slot_left(const HeadKept& kept, index_t i) {
  index_t low = 0, high = kept.size;
  while (low < high) {
    const index_t middle = low + (high - low) / 2;
    if (kept[middle] - middle <= i) low = middle + 1;
    else high = middle;
  }
  return i + low;
}

/// Slots of a column that are not kept enter the means of their heads, which are `width` apart, one after the other: a block a head, a thread a channel.
template <int Threads>
__global__ void __launch_bounds__(Threads, 2) take_means(SlotRows<Cuda> rows, KeptSlots keep, RaggedView<const std::int32_t> to, float* all_means, index_t width,
                                                      index_t* counts, index_t* repaired) {
  static_assert(Threads == summary_threads);
  SummaryShared& shared = *reinterpret_cast<SummaryShared*>(cuda::dyn_smem());
  const index_t head = blockIdx.x;
  const HeadKept kept = keep.of(head);
  const index_t gone = rows.slots(head) - kept.size;
  const int dim = static_cast<int>(rows.dim()), channel = static_cast<int>(threadIdx.x);
  if (gone <= 0) return;
  float* const means = all_means + head * width;
  index_t n = counts[head];
  float mean = n > 0 && channel < dim ? means[channel] : 0.0f;
  int bad = 0;
  const auto in_range = [&](float x) {
    const float finite = rows.in_range(x);
    bad += static_cast<int>(finite != x);
    return finite;
  };
  for (index_t first = 0; first < gone; first += summary_tile) {
    const int some = static_cast<int>(gone - first < summary_tile ? gone - first : summary_tile);
    __syncthreads();  // the tile before is summed
    if (channel < some) {
      const index_t slot = slot_left(kept, first + channel);
      shared.run[channel] = rows.locate(head, slot);
      shared.joins[channel] = to.data == nullptr || to.row(head)[slot] < 0;
    }
    __syncthreads();
    for (int i = cuda::warp_of_block(); i < some; i += summary_warps) {
      if (!shared.joins[i]) continue;  // what lives on counts for nothing here
      float* const row = shared.row[i];
      rows.load(shared.run[i], row);
      for (int c = cuda::lane_of_warp(); c < dim; c += cuda::warp_lanes) row[c] = in_range(row[c]);
    }
    __syncthreads();
    for (int i = 0; i < some; ++i) {
      if (!shared.joins[i]) continue;
      const float part = 1.0f / static_cast<float>(++n);
      if (channel < dim) mean = n == 1 ? shared.row[i][channel] : in_range(mean + (shared.row[i][channel] - mean) * part);
    }
  }
  if (channel < dim) means[channel] = mean;
  if (channel == 0) counts[head] = n;  // all have read it
  bad = cuda::warp_sum(bad);
  if (cuda::lane_of_warp() == 0) add_repaired(repaired, bad);
}

/// A head's means are of no more slots than have left it of `tokens` tokens. Threads share heads.
template <int Threads>
__global__ void __launch_bounds__(Threads) limit_means(const index_t* slots, index_t tokens, SummaryNumbers summary) {
  for (index_t i = threadIdx.x; i < 2 * summary.heads; i += Threads) {
    const index_t most = tokens - slots[i % summary.heads];
    if (summary.counts[i] > most) summary.counts[i] = most;
  }
}

}  // namespace cuda_kernels

/// Numbers, lists and lengths lie on the device.
///
/// Numbers  float32, one slot after the other in slot order as on the CPU (cache::Summary), which refuses rows of Inf and NaN when they come. Here they
///          enter as the nearest number that the stored type has, NaN as 0, and a mean that float32 cannot step to is limited too: all of these are
///          added to `repaired` (on the device, or null).
/// Cost     two launches, a block a head; rows that leave are read once.
struct SlotSummary {
  /// Takes in the slots that are not kept. `to`: of no data, or per slot the one it folds into, where it lives on.
  static Status take(Context<Cuda>& ctx, const SlotRows<Cuda>& keys, const SlotRows<Cuda>& values, const KeptSlots& keep, RaggedView<const std::int32_t> to,
                     const SummaryNumbers& summary, index_t* repaired = nullptr) {
    using namespace cuda_kernels;
    if (keys.heads() != summary.heads || values.heads() != summary.heads || keys.dim() + values.dim() != summary.width) return Status::shape_mismatch;
    if (keys.dim() > max_head_dim || values.dim() > max_head_dim) return Status::shape_mismatch;
    const auto column = [&](const SlotRows<Cuda>& rows, float* means, index_t* counts) {
      return cuda::launch(ctx, take_means<summary_threads>, {summary.heads}, summary_threads, sizeof(SummaryShared), rows, keep, to, means, summary.width, counts, repaired);
    };
    const Status s = column(keys, summary.means, summary.counts);
    return s == Status::ok ? column(values, summary.means + keys.dim(), summary.counts + summary.heads) : s;
  }
  /// A mean forgets no single member: when tokens are taken back, only the number follows. `slots`: of the heads now.
  static Status limit(Context<Cuda>& ctx, const index_t* slots, index_t tokens, const SummaryNumbers& summary) {
    return cuda::launch(ctx, cuda_kernels::limit_means<128>, {summary.heads > 0 ? 1 : 0}, 128, 0, slots, tokens, summary);
  }
};

}  // namespace kvcondense::prim
