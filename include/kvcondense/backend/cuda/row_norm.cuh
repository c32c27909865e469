#pragma once

#include <cmath>

#include <kvcondense/backend/cuda/block.cuh>
#include <kvcondense/backend/cuda/context.cuh>
#include <kvcondense/backend/cuda/launch.cuh>
#include <kvcondense/backend/cuda/slot_rows.cuh>
#include <kvcondense/core/status.hpp>
#include <kvcondense/core/view.hpp>
#include <kvcondense/prim/row_norm.hpp>

namespace kvcondense::prim {
namespace cuda_kernels {

inline constexpr int norm_threads = 128, norm_warps = norm_threads / cuda::warp_lanes;

struct NormShared {
  float row[norm_warps][max_head_dim];
};

/// A warp a slot, counted from the newest. Grid: blocks of slots, heads.
template <int Threads>
__global__ void __launch_bounds__(Threads, 4) row_norms(SlotRows<Cuda> rows, index_t newest, float factor, RaggedView<float> out) {
  const index_t head = blockIdx.y, n = out.length(head);
  const index_t back = static_cast<index_t>(blockIdx.x) * norm_warps + cuda::warp_of_block();
  if (back >= n || back >= newest) return;
  float* row = cuda::shared_as<NormShared>().row[cuda::warp_of_block()];
  rows.load(rows.locate(head, n - 1 - back), row);
  float square = 0.0f;
  for (int c = cuda::lane_of_warp(); c < rows.dim(); c += cuda::warp_lanes) square += row[c] * row[c];
  square = cuda::warp_sum(square);
  if (cuda::lane_of_warp() == 0) out.row(head)[n - 1 - back] = factor * (square < INFINITY ? sqrtf(square) : INFINITY);
}

}  // namespace cuda_kernels

/// Sums of squares in another order than the CPU's.
template <>
struct RowNorm<Cuda> {
  static Status run(Context<Cuda>& ctx, const SlotRows<Cuda>& rows, index_t newest, float factor, RaggedView<float> out) {
    using namespace cuda_kernels;
    if (out.heads != rows.heads()) return Status::shape_mismatch;
    const index_t most = newest < 0 ? 0 : newest < rows.max_slots() ? newest : rows.max_slots();
    return cuda::launch(ctx, row_norms<norm_threads>, {cuda::covering(most, norm_warps), out.heads}, norm_threads, sizeof(NormShared), rows, most,
                        factor, out);
  }
};

}  // namespace kvcondense::prim
