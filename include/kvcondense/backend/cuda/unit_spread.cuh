#pragma once

#include <kvcondense/backend/cuda/block.cuh>
#include <kvcondense/backend/cuda/context.cuh>
#include <kvcondense/backend/cuda/launch.cuh>
#include <kvcondense/core/status.hpp>
#include <kvcondense/core/view.hpp>
#include <kvcondense/prim/unit_spread.hpp>

namespace kvcondense::prim {
namespace cuda_kernels {

inline constexpr int spread_threads = 128;

/// A block a unit, a warp a row. Grid: units.
template <int Threads>
__global__ void __launch_bounds__(Threads) smallest_cosines(TensorView<const float, 3> rows, TensorView<const float, 2> directions, float* least) {
  auto& scratch = cuda::shared_as<cuda::BlockScratch<float, Threads>>();
  const index_t u = blockIdx.x, dim = rows.extent[2];
  float length = 0.0f;
  for (index_t c = cuda::lane_of_warp(); c < dim; c += cuda::warp_lanes) length += directions(u, c) * directions(u, c);
  length = cuda::warp_sum(length);
  float smallest = least[u];
  for (index_t i = cuda::warp_of_block(); i < rows.extent[1]; i += scratch.warps) {
    float square = 0.0f, dot = 0.0f;
    for (index_t c = cuda::lane_of_warp(); c < dim; c += cuda::warp_lanes) {
      const float x = rows(u, i, c);
      square += x * x, dot += x * directions(u, c);
    }
    const float norm = sqrtf(cuda::warp_sum(square) * length), product = cuda::warp_sum(dot);
    const float cosine = norm > 0.0f ? product / norm : 0.0f;
    if (cosine < smallest) smallest = cosine;
  }
  smallest = cuda::block_reduce(smallest, [](float a, float b) { return b < a ? b : a; }, scratch);
  if (threadIdx.x == 0) least[u] = smallest;
}

}  // namespace cuda_kernels

/// Many units in a call: rows [units, rows, dim] against directions [units, dim]; `least` [units] goes in and comes out. Sums of a row
/// in another order than the CPU's.
template <>
struct UnitSpread<Cuda> {
  static Status smallest_cosine(Context<Cuda>& ctx, TensorView<const float, 3> rows, TensorView<const float, 2> directions, float* least) {
    using namespace cuda_kernels;
    if (directions.extent[0] != rows.extent[0] || directions.extent[1] != rows.extent[2]) return Status::shape_mismatch;
    return cuda::launch(ctx, smallest_cosines<spread_threads>, {rows.extent[0]}, spread_threads, sizeof(cuda::BlockScratch<float, spread_threads>), rows,
                        directions, least);
  }
};

}  // namespace kvcondense::prim
