#pragma once

#include <cmath>
#include <cstdint>
#include <limits>

#include <kvcondense/backend/cuda/context.cuh>
#include <kvcondense/backend/cuda/launch.cuh>
#include <kvcondense/core/status.hpp>
#include <kvcondense/core/view.hpp>
#include <kvcondense/prim/slot_exposure.hpp>

namespace kvcondense::prim {
namespace cuda_kernels {

inline constexpr int exposure_threads = 256;

enum class ExposureRule { mean, decayed_mean };

/// New slots get their marks, older ones new marks where their rows are not the tokens. Grid: blocks, heads.
template <int Threads>
__global__ void __launch_bounds__(Threads) count_exposure(std::uint32_t stepped, index_t appended, index_t rows, RaggedView<float> mark) {
  const index_t head = blockIdx.y, n = mark.length(head), first = n > appended ? n - appended : 0;
  float* m = mark.row(head);
  const index_t step = static_cast<index_t>(gridDim.x) * Threads, from = rows == appended ? first : 0;
  for (index_t j = from + static_cast<index_t>(blockIdx.x) * Threads + threadIdx.x; j < n; j += step) {
    const auto sees = static_cast<std::uint32_t>(rows < n - j ? rows : n - j);
    m[j] = exposure_mark(j < first ? exposed_rows(m[j], stepped - static_cast<std::uint32_t>(appended)) + sees : sees, stepped);
  }
}

/// Sums of new slots are of nothing. Grid: blocks, heads.
template <int Threads>
__global__ void __launch_bounds__(Threads) open_logs(index_t appended, RaggedView<float> logs) {
  const index_t n = logs.length(blockIdx.y), first = n > appended ? n - appended : 0, step = static_cast<index_t>(gridDim.x) * Threads;
  for (index_t j = first + static_cast<index_t>(blockIdx.x) * Threads + threadIdx.x; j < n; j += step) logs.row(blockIdx.y)[j] = -INFINITY;
}

/// A thread a row.
template <int Threads>
__global__ void __launch_bounds__(Threads) row_divisors(index_t seen, index_t rows, float* out) {
  const index_t r = static_cast<index_t>(blockIdx.x) * Threads + threadIdx.x;
  if (r < rows) out[r] = static_cast<float>(seen) / static_cast<float>(seen - rows + r);
}

/// `x` is what the rule divides. Grid: blocks, heads.
template <ExposureRule Rule>
__global__ void __launch_bounds__(exposure_threads) slot_exposure(RaggedView<const float> x, RaggedView<const float> mark, std::uint32_t stepped, float decay,
                                                                 RaggedView<float> out) {
  const index_t head = blockIdx.y, n = out.length(head);
  float* o = out.row(head);
  const index_t step = static_cast<index_t>(gridDim.x) * exposure_threads;
  for (index_t j = static_cast<index_t>(blockIdx.x) * exposure_threads + threadIdx.x; j < n; j += step) {
    const auto over = static_cast<float>(exposed_rows(mark.row(head)[j], stepped));
    if constexpr (Rule == ExposureRule::mean) o[j] = over > 0.0f ? x.row(head)[j] / over : 0.0f;
    else o[j] = over > 0.0f ? x.row(head)[j] - logf(1.0f - powf(decay, over)) : -INFINITY;
  }
}

}  // namespace cuda_kernels

/// Bit for bit the CPU's, but for `decayed_mean`, whose logarithms and powers are the device's.
template <>
struct SlotExposure<Cuda> {
  static Status count(Context<Cuda>& ctx, index_t stepped, index_t appended, index_t rows, RaggedView<float> mark) {
    using namespace cuda_kernels;
    return cuda::launch(ctx, count_exposure<exposure_threads>, {blocks, mark.heads}, exposure_threads, 0, static_cast<std::uint32_t>(stepped), appended, rows, mark);
  }
  static Status begin(Context<Cuda>& ctx, index_t stepped, index_t rows, RaggedView<float> mark) {
    return count(ctx, stepped, std::numeric_limits<index_t>::max(), rows, mark);
  }
  static Status mean(Context<Cuda>& ctx, RaggedView<const float> sum, RaggedView<const float> mark, index_t stepped, RaggedView<float> out) {
    return run<cuda_kernels::ExposureRule::mean>(ctx, sum, mark, stepped, 0.0f, out);
  }
  static Status open_logs(Context<Cuda>& ctx, index_t appended, RaggedView<float> logs) {
    using namespace cuda_kernels;
    return cuda::launch(ctx, cuda_kernels::open_logs<exposure_threads>, {blocks, logs.heads}, exposure_threads, 0, appended, logs);
  }
  static Status decayed_mean(Context<Cuda>& ctx, RaggedView<const float> logs, RaggedView<const float> mark, index_t stepped, float decay,
                             RaggedView<float> out) {
    return run<cuda_kernels::ExposureRule::decayed_mean>(ctx, logs, mark, stepped, decay, out);
  }
  static Status row_divisors(Context<Cuda>& ctx, index_t seen, index_t rows, float* out) {
    using namespace cuda_kernels;
    return cuda::launch(ctx, cuda_kernels::row_divisors<exposure_threads>, {cuda::covering(rows, exposure_threads)}, exposure_threads, 0, seen, rows, out);
  }

 private:
  static constexpr index_t blocks = 16;  ///< of a head; lengths are known to the device only, so they stride

  template <cuda_kernels::ExposureRule Rule>
  static Status run(Context<Cuda>& ctx, RaggedView<const float> x, RaggedView<const float> mark, index_t stepped, float decay, RaggedView<float> out) {
    using namespace cuda_kernels;
    return cuda::launch(ctx, slot_exposure<Rule>, {blocks, out.heads}, exposure_threads, 0, x, mark, static_cast<std::uint32_t>(stepped), decay, out);
  }
};

}  // namespace kvcondense::prim
