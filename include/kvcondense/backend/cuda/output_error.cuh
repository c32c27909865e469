#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>

#include <kvcondense/backend/cuda/block.cuh>
#include <kvcondense/backend/cuda/context.cuh>
#include <kvcondense/backend/cuda/launch.cuh>
#include <kvcondense/backend/cuda/row_cutoff.cuh>
#include <kvcondense/backend/cuda/row_tile.cuh>
#include <kvcondense/backend/cuda/slot_rows.cuh>
#include <kvcondense/core/shape.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/core/view.hpp>
#include <kvcondense/prim/ends.hpp>
#include <kvcondense/prim/output_error.hpp>

namespace kvcondense::prim {
namespace cuda_kernels {

struct OutputErrorShared {
  WinnerShared list;
  float centre[max_head_dim];
  bool finite[tile_rows];  ///< of the rows that are being added up
  float lowest[tile_warps];
  std::int64_t least[tile_warps];  ///< -1: the warp has seen none
};

/// What `drop` has and `run` has not.
struct OutputDrop {
  const index_t* total = nullptr;
  RaggedView<const float> from{};
  RaggedView<std::int32_t> slots{};
  index_t *count = nullptr, *nan = nullptr;
};

/// A block a head. Values pass by a tile at a time, to be added to the sums (or, one row, taken off) by a thread a channel in slot
/// order, or to be measured against their centre by a warp a row. weight: NaN is in no sum, below 0 has left.
template <int Threads>
__global__ void __launch_bounds__(Threads, 1) output_errors(SlotRows<Cuda> values, const Ends* skip, HeadOutput of, RaggedView<float> weights, OutputDrop drop) {
  static_assert(Threads == tile_threads && Threads == winner_threads && tile_threads >= max_head_dim);
  OutputErrorShared& shared = cuda::shared_as<OutputErrorShared>();
  auto* tile = reinterpret_cast<float*>(cuda::dyn_smem() + (sizeof(OutputErrorShared) + 15) / 16 * 16);
  const int dim = static_cast<int>(values.dim()), stride = tile_stride(dim), c = static_cast<int>(threadIdx.x), lane = cuda::lane_of_warp(), warp = cuda::warp_of_block();
  const index_t h = blockIdx.x, n = weights.length(h);
  const Ends ends = skip == nullptr ? Ends{} : skip[h].within(n);
  const index_t first = ends.prefix, last = n - ends.suffix;
  const bool drops = drop.total != nullptr;
  float* weight = weights.row(h);
  if (drops && drop.total[h] >= n) {
    write_places(drop.slots.row(h), n, 0);
    if (c == 0) drop.count[h] = n;
    return;
  }
  for (index_t j = c; drops && j < n; j += Threads) weight[j] = drop.from.row(h)[j];
  const auto gone = [&](index_t j) { return weight[j] < 0.0f; };

  double sum = 0.0, all = 0.0, rows = 0.0;  // of this thread's channel; all threads have the last two
  index_t left = n, most = n;
  if (drops) most = drop.total[h] > ends.size() ? drop.total[h] : ends.size();
  index_t low = of.ends ? 0 : first, high = of.ends ? n : last;
  double sign = 1.0;
  bool adds = true;
  for (;;) {
    float lowest = 0.0f;
    index_t least = -1;
    for (index_t at = low; at < high; at += tile_rows) {
      const int count = high - at < tile_rows ? static_cast<int>(high - at) : tile_rows;
      __syncthreads();
      load_rows(values, h, [&](int r) { return gone(at + r) ? -1 : at + r; }, count, count, tile);
      for (int r = warp; r < count; r += tile_warps) {  // rows that this warp has loaded
        const index_t j = at + r;
        const float w = weight[j];
        if (w < 0.0f) continue;  // the same in all lanes
        __syncwarp();
        float square = 0.0f;
        for (int k = lane; k < dim; k += cuda::warp_lanes) {
          const float apart = adds ? tile[r * stride + k] : shared.centre[k] - tile[r * stride + k];
          square += apart * apart;
        }
        square = cuda::warp_sum(square);
        if (adds) {
          const bool finite = square < INFINITY;
          if (lane == 0) shared.finite[r] = finite;
          if (lane == 0 && !finite && j >= first && j < last) weight[j] = NAN;
          continue;
        }
        const double whole = static_cast<double>(w), rest = all - whole > all * 1e-6 ? all - whole : all * 1e-6;
        const float error = w != w || w == 0.0f ? w : static_cast<float>(whole / rest) * sqrtf(square);
        if (!drops && lane == 0) weight[j] = error;
        const bool lower = least < 0 || (lowest != lowest ? error != error : !(error > lowest));  // NaN is lowest, of equal ones the last
        if (lower) least = j, lowest = error;
      }
      if (!adds) continue;
      __syncthreads();
      for (int r = 0; r < count; ++r) {
        const double w = static_cast<double>(weight[at + r]), part = sign * (of.fast ? 1.0 : w);
        if (w != w || w < 0.0 || !shared.finite[r]) continue;
        all += sign * w, rows += sign;
        if (c < dim) sum += part * static_cast<double>(tile[r * stride + c]);
      }
    }
    __syncthreads();
    if (adds) {
      const double whole = of.fast ? rows : all;
      if (c < dim) shared.centre[c] = whole > 0.0 ? static_cast<float>(sum / whole) : 0.0f;
      if (drops && sign > 0.0) count_nan(weight + first, last - first, drop.nan, shared.list);
      if (sign < 0.0 && c == 0) weight[low] = -1.0f;  // what was taken off
      low = first, high = last, adds = false;
      if (drops && left <= most) break;
      __syncthreads();
      continue;
    }
    if (!drops) return;
    // The lowest of the warps, each of which has every eighth row of a tile: of equal ones the larger slot.
    if (lane == 0) shared.lowest[warp] = lowest, shared.least[warp] = least;
    __syncthreads();
    least = -1;
    for (int w = 0; w < tile_warps; ++w) {
      const float e = shared.lowest[w];
      const index_t j = shared.least[w];
      if (j < 0) continue;
      const bool same = (e != e && lowest != lowest) || e == lowest;
      if (least < 0 || (same ? j > least : e != e || (lowest == lowest && e < lowest))) least = j, lowest = e;
    }
    const bool nothing = weight[least] != weight[least];  // is in no sum
    --left;
    __syncthreads();
    if (nothing) {
      if (c == 0) weight[least] = -1.0f;
      if (left <= most) break;
    } else {
      low = least, high = least + 1, sign = -1.0, adds = true;
    }
  }
  __syncthreads();
  std::int32_t* out = drop.slots.row(h);
  block_winners(
      n, [](index_t) { return 0u; }, BlockCutoff{}, 0, [&](index_t j) { return j < first || j >= last || !gone(j); },
      [&](index_t j, std::uint32_t place) { out[place] = static_cast<std::int32_t>(j); }, shared.list);
  if (c == 0) drop.count[h] = left;
}

}  // namespace cuda_kernels

/// Sums over slots are made as on the CPU, those of a row in another order: where two errors differ by less than rounding, the other
/// slot may leave. A block a head; `drop` passes it all values once for each slot that leaves.
template <>
struct OutputError<Cuda> {
  static Status run(Context<Cuda>& ctx, const SlotRows<Cuda>& values, const Ends* skip, HeadOutput of, RaggedView<float> scores) {
    return start(ctx, values, skip, of, scores, {});
  }
  static Status drop(Context<Cuda>& ctx, const SlotRows<Cuda>& values, RaggedView<const float> weights, const Ends* always, HeadOutput of, const index_t* total,
                     RaggedView<float> left, RaggedView<std::int32_t> slots, index_t* count, index_t* nan = nullptr) {
    if (total == nullptr) return Status::invalid_argument;
    return start(ctx, values, always, of, left, {total, weights, slots, count, nan});
  }

 private:
  static Status start(Context<Cuda>& ctx, const SlotRows<Cuda>& values, const Ends* ends, HeadOutput of, RaggedView<float> weights, const cuda_kernels::OutputDrop& drop) {
    using namespace cuda_kernels;
    if (weights.heads != values.heads()) return Status::shape_mismatch;
    const std::size_t bytes = (sizeof(OutputErrorShared) + 15) / 16 * 16 + tile_bytes(tile_rows, values.dim());
    return cuda::launch(ctx, output_errors<tile_threads>, {weights.heads}, tile_threads, bytes, values, ends, of, weights, drop);
  }
};

}  // namespace kvcondense::prim
