#pragma once

#include <cmath>

#include <kvcondense/backend/cuda/block.cuh>
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

/// out[h][j] = keep * out[h][j] + scale * (x[0][j] + ...). A thread reads all heads of a slot before it writes one, so
/// `out` may be `x`. Heads that are not equally long: NaN everywhere. Grid: blocks.
template <int Threads>
__global__ void __launch_bounds__(Threads) sum_of_heads(RaggedView<const float> x, float scale, float keep, RaggedView<float> out) {
  const index_t step = static_cast<index_t>(gridDim.x) * Threads;
  bool equal = true;
  for (index_t h = 0; h < out.heads; ++h) equal = equal && out.length(h) == out.length(0);
  for (index_t h = 0; h < x.heads; ++h) equal = equal && x.length(h) == out.length(0);
  for (index_t h = 0; h < out.heads && !equal; ++h)
    for (index_t j = static_cast<index_t>(blockIdx.x) * Threads + threadIdx.x; j < out.length(h); j += step) out.row(h)[j] = NAN;
  const index_t n = equal && out.heads > 0 ? out.length(0) : 0;
  for (index_t j = static_cast<index_t>(blockIdx.x) * Threads + threadIdx.x; j < n; j += step) {
    float sum = 0.0f;
    for (index_t h = 0; h < x.heads; ++h) sum = __fadd_rn(sum, x.row(h)[j]);
    const float fresh = __fmul_rn(scale, sum);
    for (index_t h = 0; h < out.heads; ++h) out.row(h)[j] = keep == 0.0f ? fresh : __fadd_rn(__fmul_rn(keep, out.row(h)[j]), fresh);
  }
}

struct BroughtShared {
  double all[number_threads / cuda::warp_lanes], own[number_threads / cuda::warp_lanes];
};

/// out[h] = max(out[h], x[h] * what brings its mean to that of out[h]). A block a head.
template <int Threads>
__global__ void __launch_bounds__(Threads) larger_brought(RaggedView<const float> x, RaggedView<float> out) {
  BroughtShared& shared = cuda::shared_as<BroughtShared>();
  const index_t head = blockIdx.x, n = out.length(head);
  const float* from = x.row(head);
  float* o = out.row(head);
  double all = 0.0, own = 0.0;
  for (index_t j = threadIdx.x; j < n; j += Threads) all += static_cast<double>(from[j]), own += static_cast<double>(o[j]);
  all = cuda::warp_sum(all), own = cuda::warp_sum(own);
  if (cuda::lane_of_warp() == 0) shared.all[cuda::warp_of_block()] = all, shared.own[cuda::warp_of_block()] = own;
  __syncthreads();
  all = own = 0.0;
  for (int w = 0; w < Threads / cuda::warp_lanes; ++w) all += shared.all[w], own += shared.own[w];
  const float scale = all > 0.0 ? static_cast<float>(own / all) : 0.0f;
  for (index_t j = threadIdx.x; j < n; j += Threads) {
    const float brought = from[j] * scale;
    o[j] = brought > o[j] ? brought : o[j];
  }
}

}  // namespace cuda_kernels

/// Bit for bit the CPU's, but for `larger_brought`, whose sums have another order. Whether heads are equally long is not known on
/// the host: `sum_heads` of others makes NaN of every number instead of a Status.
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
  static Status larger_brought(Context<Cuda>& ctx, RaggedView<const float> x, RaggedView<float> out) {
    using namespace cuda_kernels;
    return cuda::launch(ctx, cuda_kernels::larger_brought<number_threads>, {out.heads}, number_threads, sizeof(BroughtShared), x, out);
  }
  static Status sum_heads(Context<Cuda>& ctx, RaggedView<const float> x, float scale, float keep, RaggedView<float> out) {
    using namespace cuda_kernels;
    return cuda::launch(ctx, sum_of_heads<number_threads>, {out.heads > 0 ? number_blocks : 0}, number_threads, 0, x, scale, keep, out);
  }

 private:
  template <cuda_kernels::NumberRule Rule>
  static Status run(Context<Cuda>& ctx, RaggedView<const float> x, float a, float b, RaggedView<float> out) {
    using namespace cuda_kernels;
    return cuda::launch(ctx, slot_numbers<Rule>, {number_blocks, out.heads}, number_threads, 0, x, a, b, out);
  }
};

}  // namespace kvcondense::prim
