#pragma once

#include <cmath>
#include <cstdint>

#include <kvcondense/backend/cuda/block.cuh>
#include <kvcondense/backend/cuda/context.cuh>
#include <kvcondense/backend/cuda/launch.cuh>
#include <kvcondense/core/shape.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/core/view.hpp>
#include <kvcondense/core/workspace.hpp>

// Columns of a basis that a prompt's queries are largest in, and how many slots come near a row's best score.

namespace kvcondense::prim {
namespace cuda_kernels {

/// The magnitude of a head's queries in every column, a thread a column: queries in order, products and sums in the CPU's. Grid: query heads of a KV head.
template <int Threads>
__global__ void __launch_bounds__(Threads) sum_magnitudes(TensorView<const float, 3> queries, index_t first_head, const float* basis, int columns, double* out) {
  static_assert(Threads == max_head_dim);
  auto* const query = reinterpret_cast<float*>(cuda::dyn_smem());
  const int c = static_cast<int>(threadIdx.x), dim = static_cast<int>(queries.extent[2]);
  double sum = 0.0;
  for (index_t t = 0; t < queries.extent[1]; ++t) {
    __syncthreads();  // the query before has been read
    if (c < dim) query[c] = queries(first_head + blockIdx.x, t, c);
    __syncthreads();
    float x = 0.0f;
    for (int d = 0; c < columns && d < dim; ++d) x = __fadd_rn(x, __fmul_rn(query[d], basis[d * columns + c]));
    sum += static_cast<double>(fabsf(x));
  }
  if (c < columns) out[blockIdx.x * static_cast<index_t>(columns) + c] = sum;
}

/// The `taken` columns with the largest sums over the query heads of a group, each of which weighs alike; of equal ones the first. One block.
template <int Threads>
__global__ void __launch_bounds__(Threads) take_columns(const double* magnitudes, index_t group, int columns, int taken, float* out) {
  static_assert(Threads == max_head_dim);
  auto* const weight = reinterpret_cast<double*>(cuda::dyn_smem());
  const int c = static_cast<int>(threadIdx.x);
  double mine = 0.0;
  for (index_t g = 0; g < group; ++g) {
    double sum = 0.0;  // the same in all threads
    for (int i = 0; i < columns; ++i) sum += magnitudes[g * columns + i];
    if (c < columns && sum > 0.0) mine += magnitudes[g * columns + c] / sum;
  }
  if (!(mine >= 0.0)) mine = -1.0;  // a total order: every rank is taken once
  if (c < columns) weight[c] = mine;
  __syncthreads();
  int rank = 0;
  for (int o = 0; c < columns && o < columns; ++o) rank += weight[o] > mine || (weight[o] == mine && o < c);
  if (c < columns && rank < taken) out[rank] = static_cast<float>(c);
}

/// How many of a row's scores lie less than `margin` below its best. A block a row.
template <int Threads>
__global__ void __launch_bounds__(Threads) count_near(RaggedView<const float> scores, float margin, index_t* count) {
  auto& tops = cuda::shared_as<cuda::BlockScratch<float, Threads>>();
  auto& sums = *reinterpret_cast<cuda::BlockScratch<std::uint32_t, Threads>*>(cuda::dyn_smem() + sizeof tops);
  const index_t row = blockIdx.x, n = scores.length(row);
  const float* const x = scores.row(row);
  float top = -INFINITY;
  for (index_t i = threadIdx.x; i < n; i += Threads) top = x[i] > top ? x[i] : top;
  top = cuda::block_reduce(top, [](float a, float b) { return a > b ? a : b; }, tops);
  std::uint32_t near = 0;
  for (index_t i = threadIdx.x; i < n; i += Threads) near += static_cast<std::uint32_t>(x[i] > top - margin);
  near = cuda::block_sum<std::uint32_t, Threads>(near, sums);
  if (threadIdx.x == 0) count[row] = near;
}

/// count[r] = the mean of all, rounded down, at most most[r]. One block.
template <int Threads>
__global__ void __launch_bounds__(Threads) share_mean(index_t rows, const index_t* most, index_t* count) {
  auto& sums = cuda::shared_as<cuda::BlockScratch<index_t, Threads>>();
  index_t sum = 0;
  for (index_t r = threadIdx.x; r < rows; r += Threads) sum += count[r];
  const index_t mean = cuda::block_sum<index_t, Threads>(sum, sums) / rows;
  for (index_t r = threadIdx.x; r < rows; r += Threads) count[r] = mean < most[r] ? mean : most[r];
}

}  // namespace cuda_kernels

/// Columns of a head's basis by the queries of a prompt, and numbers of slots by scores.
///
/// Needs    all pointers are the device's; `most` may lie in steering memory. Heads of at most 256 channels.
/// Cost     `choose` reads the basis once for every query of the prompt, in a block a query head.
/// Numbers  bit for bit the CPU's where its compiler leaves products and sums apart (-ffp-contract=off).
struct PartialColumns {
  static std::size_t choose_bytes(index_t group, index_t columns) { return Scratch::align + Scratch::bytes_for<double>(group * columns); }
  /// out[0, taken): columns of KV head `head`, whose basis is [head_dim, columns].
  static Status choose(Context<Cuda>& ctx, TensorView<const float, 3> queries, index_t head, index_t group, const float* basis, index_t columns, index_t taken,
                       float* out, Scratch scratch) {
    using namespace cuda_kernels;
    constexpr int threads = static_cast<int>(max_head_dim);
    double* magnitudes = scratch.take<double>(group * columns);
    if (magnitudes == nullptr) return Status::workspace_too_small;
    const Status s = cuda::launch(ctx, sum_magnitudes<threads>, {group}, threads, max_head_dim * sizeof(float), queries, head * group, basis, static_cast<int>(columns), magnitudes);
    if (s != Status::ok) return s;
    return cuda::launch(ctx, take_columns<threads>, {1}, threads, max_head_dim * sizeof(double), magnitudes, group, static_cast<int>(columns), static_cast<int>(taken), out);
  }
  /// count[r] = the mean over rows of how many scores lie less than `margin` below their row's best, at most most[r].
  static Status within(Context<Cuda>& ctx, RaggedView<const float> scores, float margin, const index_t* most, index_t* count) {
    using namespace cuda_kernels;
    constexpr int threads = 256;
    const std::size_t shared = sizeof(cuda::BlockScratch<float, threads>) + sizeof(cuda::BlockScratch<std::uint32_t, threads>);
    const Status s = cuda::launch(ctx, count_near<threads>, {scores.heads}, threads, shared, scores, margin, count);
    if (s != Status::ok) return s;
    return cuda::launch(ctx, share_mean<threads>, {1}, threads, sizeof(cuda::BlockScratch<index_t, threads>), scores.heads, most, count);
  }
};

}  // namespace kvcondense::prim
