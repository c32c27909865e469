#pragma once

#include <kvcondense/backend/cuda/context.cuh>
#include <kvcondense/backend/cuda/launch.cuh>
#include <kvcondense/core/status.hpp>
#include <kvcondense/core/view.hpp>
#include <kvcondense/prim/unit_fold.hpp>

namespace kvcondense::prim {
namespace cuda_kernels {

inline constexpr int unit_threads = 128;

enum class UnitRule { largest, smallest, sum };

/// A block a unit, threads its channels: rows follow one another as on the CPU. Grid: units.
template <UnitRule Rule>
__global__ void __launch_bounds__(unit_threads) fold_units(TensorView<const float, 3> rows, TensorView<float, 2> out) {
  const index_t u = blockIdx.x;
  for (index_t c = threadIdx.x; c < rows.extent[2]; c += unit_threads) {
    float all = out(u, c);
    for (index_t i = 0; i < rows.extent[1]; ++i) {
      const float x = rows(u, i, c);
      if constexpr (Rule == UnitRule::largest) all = x > all ? x : all;
      else if constexpr (Rule == UnitRule::smallest) all = x < all ? x : all;
      else all += x;
    }
    out(u, c) = all;
  }
}

}  // namespace cuda_kernels

/// Many units in a call: rows [units, rows, dim] into out [units, dim], each as the CPU folds one; bit for bit the CPU's.
/// `shape_mismatch` where the views disagree.
template <>
struct UnitFold<Cuda> {
  static Status largest(Context<Cuda>& ctx, TensorView<const float, 3> rows, TensorView<float, 2> out) {
    return run<cuda_kernels::UnitRule::largest>(ctx, rows, out);
  }
  static Status smallest(Context<Cuda>& ctx, TensorView<const float, 3> rows, TensorView<float, 2> out) {
    return run<cuda_kernels::UnitRule::smallest>(ctx, rows, out);
  }
  static Status sum(Context<Cuda>& ctx, TensorView<const float, 3> rows, TensorView<float, 2> out) {
    return run<cuda_kernels::UnitRule::sum>(ctx, rows, out);
  }

 private:
  template <cuda_kernels::UnitRule Rule>
  static Status run(Context<Cuda>& ctx, const TensorView<const float, 3>& rows, const TensorView<float, 2>& out) {
    using namespace cuda_kernels;
    if (out.extent[0] != rows.extent[0] || out.extent[1] != rows.extent[2]) return Status::shape_mismatch;
    return cuda::launch(ctx, fold_units<Rule>, {rows.extent[0]}, unit_threads, 0, rows, out);
  }
};

}  // namespace kvcondense::prim
