#pragma once

#include <kvcondense/backend/cuda/context.cuh>
#include <kvcondense/backend/cuda/launch.cuh>
#include <kvcondense/core/status.hpp>
#include <kvcondense/core/view.hpp>
#include <kvcondense/prim/slot_numbers.hpp>

namespace kvcondense::prim {
namespace cuda_kernels {

inline constexpr int number_threads = 256;
inline constexpr index_t number_blocks = 16;  ///< a head; lengths are known to the device only, so blocks stride

enum class NumberRule { fill, index, mix, fresh, larger, times };

/// out[h][j] by the rule, products and sums rounded one by one. Grid: blocks, heads.
template <NumberRule Rule>
__global__ void __launch_bounds__(number_threads) slot_numbers(RaggedView<const float> x, float a, float b, RaggedView<float> out) {
  const index_t head = blockIdx.y, n = out.length(head);
  float* o = out.row(head);
  const float* from = x.data == nullptr ? nullptr : x.row(head);
  for (index_t j = static_cast<index_t>(blockIdx.x) * number_threads + threadIdx.x; j < n; j += number_blocks * number_threads) {
    if constexpr (Rule == NumberRule::fill) o[j] = a;
    else if constexpr (Rule == NumberRule::index) o[j] = static_cast<float>(j);
    else if constexpr (Rule == NumberRule::fresh) o[j] = __fmul_rn(a, from[j]);
    else if constexpr (Rule == NumberRule::mix) o[j] = __fadd_rn(__fmul_rn(b, o[j]), __fmul_rn(a, from[j]));
    else if constexpr (Rule == NumberRule::larger) o[j] = from[j] > o[j] ? from[j] : o[j];
    else o[j] = __fmul_rn(__fadd_rn(o[j], a), from[j]);
  }
}

}  // namespace cuda_kernels

/// Bit for bit the CPU's. `sum_heads` is not there: whether heads are equally long is not known on the host.
template <>
struct SlotNumbers<Cuda> {
  static Status fill(Context<Cuda>& ctx, float x, RaggedView<float> out) { return run<cuda_kernels::NumberRule::fill>(ctx, {}, x, 0, out); }
  static Status index(Context<Cuda>& ctx, RaggedView<float> out) { return run<cuda_kernels::NumberRule::index>(ctx, {}, 0, 0, out); }
  static Status mix(Context<Cuda>& ctx, RaggedView<const float> x, float scale, float keep, RaggedView<float> out) {
    if (keep == 0.0f) return run<cuda_kernels::NumberRule::fresh>(ctx, x, scale, 0, out);
    return run<cuda_kernels::NumberRule::mix>(ctx, x, scale, keep, out);
  }
  static Status larger(Context<Cuda>& ctx, RaggedView<const float> x, RaggedView<float> out) {
    return run<cuda_kernels::NumberRule::larger>(ctx, x, 0, 0, out);
  }
  static Status times(Context<Cuda>& ctx, RaggedView<const float> x, float add, RaggedView<float> out) {
    return run<cuda_kernels::NumberRule::times>(ctx, x, add, 0, out);
  }

 private:
  template <cuda_kernels::NumberRule Rule>
  static Status run(Context<Cuda>& ctx, RaggedView<const float> x, float a, float b, RaggedView<float> out) {
    using namespace cuda_kernels;
    return cuda::launch(ctx, slot_numbers<Rule>, {number_blocks, out.heads}, number_threads, 0, x, a, b, out);
  }
};

}  // namespace kvcondense::prim
