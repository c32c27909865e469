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
#include <kvcondense/prim/row_similarity.hpp>

namespace kvcondense::prim {
namespace cuda_kernels {

/// A block has a tile of slots, of which those without a link look for one: targets pass by a tile at a time. Links that other blocks
/// write meanwhile make no target. Grid: tiles, heads.
template <int Threads>
__global__ void __launch_bounds__(Threads, 1) nearest_targets(SlotRows<Cuda> keys, SlotRows<Cuda> values, bool both, const SlotRange* targets, index_t chunk,
                                                        MergeLinks links) {
  static_assert(Threads == tile_threads);
  const int key_room = tile_rows * tile_stride(keys.dim()), value_room = both ? tile_rows * tile_stride(values.dim()) : 0;
  auto* block = reinterpret_cast<float*>(cuda::dyn_smem());
  float *others = block + key_room + value_room, *inverse = others + tile_others * tile_stride(both && values.dim() > keys.dim() ? values.dim() : keys.dim());
  const index_t h = blockIdx.y, n = links.slots(h), first = static_cast<index_t>(blockIdx.x) * tile_rows;
  const int lane = cuda::lane_of_warp(), warp = cuda::warp_of_block();
  const int row = static_cast<int>(threadIdx.x) / tile_lanes, own_lane = static_cast<int>(threadIdx.x) % tile_lanes;
  std::int32_t* to = links.to.row(h);
  const SlotRange range = targets[h];
  const unsigned wanted = __ballot_sync(cuda::full_warp, first + lane < n && to[first + lane] == unlinked);
  if (wanted == 0) return;  // the same in all warps

#pragma unroll 1
  for (int part = 0; part < (both ? 2 : 1); ++part) {
    const SlotRows<Cuda>& rows = part == 0 ? keys : values;
    float* at = block + (part == 0 ? 0 : key_room);
    const int stride = tile_stride(rows.dim()), dim = static_cast<int>(rows.dim());
    load_rows(rows, h, [&](int r) { return (wanted >> r & 1u) != 0 ? first + r : -1; }, tile_rows, tile_rows, at);
    for (int r = warp; r < tile_rows; r += tile_warps) {  // rows that this warp has loaded
      __syncwarp();
      const float scale = inverse_length(at + r * stride, dim);
      for (int c = lane; c < dim; c += cuda::warp_lanes) at[r * stride + c] *= scale;
    }
  }

  const index_t slot = first + row;
  const auto chunk_begin = [&](index_t j) { return range.begin + (j - range.begin) / chunk * chunk; };
  float best = -INFINITY;
  index_t found = -1;
  index_t begin = range.begin, end = range.end;
  if (chunk > 0) {  // only where some slot of this block can find one
    const index_t last = first + tile_rows - 1;
    if (last < range.begin) end = begin;
    else if (chunk_begin(last) + chunk < end) end = chunk_begin(last) + chunk;
    if (first > begin) begin = chunk_begin(first);
  }
  // The prefix, then the rest.
  const index_t prefix = chunk == 0 ? range.prefix : 0, tiles = (prefix + tile_others - 1) / tile_others;
  const index_t all = tiles + (end > begin ? (end - begin + tile_others - 1) / tile_others : 0);
  for (index_t i = 0; i < all; ++i) {
    const index_t at = i < tiles ? i * tile_others : begin + (i - tiles) * tile_others, stop = i < tiles ? prefix : end;
    const unsigned there = __ballot_sync(cuda::full_warp, lane < tile_others && at + lane < stop && to[at + lane] == at + lane);
    if (there == 0) continue;  // the same in all warps
    float cosine[tile_each] = {};
#pragma unroll 1
    for (int part = 0; part < (both ? 2 : 1); ++part) {
      const SlotRows<Cuda>& rows = part == 0 ? keys : values;
      const int stride = tile_stride(rows.dim()), dim = static_cast<int>(rows.dim());
      __syncthreads();
      load_rows(rows, h, [&](int r) { return (there >> r & 1u) != 0 ? at + r : -1; }, tile_others, tile_others, others);
      for (int r = warp; r < tile_others; r += tile_warps) {
        __syncwarp();
        const float scale = inverse_length(others + r * stride, dim);
        if (lane == 0) inverse[r] = scale;
      }
      __syncthreads();
      float product[tile_each];
      tile_products(block + (part == 0 ? 0 : key_room), others, dim, product);
#pragma unroll
      for (int e = 0; e < tile_each; ++e) {
        const float a = cosine[e], b = product[e] * inverse[own_lane + e * tile_lanes];
        cosine[e] = part == 0 ? b : a > 0.0f && b > 0.0f ? a * b : (a + b) * 0.0f;  // NaN stays
      }
    }
#pragma unroll
    for (int e = 0; e < tile_each; ++e) {
      const int k = own_lane + e * tile_lanes;
      if ((there >> k & 1u) == 0 || !(cosine[e] > best)) continue;
      if (chunk > 0 && (slot < range.begin || chunk_begin(at + k) != chunk_begin(slot))) continue;
      best = cosine[e];
      found = at + k;
    }
  }
  // The best of the row's threads, of equal ones the smaller place.
  for (int d = tile_lanes / 2; d > 0; d /= 2) {
    const float other = __shfl_xor_sync(cuda::full_warp, best, d);
    const index_t place = __shfl_xor_sync(cuda::full_warp, found, d);
    if (place >= 0 && (found < 0 || other > best || (other == best && place < found))) best = other, found = place;
  }
  if (own_lane != 0 || (wanted >> row & 1u) == 0) return;
  links.likeness.row(h)[slot] = best;
  if (found >= 0) to[slot] = static_cast<std::int32_t>(found);
}

/// A block a tile of rows and the one behind it. Grid: tiles, heads.
template <int Threads>
__global__ void __launch_bounds__(Threads, 2) adjacent_rows(SlotRows<Cuda> keys, RaggedView<float> out) {
  static_assert(Threads == tile_threads);
  const int stride = tile_stride(keys.dim()), dim = static_cast<int>(keys.dim());
  auto* tile = reinterpret_cast<float*>(cuda::dyn_smem());
  float* inverse = tile + (tile_rows + 1) * stride;
  const index_t h = blockIdx.y, n = out.length(h), first = static_cast<index_t>(blockIdx.x) * tile_rows, left = n - first;
  if (left <= 0) return;  // the whole block
  const int count = left < tile_rows + 1 ? static_cast<int>(left) : tile_rows + 1;
  load_rows(keys, h, [&](int r) { return first + r; }, count, count, tile);
  for (int r = cuda::warp_of_block(); r < count; r += tile_warps) {
    __syncwarp();
    const float scale = inverse_length(tile + r * stride, dim);
    if (cuda::lane_of_warp() == 0) inverse[r] = scale;
  }
  __syncthreads();
  for (int r = cuda::warp_of_block(); r < tile_rows && r < count; r += tile_warps) {
    float dot = 0.0f;
    for (int c = cuda::lane_of_warp(); r + 1 < count && c < dim; c += cuda::warp_lanes) dot += tile[r * stride + c] * tile[(r + 1) * stride + c];
    dot = cuda::warp_sum(dot);
    if (cuda::lane_of_warp() == 0) out.row(h)[first + r] = r + 1 < count ? dot * inverse[r] * inverse[r + 1] : 0.0f;
  }
}

struct GaussianShared {
  OrderScratch sums;
  float row[order_threads / cuda::warp_lanes][2][max_head_dim];  ///< of each warp, so that codes are taken apart in one place
};

/// A block a head: a warp a member for the distance, then a thread a target for its mean. The order of members lies in `key`,
/// and `value` is the sort's other array.
template <int Threads>
__global__ void __launch_bounds__(Threads, 1) gaussian_links(SlotRows<Cuda> keys, float sigma, MergeLinks links) {
  static_assert(Threads == order_threads);
  GaussianShared& shared = cuda::shared_as<GaussianShared>();
  const index_t h = blockIdx.x, n = links.slots(h);
  const int dim = static_cast<int>(keys.dim()), lane = cuda::lane_of_warp(), warp = cuda::warp_of_block();
  const std::int32_t* to = links.to.row(h);
  float* x = links.likeness.row(h);
  auto* order = reinterpret_cast<std::int32_t*>(links.key.row(h));
  const index_t m = order_members(to, n, order, reinterpret_cast<std::int32_t*>(links.value.row(h)), shared.sums);
  for (index_t i = warp; i < m; i += Threads / cuda::warp_lanes) {
    const index_t j = order[i];
#pragma unroll 1
    for (int which = 0; which < 2; ++which) {
      keys.load(keys.locate(h, which == 0 ? j : to[j]), shared.row[warp][which]);
    }
    float sum = 0.0f;
    for (int c = lane; c < dim; c += cuda::warp_lanes) {
      const float apart = shared.row[warp][0][c] - shared.row[warp][1][c];
      sum += apart * apart;
    }
    sum = cuda::warp_sum(sum);
    if (lane == 0) x[j] = sqrtf(sum);
  }
  __syncthreads();
  for (index_t t = threadIdx.x; t < n; t += Threads) {
    if (to[t] != t) continue;
    const index_t first = first_member(to, order, m, t);
    float sum = 0.0f, count = 1.0f;  // its own, 0 away
    for (index_t i = first; i < m && to[order[i]] == t; ++i) sum += x[order[i]], count += 1.0f;
    const float mean = sum / count, spread = sigma > 0.0f ? sigma : mean * 0.70710678f;
    const bool alike = sigma <= 0.0f && mean < 1e-6f;
    for (index_t i = first; i < m && to[order[i]] == t; ++i) {
      const float away = x[order[i]] / spread;
      x[order[i]] = alike ? 1.0f : expf(-0.5f * away * away);
    }
  }
}

}  // namespace cuda_kernels

/// Sums of a row in another order than the CPU's: where two cosines differ by less than rounding, the other target may be taken.
/// `gaussian` uses key and value of the links, as on the CPU.
template <>
struct RowSimilarity<Cuda> {
  static Status nearest(Context<Cuda>& ctx, const SlotRows<Cuda>& keys, const SlotRows<Cuda>* values, const SlotRange* targets, index_t chunk,
                        const MergeLinks& links) {
    using namespace cuda_kernels;
    if (keys.heads() != links.heads() || (values != nullptr && values->heads() != links.heads())) return Status::shape_mismatch;
    const index_t value_dim = values == nullptr ? 0 : values->dim(), wider = value_dim > keys.dim() ? value_dim : keys.dim();
    const std::size_t bytes = tile_bytes(tile_rows, keys.dim()) + (values == nullptr ? 0 : tile_bytes(tile_rows, value_dim)) + tile_bytes(tile_others, wider) +
                              tile_others * sizeof(float);
    return cuda::launch(ctx, nearest_targets<tile_threads>, {cuda::covering(keys.max_slots(), tile_rows), links.heads()}, tile_threads, bytes, keys,
                        values == nullptr ? keys : *values, values != nullptr, targets, chunk, links);
  }

  static Status adjacent(Context<Cuda>& ctx, const SlotRows<Cuda>& keys, RaggedView<float> out) {
    using namespace cuda_kernels;
    if (out.heads != keys.heads()) return Status::shape_mismatch;
    const std::size_t bytes = tile_bytes(tile_rows + 1, keys.dim()) + (tile_rows + 1) * sizeof(float);
    return cuda::launch(ctx, adjacent_rows<tile_threads>, {cuda::covering(keys.max_slots(), tile_rows), out.heads}, tile_threads, bytes, keys, out);
  }

  static Status gaussian(Context<Cuda>& ctx, const SlotRows<Cuda>& keys, float sigma, const MergeLinks& links) {
    using namespace cuda_kernels;
    if (keys.heads() != links.heads()) return Status::shape_mismatch;
    return cuda::launch(ctx, gaussian_links<order_threads>, {links.heads()}, order_threads, sizeof(GaussianShared), keys, sigma, links);
  }
};

}  // namespace kvcondense::prim
