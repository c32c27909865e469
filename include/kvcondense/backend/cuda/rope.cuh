#pragma once

#include <cmath>

#include <kvcondense/backend/cuda/context.cuh>
#include <kvcondense/backend/cuda/launch.cuh>
#include <kvcondense/core/shape.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/prim/rope.hpp>

namespace kvcondense::prim {
namespace cuda_kernels {

inline constexpr int rope_threads = 128;
static_assert(rope_threads >= max_head_dim / 2);

struct CosSin {
  float cosine, sine;
};

/// The rotation of a pair at a position: the angle in double, the results in float.
__device__ inline CosSin cos_sin(const RopeAngles& angles, index_t pair, index_t position) {
  const double angle = static_cast<double>(position) * static_cast<double>(angles.frequency[pair]);
  return {static_cast<float>(cos(angle)), static_cast<float>(sin(angle))};
}

/// A thread a pair of components: the angle once, then all heads that share the position. Without a list of positions every row has `by`.
/// Grid: tokens, heads of positions.
template <int Threads>
__global__ void __launch_bounds__(Threads) rope_rows(RopeAngles angles, TensorView<const float, 3> rows,
                                                     TensorView<const index_t, 2> positions, index_t by, TensorView<float, 3> out, RopeTurn turn) {
  const index_t token = blockIdx.x, place = blockIdx.y, pair = threadIdx.x, dim = rows.extent[2];
  const index_t first = positions.extent[0] == 1 ? 0 : place, end = positions.extent[0] == 1 ? rows.extent[0] : place + 1;
  const bool halves = angles.pairing == RopePairing::half_split;
  float cosine = 1.0f, sine = 0.0f;
  if (pair < angles.pairs) {
    const CosSin turned = cos_sin(angles, pair, positions.data == nullptr ? by : positions(place, token));
    cosine = __fmul_rn(turned.cosine, turn.scale);
    sine = __fmul_rn(turned.sine, turn.back ? -turn.scale : turn.scale);
  }
  for (index_t h = first; h < end; ++h) {
    const float* in = &rows(h, token, 0);
    float* to = &out(h, token, 0);
    if (pair < angles.pairs) {
      const index_t near = halves ? pair : 2 * pair, far = halves ? pair + angles.pairs : 2 * pair + 1;
      const float x = in[near], y = in[far];
      to[near] = __fadd_rn(__fmul_rn(x, cosine), -__fmul_rn(y, sine));
      to[far] = __fadd_rn(__fmul_rn(y, cosine), __fmul_rn(x, sine));
    }
    for (index_t c = 2 * angles.pairs + pair; in != to && c < dim; c += Threads) to[c] = in[c];
  }
}

}  // namespace cuda_kernels

/// As on the CPU; the device's own sine and cosine in double, products rounded one by one.
template <>
struct Rope<Cuda> {
  static Status rotate(Context<Cuda>& ctx, const RopeAngles& angles, TensorView<const float, 3> rows,
                       TensorView<const index_t, 2> positions, TensorView<float, 3> out, RopeTurn turn = {}) {
    return start(ctx, angles, rows, positions, 0, out, turn);
  }
  /// `by` goes to the device as an argument of the kernel.
  static Status shift(Context<Cuda>& ctx, const RopeAngles& angles, TensorView<const float, 3> rows, index_t by, TensorView<float, 3> out,
                      RopeTurn turn = {}) {
    return start(ctx, angles, rows, {nullptr, {1, rows.extent[1]}, {0, 0}}, by, out, turn);
  }

 private:
  static Status start(Context<Cuda>& ctx, const RopeAngles& angles, TensorView<const float, 3> rows, TensorView<const index_t, 2> positions,
                      index_t by, TensorView<float, 3> out, RopeTurn turn) {
    using namespace cuda_kernels;
    const index_t heads = rows.extent[0], tokens = rows.extent[1], dim = rows.extent[2];
    const bool same = out.extent[0] == heads && out.extent[1] == tokens && out.extent[2] == dim;
    const bool placed = positions.extent[1] == tokens && (positions.extent[0] == heads || positions.extent[0] == 1);
    if (!same || !placed || dim < 2 * angles.pairs || (dim > 1 && (rows.stride[2] != 1 || out.stride[2] != 1)))
      return Status::shape_mismatch;
    if (heads == 0) return Status::ok;
    return cuda::launch(ctx, rope_rows<rope_threads>, {tokens, positions.extent[0]}, rope_threads, 0, angles, rows, positions, by, out, turn);
  }
};

}  // namespace kvcondense::prim
