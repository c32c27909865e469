#pragma once

#include <cmath>

#include <kvcondense/backend/cuda/context.cuh>
#include <kvcondense/backend/cuda/launch.cuh>
#include <kvcondense/core/status.hpp>
#include <kvcondense/core/view.hpp>
#include <kvcondense/prim/settle_probed.hpp>

namespace kvcondense::prim {
namespace cuda_kernels {

inline constexpr int probed_threads = 256;
inline constexpr index_t probed_blocks = 16;  ///< a head; lengths are known to the device only, so blocks stride

/// Grid: blocks, heads.
template <int Threads>
__global__ void __launch_bounds__(Threads) settle_probed(RaggedView<float> asked, RaggedView<float> out) {
  const index_t h = blockIdx.y, n = out.length(h);
  float *a = asked.row(h), *o = out.row(h);
  for (index_t j = static_cast<index_t>(blockIdx.x) * Threads + threadIdx.x; j < n; j += probed_blocks * Threads) {
    const float x = a[j];
    o[j] = x == 0.0f ? INFINITY : x;
    if (x != 0.0f) a[j] = INFINITY;
  }
}

}  // namespace cuda_kernels

/// Bit for bit the CPU's.
template <>
struct SettleProbed<Cuda> {
  static Status run(Context<Cuda>& ctx, RaggedView<float> asked, RaggedView<float> out) {
    using namespace cuda_kernels;
    return cuda::launch(ctx, settle_probed<probed_threads>, {probed_blocks, out.heads}, probed_threads, 0, asked, out);
  }
};

}  // namespace kvcondense::prim
