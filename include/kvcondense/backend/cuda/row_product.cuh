#pragma once

#include <kvcondense/backend/cuda/block.cuh>
#include <kvcondense/backend/cuda/context.cuh>
#include <kvcondense/backend/cuda/launch.cuh>
#include <kvcondense/backend/cuda/slot_rows.cuh>
#include <kvcondense/core/shape.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/core/view.hpp>
#include <kvcondense/prim/row_product.hpp>

namespace kvcondense::prim {
namespace cuda_kernels {

inline constexpr int reach_threads = 128, reach_warps = reach_threads / cuda::warp_lanes;

struct ReachShared {
  float row[reach_warps][max_head_dim];
};

/// A warp a slot, counted from the newest. Grid: blocks of slots, heads.
template <int Threads>
__global__ void __launch_bounds__(Threads, 4) row_products(SlotRows<Cuda> rows, index_t newest, const float* directions, float factor,
                                                           RaggedView<float> out) {
  const index_t head = blockIdx.y, n = out.length(head);
  const index_t back = static_cast<index_t>(blockIdx.x) * reach_warps + cuda::warp_of_block();
  if (back >= n || back >= newest) return;
  float* row = cuda::shared_as<ReachShared>().row[cuda::warp_of_block()];
  rows.load(rows.locate(head, n - 1 - back), row);
  const float* direction = directions + head * rows.dim();
  float along = 0.0f;
  for (int c = cuda::lane_of_warp(); c < rows.dim(); c += cuda::warp_lanes) along += direction[c] * row[c];
  along = cuda::warp_sum(along);
  if (cuda::lane_of_warp() == 0) out.row(head)[n - 1 - back] = factor * along;
}

}  // namespace cuda_kernels

/// Sums of a row in another order than the CPU's. `directions` lie where the rows do.
template <>
struct RowProduct<Cuda> {
  static Status run(Context<Cuda>& ctx, const SlotRows<Cuda>& rows, index_t newest, const float* directions, float factor, RaggedView<float> out) {
    using namespace cuda_kernels;
    if (out.heads != rows.heads()) return Status::shape_mismatch;
    const index_t most = newest < 0 ? 0 : newest < rows.max_slots() ? newest : rows.max_slots();
    return cuda::launch(ctx, row_products<reach_threads>, {cuda::covering(most, reach_warps), out.heads}, reach_threads, sizeof(ReachShared),
                        rows, most, directions, factor, out);
  }
};

}  // namespace kvcondense::prim
