#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>

#include <kvcondense/backend/cuda/block.cuh>
#include <kvcondense/backend/cuda/context.cuh>
#include <kvcondense/backend/cuda/launch.cuh>
#include <kvcondense/backend/cuda/merge_order.cuh>
#include <kvcondense/backend/cuda/row_tile.cuh>
#include <kvcondense/backend/cuda/slot_rows.cuh>
#include <kvcondense/core/shape.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/core/view.hpp>
#include <kvcondense/core/workspace.hpp>
#include <kvcondense/prim/row_redundancy.hpp>

namespace kvcondense::prim {
namespace cuda_kernels {

/// Of every row its last repetition and how alike they are; of every head the sum of all directions. `slots` numbers a head.
struct RedundancyRoom {
  index_t slots;
  std::int32_t *last, *order, *other;
  float* cosine;
  double* sum;

  __device__ index_t at(index_t head) const { return head * slots; }
};

/// Lengths, and the sum of directions. A block a head: a warp a row, then a thread a channel, so that sums are in slot order.
template <int Threads>
__global__ void __launch_bounds__(Threads, 2) sum_directions(SlotRows<Cuda> rows, RaggedView<float> inverse, RedundancyRoom room, index_t length_of_sum) {
  static_assert(Threads == tile_threads && tile_threads >= max_head_dim);
  auto* tile = reinterpret_cast<float*>(cuda::dyn_smem());
  const int dim = static_cast<int>(rows.dim()), stride = tile_stride(dim), c = static_cast<int>(threadIdx.x);
  float* scale = tile + tile_rows * stride;
  const index_t h = blockIdx.x, n = inverse.length(h);
  double sum = 0.0;
  for (index_t first = 0; first < n; first += tile_rows) {
    const int count = n - first < tile_rows ? static_cast<int>(n - first) : tile_rows;
    __syncthreads();
    load_rows(rows, h, [&](int r) { return first + r; }, count, count, tile);
    for (int r = cuda::warp_of_block(); r < count; r += tile_warps) {  // rows that this warp has loaded
      __syncwarp();
      float square = 0.0f;
      for (int k = cuda::lane_of_warp(); k < dim; k += cuda::warp_lanes) square += tile[r * stride + k] * tile[r * stride + k];
      square = cuda::warp_sum(square);
      if (cuda::lane_of_warp() == 0) scale[r] = inverse.row(h)[first + r] = square < INFINITY ? 1.0f / (sqrtf(square) + 1e-8f) : NAN;
    }
    __syncthreads();
    for (int r = 0; r < count && c < dim; ++r)
      if (scale[r] == scale[r]) sum += static_cast<double>(tile[r * stride + c] * scale[r]);
  }
  if (c < dim) room.sum[h * length_of_sum + c] = sum;
}

struct LookBackShared {
  int found[tile_warps];  ///< whether all rows of a warp have found one
};

/// A block has a tile of rows, which look back through all others, the last tile first, until each has found its last repetition.
/// out: the sum of a row's cosines. Grid: tiles, heads.
template <int Threads>
__global__ void __launch_bounds__(Threads, 1) look_back(SlotRows<Cuda> rows, float threshold, RaggedView<const float> inverse, RaggedView<float> out, RedundancyRoom room,
                                                  index_t length_of_sum) {
  static_assert(Threads == tile_threads);
  LookBackShared& shared = cuda::shared_as<LookBackShared>();
  const int dim = static_cast<int>(rows.dim()), stride = tile_stride(dim), lane = cuda::lane_of_warp(), warp = cuda::warp_of_block();
  auto* block = reinterpret_cast<float*>(cuda::dyn_smem() + (sizeof(LookBackShared) + 15) / 16 * 16);
  float* others = block + tile_rows * stride;
  const index_t h = blockIdx.y, n = out.length(h), first = static_cast<index_t>(blockIdx.x) * tile_rows;
  if (first >= n) return;  // the whole block
  const int row = static_cast<int>(threadIdx.x) / tile_lanes, own_lane = static_cast<int>(threadIdx.x) % tile_lanes;
  const index_t slot = first + row;
  const float* scale = inverse.row(h);
  const bool there = slot < n && scale[slot] == scale[slot];
  index_t last = -1;
  float like = 0.0f;
  bool found = !there;
  // The rows of the block first, then those behind all others, from the back: one place takes codes apart.
  for (index_t at = (n - 1) / tile_others * tile_others, own = 1; at >= 0; own == 1 ? own = 0 : at -= tile_others) {
    const index_t from = own == 1 ? first : at;
    const int room_rows = own == 1 ? tile_rows : tile_others, count = n - from < room_rows ? static_cast<int>(n - from) : room_rows;
    float* to = own == 1 ? block : others;
    __syncthreads();
    load_rows(rows, h, [&](int r) { return from + r; }, count, room_rows, to);
    for (int r = warp; r < count; r += tile_warps) {  // rows that this warp has loaded
      __syncwarp();
      for (int c = lane; c < dim; c += cuda::warp_lanes) to[r * stride + c] *= scale[from + r];
    }
    __syncthreads();
    if (own == 1) {
      for (int r = warp; r < count; r += tile_warps) {
        double all = 0.0;
        float itself = 0.0f;
        for (int c = lane; c < dim; c += cuda::warp_lanes) {
          const float x = block[r * stride + c];
          all += room.sum[h * length_of_sum + c] * static_cast<double>(x);
          itself += x * x;
        }
        all = cuda::warp_sum(all), itself = cuda::warp_sum(itself);
        if (lane == 0) out.row(h)[first + r] = static_cast<float>(all) - itself;
      }
      continue;
    }
    float cosine[tile_each];
    tile_products(block, others, dim, cosine);
    index_t mine = -1;
    float alike = 0.0f;
#pragma unroll
    for (int e = 0; e < tile_each; ++e) {
      const index_t k = at + own_lane + e * tile_lanes;
      if (!found && k < n && k != slot && cosine[e] > threshold) mine = k, alike = cosine[e];
    }
    if (at == 0 && own_lane == 0 && !found && slot != 0 && mine < 0) alike = cosine[0];
    const float first_cosine = __shfl_sync(cuda::full_warp, alike, 0, tile_lanes);
    for (int d = tile_lanes / 2; d > 0; d /= 2) {
      const index_t other = __shfl_xor_sync(cuda::full_warp, mine, d);
      const float other_alike = __shfl_xor_sync(cuda::full_warp, alike, d);
      if (other > mine) mine = other, alike = other_alike;
    }
    if (!found && mine >= 0) found = true, last = mine, like = alike;
    if (!found && at == 0 && slot != 0) last = 0, like = first_cosine;  // none to leave out but the first
    const int all_found = __all_sync(cuda::full_warp, found);
    if (lane == 0) shared.found[warp] = all_found;
    __syncthreads();
    bool stop = true;
    for (int w = 0; w < tile_warps; ++w) stop = stop && shared.found[w] != 0;
    if (stop) break;  // the same in all threads
  }
  if (own_lane != 0 || slot >= n) return;
  room.last[room.at(h) + slot] = static_cast<std::int32_t>(last);
  room.cosine[room.at(h) + slot] = like;
}

struct RedundancyShared {
  OrderScratch order;
  cuda::BlockScratch<double, order_threads> sums;
  cuda::BlockScratch<float, order_threads> tops;
};

/// Takes from every row what has it as last repetition, in slot order; then the softmax of the means. A block a head.
template <int Threads>
__global__ void __launch_bounds__(Threads) leave_out_last(RaggedView<const float> inverse, RaggedView<float> out, RedundancyRoom room) {
  static_assert(Threads == order_threads);
  RedundancyShared& shared = cuda::shared_as<RedundancyShared>();
  const index_t h = blockIdx.x, n = out.length(h);
  const std::int32_t *to = room.last + room.at(h), *order = room.order + room.at(h);
  const float* cosine = room.cosine + room.at(h);
  float* o = out.row(h);
  const index_t m = order_members(to, n, room.order + room.at(h), room.other + room.at(h), shared.order);
  const auto bad = [&](index_t j) { return inverse.row(h)[j] != inverse.row(h)[j]; };
  double good = 0.0;
  for (index_t k = threadIdx.x; k < n; k += Threads) {
    float x = o[k];
    for (index_t i = first_member(to, order, m, k); i < m && to[order[i]] == k; ++i) x -= cosine[order[i]];
    o[k] = x;
    good += bad(k) ? 0.0 : 1.0;
  }
  good = cuda::block_sum<double, Threads>(good, shared.sums);
  const float each = 1.0f / static_cast<float>(good > 1.0 ? good : 1.0);
  float top = -INFINITY;
  for (index_t j = threadIdx.x; j < n; j += Threads) {
    o[j] = bad(j) ? NAN : o[j] * each;
    top = o[j] > top ? o[j] : top;
  }
  top = cuda::block_reduce(top, [](float a, float b) { return a > b ? a : b; }, shared.tops);
  double all = 0.0;
  for (index_t j = threadIdx.x; j < n; j += Threads) {
    o[j] = expf(o[j] - top);
    if (o[j] == o[j]) all += static_cast<double>(o[j]);
  }
  all = cuda::block_sum<double, Threads>(all, shared.sums);
  const auto share = static_cast<float>(1.0 / all);
  for (index_t j = threadIdx.x; j < n; j += Threads) o[j] *= share;
}

}  // namespace cuda_kernels

/// Sums of a row in another order than the CPU's; where a cosine is as near to the threshold as rounding another repetition may be
/// the last. No head has more slots than `rows` says.
template <>
struct RowRedundancy<Cuda> {
  static Status run(Context<Cuda>& ctx, const SlotRows<Cuda>& rows, float threshold, RaggedView<float> inverse, RaggedView<float> out,
                    Scratch& scratch) {
    using namespace cuda_kernels;
    const index_t heads = rows.heads(), slots = rows.max_slots(), dim = rows.dim();
    if (out.heads != heads || inverse.heads != heads) return Status::shape_mismatch;
    RedundancyRoom room{};
    room.slots = slots;
    room.last = scratch.take<std::int32_t>(heads * slots), room.order = scratch.take<std::int32_t>(heads * slots);
    room.other = scratch.take<std::int32_t>(heads * slots), room.cosine = scratch.take<float>(heads * slots), room.sum = scratch.take<double>(heads * dim);
    if (heads > 0 && slots > 0 && (room.sum == nullptr || room.cosine == nullptr || room.other == nullptr || room.order == nullptr || room.last == nullptr)) return Status::workspace_too_small;
    Status s = cuda::launch(ctx, sum_directions<tile_threads>, {heads}, tile_threads, tile_bytes(tile_rows, dim) + tile_rows * sizeof(float), rows, inverse, room, dim);
    const std::size_t tiles = (sizeof(LookBackShared) + 15) / 16 * 16 + tile_bytes(tile_rows + tile_others, dim);
    if (s == Status::ok)
      s = cuda::launch(ctx, look_back<tile_threads>, {cuda::covering(slots, tile_rows), heads}, tile_threads, tiles, rows, threshold,
                       RaggedView<const float>(inverse), out, room, dim);
    if (s == Status::ok)
      s = cuda::launch(ctx, leave_out_last<order_threads>, {heads}, order_threads, sizeof(RedundancyShared), RaggedView<const float>(inverse), out, room);
    return s;
  }
};

}  // namespace kvcondense::prim
