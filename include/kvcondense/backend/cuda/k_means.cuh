#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>

#include <kvcondense/backend/cuda/block.cuh>
#include <kvcondense/backend/cuda/context.cuh>
#include <kvcondense/backend/cuda/launch.cuh>
#include <kvcondense/backend/cuda/row_tile.cuh>
#include <kvcondense/core/random.hpp>
#include <kvcondense/core/shape.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/core/workspace.hpp>
#include <kvcondense/prim/k_means.hpp>

namespace kvcondense::prim {
namespace cuda_kernels {

/// Squares are rounded and added one by one, channel after channel: distances are the CPU's bit for bit, and so is which one is least.
__device__ inline float add_square(float sum, float a, float b) { return __fadd_rn(sum, __fmul_rn(a - b, a - b)); }

/// A round that is none: the one before has moved no centroid.
__device__ inline bool settled_before(const int* moved, index_t round) { return round > 0 && moved[round - 1] == 0; }

/// The centroid nearest to this thread's row of `tile_rows` that lie in shared memory, `stride` numbers from one to the next: centroids pass by a tile at
/// a time through `others`. All threads of the block, behind a barrier; lanes of a row agree.
__device__ inline std::int32_t nearest_of_tile(const float* rows, int stride, float* others, index_t dim, const float* centroids, index_t clusters) {
  const int row = static_cast<int>(threadIdx.x) / tile_lanes, lane = static_cast<int>(threadIdx.x) % tile_lanes, step = tile_stride(dim);
  float best = INFINITY;
  std::int32_t label = 0;
  for (index_t at = 0; at < clusters; at += tile_others) {
    __syncthreads();
    for (int i = static_cast<int>(threadIdx.x); i < tile_others * step; i += tile_threads) {
      const index_t r = at + i / step, c = i % step;
      others[i] = r < clusters && c < dim ? centroids[r * dim + c] : 0.0f;
    }
    __syncthreads();
    for (int e = 0; e < tile_each; ++e) {
      const int other = lane + e * tile_lanes;
      float sum = 0.0f;
      for (int c = 0; c < static_cast<int>(dim); ++c) sum = add_square(sum, rows[row * stride + c], others[other * step + c]);
      if (at + other < clusters && sum < best) best = sum, label = static_cast<std::int32_t>(at + other);
    }
  }
  for (int d = tile_lanes / 2; d > 0; d /= 2) {
    const float distance = __shfl_xor_sync(cuda::full_warp, best, d);
    const std::int32_t other = __shfl_xor_sync(cuda::full_warp, label, d);
    if (distance < best || (distance == best && other < label)) best = distance, label = other;
  }
  return label;
}

/// A block a tile of rows. Grid: tiles.
template <int Threads>
__global__ void __launch_bounds__(Threads, 2) nearest_centroids(RowBlock<const float> rows, index_t dim, const float* centroids, index_t clusters,
                                                                std::int32_t* labels, const int* moved, index_t round) {
  static_assert(Threads == tile_threads);
  if (settled_before(moved, round)) return;  // the whole block
  auto* block = reinterpret_cast<float*>(cuda::dyn_smem());
  const int stride = tile_stride(dim), row = static_cast<int>(threadIdx.x) / tile_lanes;
  const index_t first = static_cast<index_t>(blockIdx.x) * tile_rows;
  for (int i = static_cast<int>(threadIdx.x); i < tile_rows * stride; i += Threads) {
    const index_t r = first + i / stride, c = i % stride;
    block[i] = r < rows.rows && c < dim ? rows.data[r * rows.step + c] : 0.0f;
  }
  const std::int32_t label = nearest_of_tile(block, stride, block + tile_rows * stride, dim, centroids, clusters);
  if (threadIdx.x % tile_lanes == 0 && first + row < rows.rows) labels[first + row] = label;
}

/// What k-means keeps in its workspace.
struct MeansRoom {
  float* far;            ///< per row, the squared distance from the centroids chosen so far
  std::int32_t* labels;  ///< per row
  index_t* chosen;       ///< the row that is the next centroid
  int* moved;            ///< per round, whether a centroid has moved
};

/// Grid: blocks that cover the rows and the rounds.
template <int Threads>
__global__ void __launch_bounds__(Threads) begin_means(index_t count, KMeansPlan plan, MeansRoom room) {
  const index_t i = static_cast<index_t>(blockIdx.x) * Threads + threadIdx.x;
  if (i < count) room.far[i] = INFINITY;
  if (i < plan.iterations) room.moved[i] = 0;
  if (i == 0) *room.chosen = static_cast<index_t>(plan.seed % static_cast<std::uint64_t>(count));
}

inline constexpr int measured_channels = 32;  ///< of a row that pass through shared memory together

/// Centroid c is the row that was chosen, by the first block; all measure their rows' distances from it, a thread a row, some channels of
/// all of them at a time. With no more rows than clusters the rows follow one another instead. Grid: blocks of rows.
template <int Threads>
__global__ void __launch_bounds__(Threads) measure_rows(RowBlock<const float> rows, index_t dim, index_t clusters, index_t c, float* centroids, MeansRoom room) {
  constexpr int channels = measured_channels, stride = channels + 1;
  auto* tile = reinterpret_cast<float*>(cuda::dyn_smem());
  const bool few = rows.rows <= clusters;
  const float* from = rows.data + (few ? c % rows.rows : *room.chosen) * rows.step;
  for (index_t d = threadIdx.x; blockIdx.x == 0 && d < dim; d += Threads) centroids[c * dim + d] = from[d];
  if (few || c + 1 == clusters) return;  // the same in all threads
  const index_t first = static_cast<index_t>(blockIdx.x) * Threads, mine = first + threadIdx.x;
  float sum = 0.0f;
  for (index_t at = 0; at < dim; at += channels) {
    __syncthreads();
    for (int i = static_cast<int>(threadIdx.x); i < Threads * channels; i += Threads) {
      const index_t r = first + i / channels, d = at + i % channels;
      tile[i / channels * stride + i % channels] = r < rows.rows && d < dim ? rows.data[r * rows.step + d] : 0.0f;
    }
    __syncthreads();
    for (int d = 0; d < channels && at + d < dim; ++d) sum = add_square(sum, tile[static_cast<int>(threadIdx.x) * stride + d], from[at + d]);
  }
  if (mine < rows.rows && sum < room.far[mine]) room.far[mine] = sum;
}

struct ChoiceShared {
  cuda::BlockScratch<double, 512> sums;
  cuda::BlockScratch<index_t, 512> places;
};

/// The next centroid: a row drawn with a chance proportional to its squared distance. One block.
template <int Threads>
__global__ void __launch_bounds__(Threads) choose_row(index_t count, std::uint64_t seed, index_t c, MeansRoom room) {
  static_assert(Threads == 512);
  ChoiceShared& shared = cuda::shared_as<ChoiceShared>();
  constexpr int each = 8;
  double all = 0.0;
  index_t last = -1;
  for (index_t i = threadIdx.x; i < count; i += Threads) {
    all += static_cast<double>(room.far[i]);
    if (room.far[i] > 0.0f) last = i;
  }
  all = cuda::block_sum<double, Threads>(all, shared.sums);
  last = cuda::block_reduce<index_t, Threads>(last, [](index_t a, index_t b) { return a > b ? a : b; }, shared.places);
  double left = all * static_cast<double>(random_uniform(seed, static_cast<std::uint64_t>(c)));
  index_t found = count;
  for (index_t from = 0; from < count && found == count; from += Threads * each) {
    const index_t mine = from + static_cast<index_t>(threadIdx.x) * each, end = mine + each < count ? mine + each : count;
    double sum = 0.0;
    for (index_t i = mine; i < end; ++i) sum += static_cast<double>(room.far[i]);
    const auto before = cuda::block_running<double, Threads>(sum, shared.sums);
    double own = left - before.before;
    index_t first = count;
    for (index_t i = mine; i < end && first == count; ++i) {
      own -= static_cast<double>(room.far[i]);
      if (own < 0.0 && room.far[i] > 0.0f) first = i;
    }
    found = cuda::block_reduce<index_t, Threads>(first, [](index_t a, index_t b) { return a < b ? a : b; }, shared.places);
    left -= before.all;
  }
  if (threadIdx.x == 0) *room.chosen = found < count ? found : last < 0 ? 0 : last;
}

struct MembersShared {
  cuda::BlockScratch<std::uint32_t, static_cast<int>(max_head_dim)> sums;
  std::int32_t list[max_head_dim];
};

/// use(row) in every thread for every row below `n` that bears the label, in order; returns how many. All threads of a block.
template <int Threads, class Use>
__device__ inline index_t each_member(const std::int32_t* labels, index_t n, std::int32_t label, MembersShared& shared, Use&& use) {
  static_assert(Threads == max_head_dim);
  index_t members = 0;
  for (index_t from = 0; from < n; from += Threads) {
    const index_t i = from + threadIdx.x;
    const bool here = i < n && labels[i] == label;
    const auto place = cuda::block_running<std::uint32_t, Threads>(static_cast<std::uint32_t>(here), shared.sums);
    if (here) shared.list[place.before] = static_cast<std::int32_t>(i);
    __syncthreads();
    for (std::uint32_t k = 0; k < place.all; ++k) use(static_cast<index_t>(shared.list[k]));
    members += place.all;
  }
  return members;
}

/// A block a cluster, a thread a channel: its rows in order, as on the CPU. Grid: clusters.
template <int Threads>
__global__ void __launch_bounds__(Threads) move_centroids(RowBlock<const float> rows, index_t dim, index_t round, float* centroids, MeansRoom room) {
  if (settled_before(room.moved, round)) return;  // the whole block
  const auto c = static_cast<std::int32_t>(blockIdx.x);
  const index_t d = threadIdx.x;
  double sum = 0.0;
  const index_t members = each_member<Threads>(room.labels, rows.rows, c, cuda::shared_as<MembersShared>(), [&](index_t r) {
    if (d < dim) sum += static_cast<double>(rows.data[r * rows.step + d]);
  });
  if (members == 0 || d >= dim) return;
  const auto mean = static_cast<float>(sum / static_cast<double>(members));
  float& at = centroids[c * dim + d];
  if (mean != at) atomicOr(&room.moved[round], 1);
  at = mean;
}

}  // namespace cuda_kernels

/// `fit` takes its rows from device memory and enqueues every round; those behind the one in which no centroid moves return at once. Distances,
/// labels and means are the CPU's bit for bit; sums for a draw are made in another order, so that a draw as near to a row's bound as rounding
/// may take its neighbour. Rows of at most 256 numbers: `shape_mismatch`; no row: `invalid_argument`.
template <>
struct KMeans<Cuda> {
  static Status nearest(Context<Cuda>& ctx, RowBlock<const float> rows, index_t dim, const float* centroids, index_t clusters, std::int32_t* labels) {
    if (dim < 1 || dim > max_head_dim) return Status::shape_mismatch;
    return label(ctx, rows, dim, centroids, clusters, labels, nullptr, 0);
  }

  static std::size_t fit_bytes(index_t count, const KMeansPlan& plan) {
    return Scratch::bytes_for<float>(count) + Scratch::bytes_for<std::int32_t>(count) + Scratch::bytes_for<index_t>(1) +
           Scratch::bytes_for<int>(plan.iterations);
  }

  static Status fit(Context<Cuda>& ctx, RowBlock<const float> rows, index_t dim, const KMeansPlan& plan, float* centroids, Scratch& scratch) {
    using namespace cuda_kernels;
    const index_t count = rows.rows;
    if (dim < 1 || dim > max_head_dim) return Status::shape_mismatch;
    if (count < 1 || count > INT32_MAX || plan.clusters < 1 || plan.iterations < 0) return Status::invalid_argument;
    if (scratch.left() < fit_bytes(count, plan)) return Status::workspace_too_small;
    MeansRoom room{};
    room.far = scratch.take<float>(count), room.labels = scratch.take<std::int32_t>(count);
    room.chosen = scratch.take<index_t>(1), room.moved = scratch.take<int>(plan.iterations);
    constexpr int threads = 256;
    const index_t most = count > plan.iterations ? count : plan.iterations;
    Status s = cuda::launch(ctx, begin_means<threads>, {cuda::covering(most, threads)}, threads, 0, count, plan, room);
    const bool few = count <= plan.clusters;
    for (index_t c = 0; s == Status::ok && c < plan.clusters; ++c) {
      const bool last = few || c + 1 == plan.clusters;
      s = cuda::launch(ctx, measure_rows<threads>, {last ? 1 : cuda::covering(count, threads)}, threads,
                       threads * (measured_channels + 1) * sizeof(float), rows, dim, plan.clusters, c, centroids, room);
      if (s == Status::ok && !last) s = cuda::launch(ctx, choose_row<512>, {1}, 512, sizeof(ChoiceShared), count, plan.seed, c, room);
    }
    for (index_t round = 0; s == Status::ok && !few && round < plan.iterations; ++round) {
      s = label(ctx, rows, dim, centroids, plan.clusters, room.labels, room.moved, round);
      if (s == Status::ok)
        s = cuda::launch(ctx, move_centroids<static_cast<int>(max_head_dim)>, {plan.clusters}, static_cast<int>(max_head_dim), sizeof(MembersShared), rows, dim,
                         round, centroids, room);
    }
    return s;
  }

 private:
  static Status label(Context<Cuda>& ctx, const RowBlock<const float>& rows, index_t dim, const float* centroids, index_t clusters, std::int32_t* labels,
                      const int* moved, index_t round) {
    using namespace cuda_kernels;
    return cuda::launch(ctx, nearest_centroids<tile_threads>, {cuda::covering(rows.rows, tile_rows)}, tile_threads, tile_bytes(tile_rows + tile_others, dim),
                        rows, dim, centroids, clusters, labels, moved, round);
  }
};

}  // namespace kvcondense::prim
