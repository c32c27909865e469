#pragma once

#include <cmath>

#include <kvcondense/backend/cuda/block.cuh>
#include <kvcondense/backend/cuda/context.cuh>
#include <kvcondense/backend/cuda/launch.cuh>
#include <kvcondense/backend/cuda/slot_rows.cuh>
#include <kvcondense/core/shape.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/core/view.hpp>
#include <kvcondense/prim/row_direction.hpp>

namespace kvcondense::prim {
namespace cuda_kernels {

inline constexpr int direction_threads = 512, direction_warps = direction_threads / cuda::warp_lanes;
inline constexpr int direction_each = static_cast<int>(max_head_dim) / cuda::warp_lanes;  ///< channels of a lane

struct DirectionShared {
  double sum[max_head_dim];
  double lengths;
  double part[direction_warps];
  float unit[max_head_dim];
  float row[direction_warps][max_head_dim];  ///< a row of each warp, so that codes are taken apart in one place
};

/// A block a head, a warp a row: first the anchor, then every row against it.
template <int Threads>
__global__ void __launch_bounds__(Threads, 1) row_directions(SlotRows<Cuda> rows, Anchor anchor, float factor, RaggedView<float> out) {
  DirectionShared& shared = cuda::shared_as<DirectionShared>();
  const index_t head = blockIdx.x, n = out.length(head);
  const int dim = static_cast<int>(rows.dim()), lane = cuda::lane_of_warp(), warp = cuda::warp_of_block();
  float* o = out.row(head);

  double sum[direction_each] = {}, lengths = 0.0;
  for (index_t j = warp; j < n; j += direction_warps) {
    rows.load(rows.locate(head, j), shared.row[warp]);
    float square = 0.0f;
    for (int c = lane; c < dim; c += cuda::warp_lanes) square += shared.row[warp][c] * shared.row[warp][c];
    square = cuda::warp_sum(square);
    const bool good = square < INFINITY;  // of NaN too
    const float inverse = good && square > 0.0f ? 1.0f / sqrtf(square) : 0.0f;
    if (lane == 0) o[j] = good ? inverse : NAN;
    if (inverse == 0.0f) continue;  // the same in all lanes
    const double weight = anchor == Anchor::mean_direction ? static_cast<double>(inverse) : 1.0;
#pragma unroll
    for (int k = 0; k < direction_each; ++k) {
      const int c = lane + k * cuda::warp_lanes;
      if (c < dim) sum[k] += weight * static_cast<double>(shared.row[warp][c]);
    }
    lengths += weight / static_cast<double>(inverse);
  }

  // The warps' sums, one warp after the other.
  for (int w = 0; w < direction_warps; ++w) {
    if (warp == w) {
#pragma unroll
      for (int k = 0; k < direction_each; ++k) {
        double& to = shared.sum[lane + k * cuda::warp_lanes];
        to = w == 0 ? sum[k] : to + sum[k];
      }
      if (lane == 0) shared.lengths = w == 0 ? lengths : shared.lengths + lengths;
    }
    __syncthreads();
  }
  double square = 0.0;
  for (int c = static_cast<int>(threadIdx.x); c < dim; c += Threads) square += shared.sum[c] * shared.sum[c];
  square = cuda::warp_sum(square);
  if (lane == 0) shared.part[warp] = square;
  __syncthreads();
  square = 0.0;
  for (int w = 0; w < direction_warps; ++w) square += shared.part[w];
  const double length = sqrt(square);
  const bool known = length > 1e-6 * shared.lengths;
  for (int c = static_cast<int>(threadIdx.x); c < dim; c += Threads) shared.unit[c] = known ? static_cast<float>(shared.sum[c] / length) : 0.0f;
  __syncthreads();

  for (index_t j = warp; j < n; j += direction_warps) {
    rows.load(rows.locate(head, j), shared.row[warp]);
    float dot = 0.0f;
    for (int c = lane; c < dim; c += cuda::warp_lanes) dot += shared.unit[c] * shared.row[warp][c];
    dot = cuda::warp_sum(dot);
    if (lane == 0) o[j] *= factor * dot;
  }
}

}  // namespace cuda_kernels

/// Sums of a row in another order than the CPU's. A head's rows pass through one block: heads are few, and so are the steps in
/// which this is asked.
template <>
struct RowDirection<Cuda> {
  static Status run(Context<Cuda>& ctx, const SlotRows<Cuda>& rows, Anchor anchor, float factor, RaggedView<float> out) {
    using namespace cuda_kernels;
    if (out.heads != rows.heads()) return Status::shape_mismatch;
    return cuda::launch(ctx, row_directions<direction_threads>, {out.heads}, direction_threads, sizeof(DirectionShared), rows, anchor, factor, out);
  }
};

}  // namespace kvcondense::prim
