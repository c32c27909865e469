#pragma once

#include <cmath>
#include <cstdint>

#include <kvcondense/backend/cuda/block.cuh>
#include <kvcondense/backend/cuda/context.cuh>
#include <kvcondense/backend/cuda/launch.cuh>
#include <kvcondense/core/random.hpp>
#include <kvcondense/core/shape.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/prim/hadamard.hpp>

namespace kvcondense::prim {
namespace cuda_kernels {

inline constexpr int hadamard_threads = 128, hadamard_warps = hadamard_threads / cuda::warp_lanes;

struct HadamardShared {
  float row[hadamard_warps][max_head_dim];
};

/// The transform of every block of `size` numbers of x[0, n), by one warp; sums in the order of the CPU.
__device__ inline void mix_blocks(float* x, int n, int size, float factor) {
  const int lane = cuda::lane_of_warp();
  for (int i = lane; i < n; i += cuda::warp_lanes) x[i] = __fmul_rn(x[i], factor);
  __syncwarp();
  for (int half = 1; half < size; half *= 2) {
    for (int k = lane; k < n / 2; k += cuda::warp_lanes) {
      const int i = k / half * 2 * half + k % half;
      const float a = x[i], b = x[i + half];
      x[i] = a + b, x[i + half] = a - b;
    }
    __syncwarp();
  }
}
__device__ inline void change_signs(std::uint64_t seed, float* x, int n) {
  for (int c = cuda::lane_of_warp(); c < n; c += cuda::warp_lanes)
    if ((random_bits(seed, static_cast<std::uint64_t>(c)) & 1u) != 0) x[c] = -x[c];
  __syncwarp();
}

/// A row in shared memory, by one warp; bit for bit the CPU's.
__device__ inline void map_hadamard(const Hadamard& t, int dim, float* x, bool back) {
  int size = static_cast<int>(t.block);
  if (t.overlap) size = 1 << (31 - __clz(dim));
  else if (size == 0) size = dim & -dim;
  const float factor = __frcp_rn(__fsqrt_rn(static_cast<float>(size)));
  const int first = t.overlap ? size : dim;
  const bool again = t.overlap && size < dim;
  if (!back && t.seed != 0) change_signs(t.seed, x, dim);
  if (!back) mix_blocks(x, first, size, factor);
  if (!back && again) change_signs(~t.seed, x, dim);
  if (again) mix_blocks(x + dim - size, size, size, factor);
  if (back && again) change_signs(~t.seed, x, dim);
  if (back) mix_blocks(x, first, size, factor);
  if (back && t.seed != 0) change_signs(t.seed, x, dim);
}

/// A warp a row.
template <int Threads>
__global__ void __launch_bounds__(Threads) hadamard_rows(Hadamard t, RowBlock<float> rows, int dim, bool back) {
  const index_t r = static_cast<index_t>(blockIdx.x) * hadamard_warps + cuda::warp_of_block();
  if (r >= rows.rows) return;  // whole warps, and no block barrier follows
  float* x = cuda::shared_as<HadamardShared>().row[cuda::warp_of_block()];
  const int lane = cuda::lane_of_warp();
  for (int c = lane; c < dim; c += cuda::warp_lanes) x[c] = rows.data[r * rows.step + c];
  __syncwarp();
  map_hadamard(t, dim, x, back);
  for (int c = lane; c < dim; c += cuda::warp_lanes) rows.data[r * rows.step + c] = x[c];
}

}  // namespace cuda_kernels

/// Rows on the device, mapped in place; bit for bit the CPU's.
template <>
struct RowTransform<Cuda, Hadamard> {
  static Status forward(Context<Cuda>& ctx, const Hadamard& t, index_t dim, RowBlock<float> rows) { return run(ctx, t, dim, rows, false); }
  static Status backward(Context<Cuda>& ctx, const Hadamard& t, index_t dim, RowBlock<float> rows) { return run(ctx, t, dim, rows, true); }
  /// Orthonormal: a query is mapped as a key is.
  static Status query(Context<Cuda>& ctx, const Hadamard& t, index_t dim, RowBlock<float> rows) { return forward(ctx, t, dim, rows); }

 private:
  static Status run(Context<Cuda>& ctx, const Hadamard& t, index_t dim, RowBlock<float> rows, bool back) {
    using namespace cuda_kernels;
    if (!t.valid(dim)) return Status::invalid_argument;
    return cuda::launch(ctx, hadamard_rows<hadamard_threads>, {cuda::covering(rows.rows, hadamard_warps)}, hadamard_threads,
                        sizeof(HadamardShared), t, rows, static_cast<int>(dim), back);
  }
};

}  // namespace kvcondense::prim
