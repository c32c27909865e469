#pragma once

#include <span>

#include <kvcondense/backend/cuda/context.cuh>
#include <kvcondense/backend/cuda/launch.cuh>
#include <kvcondense/core/status.hpp>
#include <kvcondense/core/view.hpp>
#include <kvcondense/prim/chunk_memory.hpp>

namespace kvcondense::prim {
namespace cuda_kernels {

inline constexpr int gate_threads = 128;

/// A block a row. Grid: tokens, heads.
template <int Threads>
__global__ void __launch_bounds__(Threads) mix_by_gate(TensorView<const float, 3> a, TensorView<const float, 3> b, const float* bias, TensorView<float, 3> out) {
  const index_t t = blockIdx.x, h = blockIdx.y;
  const float g = 1.0f / (1.0f + expf(-bias[h])), rest = 1.0f - g;
  for (index_t c = threadIdx.x; c < out.extent[2]; c += Threads) out(h, t, c) = __fadd_rn(__fmul_rn(rest, a(h, t, c)), __fmul_rn(g, b(h, t, c)));
}

}  // namespace cuda_kernels

/// `bias` lies on the device, whose own exponential it is. Products and the sum are rounded one by one.
template <>
struct GatedMerge<Cuda> {
  static Status run(Context<Cuda>& ctx, TensorView<const float, 3> a, TensorView<const float, 3> b, std::span<const float> bias, TensorView<float, 3> out) {
    using namespace cuda_kernels;
    for (int i = 0; i < 3; ++i)
      if (a.extent[i] != out.extent[i] || b.extent[i] != out.extent[i]) return Status::shape_mismatch;
    if (static_cast<index_t>(bias.size()) != out.extent[0]) return Status::shape_mismatch;
    return cuda::launch(ctx, mix_by_gate<gate_threads>, {out.extent[1], out.extent[0]}, gate_threads, 0, a, b, bias.data(), out);
  }
};

}  // namespace kvcondense::prim
