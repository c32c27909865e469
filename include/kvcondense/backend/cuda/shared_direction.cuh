#pragma once

#include <cmath>
#include <cstdint>
#include <numbers>

#include <kvcondense/backend/cuda/block.cuh>
#include <kvcondense/backend/cuda/context.cuh>
#include <kvcondense/backend/cuda/launch.cuh>
#include <kvcondense/backend/cuda/row_cutoff.cuh>
#include <kvcondense/core/status.hpp>
#include <kvcondense/prim/page_codec.hpp>
#include <kvcondense/prim/shared_direction.hpp>

namespace kvcondense::prim {
namespace cuda_kernels {

inline constexpr int direction_block = 128, direction_rows = direction_block / cuda::warp_lanes;

/// Two rows' lengths and the angle between them, in every lane of a warp. Number d of a row is row[d].
struct RowAngle {
  double a, b, angle;
};
template <class A, class B>
__device__ inline RowAngle angle_of(const A& a, const B& b, index_t n) {
  const auto sum = [&](auto&& term) {
    double s = 0.0;
    for (index_t d = cuda::lane_of_warp(); d < n; d += cuda::warp_lanes) s += term(static_cast<double>(a[d]), static_cast<double>(b[d]));
    return cuda::warp_sum(s);
  };
  const double la = sqrt(sum([](double x, double) { return x * x; })), lb = sqrt(sum([](double, double y) { return y * y; }));
  if (la == 0.0 || lb == 0.0) return {la, lb, 0.0};
  const double less = sum([&](double x, double y) { return (x / la - y / lb) * (x / la - y / lb); });
  const double more = sum([&](double x, double y) { return (x / la + y / lb) * (x / la + y / lb); });
  return {la, lb, 2.0 * atan2(sqrt(less), sqrt(more))};
}

/// What of two rows makes the direction between them: (of_a * a + of_b * b) * norm.
struct DirectionMix {
  double of_a, of_b, norm;
};
template <class A, class B>
__device__ inline DirectionMix mix_of(double weight, const RowAngle& found, const A& a, const B& b, index_t n) {
  double of_a = 1.0 - weight, of_b = weight;
  if (found.a == 0.0 || found.b == 0.0) of_a = found.a > 0.0 ? 1.0 : 0.0, of_b = found.b > 0.0 ? 1.0 : 0.0;
  else if (found.angle > std::numbers::pi - least_angle) of_a = 1.0, of_b = 0.0;
  else if (found.angle >= least_angle) of_a = sin(of_a * found.angle), of_b = sin(of_b * found.angle);
  if (found.a > 0.0) of_a /= found.a;
  if (found.b > 0.0) of_b /= found.b;
  double sum = 0.0;
  for (index_t d = cuda::lane_of_warp(); d < n; d += cuda::warp_lanes) {
    const double x = of_a * static_cast<double>(a[d]) + of_b * static_cast<double>(b[d]);
    sum += x * x;
  }
  sum = cuda::warp_sum(sum);
  return {of_a, of_b, sum > 0.0 ? 1.0 / sqrt(sum) : 0.0};
}

/// A warp a row. Grid: blocks of rows.
template <int Threads>
__global__ void __launch_bounds__(Threads) row_angles(RowBlock<const float> a, RowBlock<const float> b, index_t n, float* distance, double* lengths) {
  const index_t i = static_cast<index_t>(blockIdx.x) * direction_rows + cuda::warp_of_block();
  if (i >= a.rows) return;  // the whole warp
  const RowAngle found = angle_of(a.data + i * a.step, b.data + i * b.step, n);
  if (cuda::lane_of_warp() != 0) return;
  lengths[2 * i] = found.a, lengths[2 * i + 1] = found.b;
  distance[i] = static_cast<float>(found.angle / std::numbers::pi);
}

struct ApartShared {
  WinnerShared winners;
  cuda::BlockScratch<float, winner_threads> ends;
};

/// One block.
template <int Threads>
__global__ void __launch_bounds__(Threads) rows_apart(DirectionRule rule, const float* distance, index_t n, std::uint8_t* kept, index_t* count) {
  static_assert(Threads == winner_threads);
  ApartShared& shared = cuda::shared_as<ApartShared>();
  std::uint32_t all = 0;
  const auto keep = [&](index_t i, bool apart) {
    kept[i] = apart || distance[i] > opposite_distance ? 1 : 0;
    all += kept[i];
  };
  if (rule.apart == Apart::fraction) {
    const auto wanted = static_cast<index_t>(ceil(static_cast<double>(rule.part) * static_cast<double>(n) - 1e-5));
    block_best(0, n, distance, wanted < 0 ? 0 : wanted < n ? wanted : n, [](index_t) { return true; }, keep, shared.winners);
  } else {
    float least = 1.0f, most = 0.0f;
    for (index_t i = threadIdx.x; i < n; i += Threads)
      if (distance[i] <= 1.0f) least = distance[i] < least ? distance[i] : least, most = distance[i] > most ? distance[i] : most;
    least = cuda::block_reduce(least, [](float x, float y) { return x < y ? x : y; }, shared.ends);
    most = cuda::block_reduce(most, [](float x, float y) { return x > y ? x : y; }, shared.ends);
    const float limit = __fadd_rn(most, -__fmul_rn(rule.part, most - least));
    for (index_t i = threadIdx.x; i < n; i += Threads) keep(i, distance[i] > limit);
  }
  all = cuda::block_sum<std::uint32_t, Threads>(all, shared.winners.sums);
  if (threadIdx.x == 0) *count = all;
}

/// A warp a row. Grid: blocks of rows.
template <int Threads>
__global__ void __launch_bounds__(Threads) directions_between(double weight, RowBlock<const float> a, RowBlock<const float> b, index_t n, RowBlock<float> out) {
  const index_t i = static_cast<index_t>(blockIdx.x) * direction_rows + cuda::warp_of_block();
  if (i >= a.rows) return;  // the whole warp
  const float *x = a.data + i * a.step, *y = b.data + i * b.step;
  const DirectionMix mix = mix_of(weight, angle_of(x, y, n), x, y, n);
  for (index_t d = cuda::lane_of_warp(); d < n; d += cuda::warp_lanes)
    out.data[i * out.step + d] = static_cast<float>((mix.of_a * static_cast<double>(x[d]) + mix.of_b * static_cast<double>(y[d])) * mix.norm);
}

}  // namespace cuda_kernels

/// Many rows in a call: `distance` [rows] and `lengths` [rows, 2] of rows a and b, `between` into rows of `out`, which may be a or b. `apart`
/// writes its count to the device. Sums in another order than the CPU's: a row whose distance is as near to the limit as rounding may go the
/// other way.
template <>
struct SharedDirection<Cuda> {
  static Status distance(Context<Cuda>& ctx, RowBlock<const float> a, RowBlock<const float> b, index_t n, float* distance, double* lengths) {
    using namespace cuda_kernels;
    if (a.rows != b.rows) return Status::shape_mismatch;
    return cuda::launch(ctx, row_angles<direction_block>, {cuda::covering(a.rows, direction_rows)}, direction_block, 0, a, b, n, distance, lengths);
  }
  static Status apart(Context<Cuda>& ctx, const DirectionRule& rule, const float* distance, index_t n, std::uint8_t* kept, index_t* count) {
    using namespace cuda_kernels;
    return cuda::launch(ctx, rows_apart<winner_threads>, {1}, winner_threads, sizeof(ApartShared), rule, distance, n, kept, count);
  }
  static Status between(Context<Cuda>& ctx, float weight, RowBlock<const float> a, RowBlock<const float> b, index_t n, RowBlock<float> out) {
    using namespace cuda_kernels;
    if (a.rows != b.rows || a.rows != out.rows) return Status::shape_mismatch;
    return cuda::launch(ctx, directions_between<direction_block>, {cuda::covering(a.rows, direction_rows)}, direction_block, 0, static_cast<double>(weight), a, b,
                        n, out);
  }
};

}  // namespace kvcondense::prim
