#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>

#include <kvcondense/backend/cuda/block.cuh>
#include <kvcondense/backend/cuda/context.cuh>
#include <kvcondense/backend/cuda/launch.cuh>
#include <kvcondense/backend/cuda/slot_codes.cuh>
#include <kvcondense/backend/cuda/slot_rows.cuh>
#include <kvcondense/backend/cuda/unit_index.cuh>
#include <kvcondense/core/shape.hpp>
#include <kvcondense/core/status.hpp>

// Codes of slots by the nearest of a head's centroids, where nearness is told by a metric of the head.

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
__global__ void __launch_bounds__(Threads, 4) index_nearest(SlotRows<Cuda> keys, UnitPlanes planes, SlotCodebooks books, const index_t* from, const index_t* known,
                                                            index_t base) {
  NearestShared& shared = cuda::shared_as<NearestShared>();
  const UnitSlots s(planes, from, known, base);
  if (s.empty()) return;  // the same in all threads
  const int dim = static_cast<int>(keys.dim()), warp = cuda::warp_of_block(), lane = cuda::lane_of_warp();
  if (warp == 0) keys.load(keys.locate(s.head, s.begin), shared.row);
  __syncthreads();
  const float* const l = planes.metric == nullptr ? nullptr : planes.metric + s.head * dim * dim;
  float nearest = INFINITY;
  std::int32_t code = 0;
  for (index_t c = warp; c < books.entries; c += index_warps) {
    const float* const centroid = books.head(s.head) + c * dim;
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
  reinterpret_cast<std::uint16_t*>(planes.plane[0] + s.head * planes.room[0])[s.u] = static_cast<std::uint16_t>(nearest < INFINITY ? code : 0);
}

}  // namespace cuda_kernels

/// Codes of two bytes as SlotCodes has them, by codebooks of one part and UnitPlanes::metric.
///
/// Numbers  distances in float32, sums in another order than the CPU's: a key that is as near to two centroids as rounding may have the other code.
struct MetricCodes {
  /// As SlotCodes::build.
  static Status build(Context<Cuda>& ctx, const SlotRows<Cuda>& keys, const UnitPlanes& planes, const SlotCodebooks& books, const index_t* from, const index_t* known,
                      index_t first, index_t last) {
    using namespace cuda_kernels;
    if (first >= last) return Status::ok;
    return cuda::launch(ctx, index_nearest<index_threads>, {last - first, keys.heads()}, index_threads, sizeof(NearestShared), keys, planes, books, from,
                        known, first);
  }
};

}  // namespace kvcondense::prim
