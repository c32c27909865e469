#pragma once

#include <kvcondense/backend/cuda/context.cuh>
#include <kvcondense/backend/cuda/launch.cuh>
#include <kvcondense/core/shape.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/core/view.hpp>
#include <kvcondense/prim/query_moments.hpp>

namespace kvcondense::prim {
namespace cuda_kernels {

inline constexpr int moment_threads = 128, moment_rows = 8;

/// A running mean of one channel.
struct RunningMean {
  float mean;
  /// How far x is from the mean before it came.
  __device__ float add(float x, float part) {
    const float before = x - mean;
    mean = __fadd_rn(mean, __fmul_rn(before, part));
    return before;
  }
};

/// A block has some rows of a head's covariance, a thread columns of theirs; each follows the means it needs by itself, from
/// those before the call. Grid: blocks of rows, heads.
template <int Threads>
__global__ void __launch_bounds__(Threads) add_covariance(TensorView<const float, 3> queries, index_t counted, TensorView<const float, 2> mean,
                                                       TensorView<float, 3> covariance) {
  const index_t h = blockIdx.y, first = static_cast<index_t>(blockIdx.x) * moment_rows, tokens = queries.extent[1], dim = queries.extent[2];
  const auto from = [&](index_t d) { return RunningMean{counted == 0 ? 0.0f : mean(h, d)}; };
  for (index_t b = threadIdx.x; b < dim; b += Threads) {
    RunningMean column = from(b), row[moment_rows];
    float c[moment_rows];
#pragma unroll
    for (int k = 0; k < moment_rows; ++k) {
      const bool there = first + k < dim;
      row[k] = there ? from(first + k) : RunningMean{0.0f};
      c[k] = there && counted > 0 ? covariance(h, first + k, b) : 0.0f;
    }
    for (index_t t = 0; t < tokens; ++t) {
      const index_t n = counted + t;
      const float part = 1.0f / static_cast<float>(n + 1), before = column.add(queries(h, t, b), part);
#pragma unroll
      for (int k = 0; k < moment_rows; ++k) {
        const float x = first + k < dim ? queries(h, t, first + k) : 0.0f;
        row[k].add(x, part);
        const float change = __fadd_rn(__fmul_rn(x - row[k].mean, before), -c[k]);
        c[k] = n == 0 ? 0.0f : __fadd_rn(c[k], __fmul_rn(change, part));
      }
    }
#pragma unroll
    for (int k = 0; k < moment_rows; ++k)
      if (first + k < dim) covariance(h, first + k, b) = c[k];
  }
}

/// Grid: heads.
template <int Threads>
__global__ void __launch_bounds__(Threads) add_mean(TensorView<const float, 3> queries, index_t counted, TensorView<float, 2> mean) {
  const index_t h = blockIdx.x;
  for (index_t d = threadIdx.x; d < queries.extent[2]; d += Threads) {
    RunningMean m{counted == 0 ? 0.0f : mean(h, d)};
    for (index_t t = 0; t < queries.extent[1]; ++t) m.add(queries(h, t, d), 1.0f / static_cast<float>(counted + t + 1));
    mean(h, d) = m.mean;
  }
}

}  // namespace cuda_kernels

/// Bit for bit the CPU's.
template <>
struct QueryMoments<Cuda> {
  static Status add(Context<Cuda>& ctx, TensorView<const float, 3> queries, index_t counted, TensorView<float, 2> mean, TensorView<float, 3> covariance) {
    using namespace cuda_kernels;
    const index_t heads = queries.extent[0], dim = queries.extent[2];
    if (counted < 0) return Status::invalid_argument;
    if (mean.extent[0] != heads || mean.extent[1] != dim || covariance.extent[0] != heads || covariance.extent[1] != dim ||
        covariance.extent[2] != dim || dim > max_head_dim)
      return Status::shape_mismatch;
    if (queries.extent[1] == 0) return Status::ok;
    const Status s = cuda::launch(ctx, add_covariance<moment_threads>, {cuda::covering(dim, moment_rows), heads}, moment_threads, 0, queries, counted,
                                  TensorView<const float, 2>(mean), covariance);
    return s == Status::ok ? cuda::launch(ctx, add_mean<moment_threads>, {heads}, moment_threads, 0, queries, counted, mean) : s;
  }
};

}  // namespace kvcondense::prim
