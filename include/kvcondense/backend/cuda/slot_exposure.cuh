#pragma once

#include <cmath>

#include <kvcondense/backend/cuda/context.cuh>
#include <kvcondense/backend/cuda/launch.cuh>
#include <kvcondense/core/status.hpp>
#include <kvcondense/core/view.hpp>
#include <kvcondense/prim/slot_exposure.hpp>

namespace kvcondense::prim {
namespace cuda_kernels {

inline constexpr int exposure_threads = 256;

enum class ExposureRule { add, mean, open_logs, decayed_mean };

/// `x` is what the rule divides or changes, `exposure` how many rows have seen a slot. Grid: blocks, heads.
template <ExposureRule Rule>
__global__ void __launch_bounds__(exposure_threads) slot_exposure(RaggedView<const float> x, RaggedView<const float> exposure, float decay, index_t rows,
                                                                 RaggedView<float> out) {
  const index_t head = blockIdx.y, n = out.length(head);
  float* o = out.row(head);
  const index_t step = static_cast<index_t>(gridDim.x) * exposure_threads;
  for (index_t j = static_cast<index_t>(blockIdx.x) * exposure_threads + threadIdx.x; j < n; j += step) {
    if constexpr (Rule == ExposureRule::add) {
      o[j] += static_cast<float>(rows < n - j ? rows : n - j);
    } else {
      const float seen = exposure.row(head)[j];
      if constexpr (Rule == ExposureRule::mean) o[j] = seen > 0.0f ? x.row(head)[j] / seen : 0.0f;
      else if constexpr (Rule == ExposureRule::open_logs) o[j] = seen > 0.0f ? o[j] : -INFINITY;
      else o[j] = seen > 0.0f ? x.row(head)[j] - logf(1.0f - powf(decay, seen)) : -INFINITY;
    }
  }
}

}  // namespace cuda_kernels

/// Bit for bit the CPU's, but for `decayed_mean`, whose logarithms and powers are the device's.
template <>
struct SlotExposure<Cuda> {
  static Status add(Context<Cuda>& ctx, index_t rows, RaggedView<float> exposure) {
    return run<cuda_kernels::ExposureRule::add>(ctx, {}, {}, 0.0f, rows, exposure);
  }
  static Status mean(Context<Cuda>& ctx, RaggedView<const float> sum, RaggedView<const float> exposure, RaggedView<float> out) {
    return run<cuda_kernels::ExposureRule::mean>(ctx, sum, exposure, 0.0f, 0, out);
  }
  static Status open_logs(Context<Cuda>& ctx, RaggedView<const float> exposure, RaggedView<float> logs) {
    return run<cuda_kernels::ExposureRule::open_logs>(ctx, {}, exposure, 0.0f, 0, logs);
  }
  static Status decayed_mean(Context<Cuda>& ctx, RaggedView<const float> logs, RaggedView<const float> exposure, float decay, RaggedView<float> out) {
    return run<cuda_kernels::ExposureRule::decayed_mean>(ctx, logs, exposure, decay, 0, out);
  }

 private:
  static constexpr index_t blocks = 16;  ///< of a head; lengths are known to the device only, so they stride

  template <cuda_kernels::ExposureRule Rule>
  static Status run(Context<Cuda>& ctx, RaggedView<const float> x, RaggedView<const float> exposure, float decay, index_t rows, RaggedView<float> out) {
    using namespace cuda_kernels;
    return cuda::launch(ctx, slot_exposure<Rule>, {blocks, out.heads}, exposure_threads, 0, x, exposure, decay, rows, out);
  }
};

}  // namespace kvcondense::prim
