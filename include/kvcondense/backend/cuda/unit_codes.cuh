#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>

#include <kvcondense/backend/cuda/block.cuh>
#include <kvcondense/backend/cuda/context.cuh>
#include <kvcondense/backend/cuda/launch.cuh>
#include <kvcondense/backend/cuda/slot_rows.cuh>
#include <kvcondense/backend/cuda/unit_index.cuh>
#include <kvcondense/backend/cuda/unit_scores.cuh>
#include <kvcondense/core/shape.hpp>
#include <kvcondense/core/status.hpp>

// An index of codes of two bytes per slot: the nearest of a head's centroids, and what a query thinks of each of these.

namespace kvcondense::prim {
namespace cuda_kernels {

struct NearestShared {
  float row[max_head_dim];
  float far[index_warps];
  std::int32_t code[index_warps];
};

/// The centroid nearest to a slot's key by the metric, of equally near ones the first; a key of NaN has the first of all. A block a slot, a warp a
/// centroid, its lanes columns of the metric. Grid: as index_units.
template <int Threads>
__global__ void __launch_bounds__(Threads, 4) index_nearest(SlotRows<Cuda> keys, UnitPlanes planes, const index_t* from, const index_t* known, index_t base) {
  NearestShared& shared = cuda::shared_as<NearestShared>();
  const UnitSlots s(planes, from, known, base);
  if (s.empty()) return;  // the same in all threads
  const int dim = planes.width, warp = cuda::warp_of_block(), lane = cuda::lane_of_warp();
  if (warp == 0) keys.load(keys.locate(s.head, s.begin), shared.row);
  __syncthreads();
  const float* const l = planes.metric == nullptr ? nullptr : planes.metric + s.head * dim * dim;
  float nearest = INFINITY;
  std::int32_t code = 0;
  for (index_t c = warp; c < planes.entries; c += index_warps) {
    const float* const centroid = planes.book + (s.head * planes.entries + c) * dim;
    float far = 0.0f;
    for (int column = lane; column < dim; column += cuda::warp_lanes) {
      float x = l == nullptr ? shared.row[column] - centroid[column] : 0.0f;
      for (int d = 0; l != nullptr && d < dim; ++d) x += (shared.row[d] - centroid[d]) * l[d * dim + column];
      far += x * x;
    }
    far = cuda::warp_sum(far);
    if (far < nearest) nearest = far, code = static_cast<std::int32_t>(c);
  }
  if (lane == 0) shared.far[warp] = nearest, shared.code[warp] = code;
  __syncthreads();
  if (threadIdx.x != 0) return;
  for (int w = 1; w < index_warps; ++w)
    if (shared.far[w] < nearest || (shared.far[w] == nearest && shared.code[w] < code)) nearest = shared.far[w], code = shared.code[w];
  *planes.code(s.head, s.u) = static_cast<std::uint16_t>(nearest < INFINITY ? code : 0);
}

/// Inner products of query rows, `per_head` to a KV head, with every centroid: a warp a centroid. Grid: blocks of centroids, rows.
template <int Threads>
__global__ void __launch_bounds__(Threads) centroid_tables(UnitPlanes planes, const float* queries, index_t per_head, float* out) {
  const index_t row = blockIdx.y, c = static_cast<index_t>(blockIdx.x) * (Threads / cuda::warp_lanes) + cuda::warp_of_block();
  if (c >= planes.entries) return;  // the same in a warp
  const float *const q = queries + row * planes.width, *const centroid = planes.book + (row / per_head * planes.entries + c) * planes.width;
  float dot = 0.0f;
  for (int d = cuda::lane_of_warp(); d < planes.width; d += cuda::warp_lanes) dot += q[d] * centroid[d];
  dot = cuda::warp_sum(dot);
  if (cuda::lane_of_warp() == 0) out[row * planes.entries + c] = dot;
}

/// Candidates by the tables of their rows: a thread one. Grid: blocks of candidates, rows.
template <int Threads>
__global__ void __launch_bounds__(Threads) score_by_tables(UnitPlanes planes, UnitScores scores, const float* tables) {
  const index_t row = blockIdx.y, head = row / scores.per_head, u = static_cast<index_t>(blockIdx.x) * Threads + threadIdx.x;
  if (u < scores.out.length(row)) scores.out.row(row)[u] = tables[row * planes.entries + *planes.code(head, scores.first[head] + u)];
}

}  // namespace cuda_kernels

/// Numbers  distances and inner products in float32, sums in another order than the CPU's: a key that is as near to two centroids as rounding may
///          have the other code.
struct UnitCodes {
  /// As UnitIndex::build.
  static Status build(Context<Cuda>& ctx, const SlotRows<Cuda>& keys, const UnitPlanes& planes, const index_t* from, const index_t* known, index_t first, index_t last) {
    using namespace cuda_kernels;
    if (first >= last) return Status::ok;
    return cuda::launch(ctx, index_nearest<index_threads>, {last - first, keys.heads()}, index_threads, sizeof(NearestShared), keys, planes, from, known, first);
  }
  /// Tables [rows, entries] of query rows.
  static Status tables(Context<Cuda>& ctx, const UnitPlanes& planes, const float* queries, index_t rows, index_t per_head, float* out) {
    using namespace cuda_kernels;
    return cuda::launch(ctx, centroid_tables<index_threads>, {cuda::covering(planes.entries, index_warps), rows}, index_threads, 0, planes, queries, per_head, out);
  }
  /// `most`: no head has more candidates.
  static Status score(Context<Cuda>& ctx, const UnitPlanes& planes, const UnitScores& scores, const float* tables, index_t most) {
    using namespace cuda_kernels;
    return cuda::launch(ctx, score_by_tables<256>, {cuda::covering(most, 256), scores.out.heads}, 256, 0, planes, scores, tables);
  }
};

}  // namespace kvcondense::prim
