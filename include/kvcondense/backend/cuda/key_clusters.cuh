#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>

#include <kvcondense/backend/cuda/block.cuh>
#include <kvcondense/backend/cuda/context.cuh>
#include <kvcondense/backend/cuda/k_means.cuh>
#include <kvcondense/backend/cuda/launch.cuh>
#include <kvcondense/backend/cuda/slot_codes.cuh>
#include <kvcondense/backend/cuda/unit_lists.cuh>
#include <kvcondense/core/config.hpp>
#include <kvcondense/core/shape.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/core/view.hpp>
#include <kvcondense/core/workspace.hpp>
#include <kvcondense/prim/rank_bits.hpp>

// Clusters of keys that a prompt teaches, what queries think of them, and the threshold that their keys must pass.

namespace kvcondense::prim {
namespace cuda_kernels {

inline constexpr int cluster_threads = 256;
inline constexpr index_t most_coarse_clusters = 4096;

struct ClusterShared {
  cuda::BlockScratch<float, cluster_threads> tops;
  cuda::BlockScratch<double, cluster_threads> sums;
  float query[max_head_dim];
};
/// Behind ClusterShared where there are two levels.
struct CoarseShared {
  float score[most_coarse_clusters];
  std::uint32_t size[most_coarse_clusters];
};

/// out[c] = the score of one key of cluster c for the query in shared memory: softmax of scale * q . mean over clusters, each as often as it has keys.
/// Clusters that are not `open(c)` score 0. All threads of a block.
template <class Count, class Open>
__device__ inline void softmax_of_clusters(ClusterShared& shared, const float* means, index_t n, int dim, float scale, Count&& count, Open&& open, float* out) {
  for (index_t c = cuda::warp_of_block(); c < n; c += cluster_threads / cuda::warp_lanes) {
    float sum = 0.0f;
    for (int d = cuda::lane_of_warp(); d < dim; d += cuda::warp_lanes) sum += shared.query[d] * means[c * dim + d];
    sum = cuda::warp_sum(sum);
    if (cuda::lane_of_warp() == 0) out[c] = scale * sum;
  }
  __syncthreads();
  float top = -INFINITY;
  for (index_t c = threadIdx.x; c < n; c += cluster_threads)
    if (open(c) && count(c) > 0.0f) top = out[c] > top ? out[c] : top;
  top = cuda::block_reduce(top, [](float a, float b) { return a > b ? a : b; }, shared.tops);
  double total = 0.0;
  for (index_t c = threadIdx.x; c < n; c += cluster_threads) {
    out[c] = open(c) ? expf(out[c] - top) : 0.0f;
    total += static_cast<double>(count(c)) * static_cast<double>(out[c]);
  }
  total = cuda::block_sum<double, cluster_threads>(total, shared.sums);
  for (index_t c = threadIdx.x; total > 0.0 && c < n; c += cluster_threads) out[c] = static_cast<float>(static_cast<double>(out[c]) / total);
  __syncthreads();
}

/// How many keys the coarse clusters have. All threads of a block.
__device__ inline void count_coarse(const ClusterHead& found, std::uint32_t* size) {
  for (index_t m = threadIdx.x; m < found.coarse; m += cluster_threads) size[m] = 0;
  __syncthreads();
  for (index_t c = threadIdx.x; c < found.fine; c += cluster_threads)
    atomicAdd(&size[static_cast<index_t>(found.parent()[c])], static_cast<std::uint32_t>(found.counts()[c]));
  __syncthreads();
}

/// Scores of the fine clusters; 0 below a coarse one that stays under its threshold. A block a query row. `step`: numbers from a row to the next.
template <int Threads>
__global__ void __launch_bounds__(Threads, 4) make_cluster_tables(SlotCodebooks books, const float* queries, index_t per_head, int dim, float scale, index_t step,
                                                                  float* tables) {
  static_assert(Threads == cluster_threads);
  ClusterShared& shared = cuda::shared_as<ClusterShared>();
  auto& level = *reinterpret_cast<CoarseShared*>(cuda::dyn_smem() + sizeof(ClusterShared));
  const index_t row = blockIdx.x;
  const ClusterHead found(books.head(row / per_head), dim);
  if (found.fine == 0) return;  // nothing was learned: nothing competes
  for (int d = static_cast<int>(threadIdx.x); d < dim; d += Threads) shared.query[d] = queries[row * dim + d];
  __syncthreads();
  const auto count = [&](index_t c) { return found.counts()[c]; };
  float* const out = tables + row * step;
  if (found.coarse == 0) return softmax_of_clusters(shared, found.means(), found.fine, dim, scale, count, [](index_t) { return true; }, out);
  count_coarse(found, level.size);
  softmax_of_clusters(shared, found.coarse_means(), found.coarse, dim, scale, [&](index_t m) { return static_cast<float>(level.size[m]); }, [](index_t) { return true; },
                      level.score);
  const float least = found.threshold()[1];
  softmax_of_clusters(shared, found.means(), found.fine, dim, scale, count, [&](index_t c) { return level.score[static_cast<index_t>(found.parent()[c])] > least; }, out);
}

/// Scores of all clusters of one level for queries of the prompt: row i is query head `first_head` + i % group of token `token` + i / group. A block a row.
template <int Threads>
__global__ void __launch_bounds__(Threads, 4) score_prompt(ClusterHead found, bool coarse, TensorView<const float, 3> queries, index_t first_head, index_t group,
                                                           index_t token, float scale, float* out) {
  static_assert(Threads == cluster_threads);
  ClusterShared& shared = cuda::shared_as<ClusterShared>();
  auto& level = *reinterpret_cast<CoarseShared*>(cuda::dyn_smem() + sizeof(ClusterShared));
  const index_t row = blockIdx.x, n = coarse ? found.coarse : found.fine;
  const int dim = static_cast<int>(found.dim);
  for (int d = static_cast<int>(threadIdx.x); d < dim; d += Threads) shared.query[d] = queries(first_head + row % group, token + row / group, d);
  if (coarse) count_coarse(found, level.size);
  __syncthreads();
  const auto count = [&](index_t c) { return coarse ? static_cast<float>(level.size[c]) : found.counts()[c]; };
  softmax_of_clusters(shared, coarse ? found.coarse_means() : found.means(), n, dim, scale, count, [](index_t) { return true; }, out + row * n);
}

/// sum = (first ? 0 : sum) + rows, one behind the other; then / divide. A thread a cluster.
template <int Threads>
__global__ void __launch_bounds__(Threads) add_prompt(const float* rows, index_t count, index_t n, bool first, float divide, float* sum) {
  const index_t c = static_cast<index_t>(blockIdx.x) * Threads + threadIdx.x;
  if (c >= n) return;
  float all = first ? 0.0f : sum[c];
  for (index_t r = 0; r < count; ++r) all += rows[r * n + c];
  sum[c] = divide == 1.0f ? all : all / divide;
}

/// The quantile, linear between neighbours, of the scores of keys: those of clusters, each as often as it has keys. A key of a quantile is sought from its
/// top bit down. One block.
template <int Threads>
__global__ void __launch_bounds__(Threads) find_quantile(ClusterHead found, bool coarse, const float* scores, double rho, float* out) {
  static_assert(Threads == cluster_threads);
  ClusterShared& shared = cuda::shared_as<ClusterShared>();
  auto& level = *reinterpret_cast<CoarseShared*>(cuda::dyn_smem() + sizeof(ClusterShared));
  const index_t n = coarse ? found.coarse : found.fine;
  if (coarse) count_coarse(found, level.size);
  const auto keys_where = [&](auto&& holds) {
    double sum = 0.0;
    for (index_t c = threadIdx.x; c < n; c += Threads)
      if (holds(rank_bits(scores[c]))) sum += coarse ? static_cast<double>(level.size[c]) : static_cast<double>(found.counts()[c]);
    return cuda::block_sum<double, Threads>(sum, shared.sums);
  };
  const double total = keys_where([](std::uint32_t) { return true; });
  const auto at = [&](double i) {
    std::uint32_t bits = 0;
    for (int b = 31; b >= 0; --b) {
      const std::uint32_t more = bits | std::uint32_t{1} << b;
      if (keys_where([&](std::uint32_t x) { return x < more; }) <= i) bits = more;
    }
    float x = -INFINITY;
    for (index_t c = threadIdx.x; c < n; c += Threads)
      if (rank_bits(scores[c]) == bits) x = scores[c];
    return static_cast<double>(cuda::block_reduce(x, [](float a, float b) { return a > b ? a : b; }, shared.tops));
  };
  const double place = rho * (total - 1.0), low = floor(place), next = low + 1.0 < total - 1.0 ? low + 1.0 : total - 1.0;
  const double a = total < 1.0 ? 0.0 : at(low), b = total < 1.0 ? 0.0 : at(next);
  if (threadIdx.x == 0) *out = static_cast<float>(a + (place - low) * (b - a));
}

/// Means and counts of the rows that bear each label, rows in order; `weight`: each row counts so often. A block a cluster, a thread a channel.
template <int Threads>
__global__ void __launch_bounds__(Threads) mean_by_label(const float* rows, const std::int32_t* labels, const float* weight, index_t n, index_t dim, float* means,
                                                         float* counts) {
  static_assert(Threads == max_head_dim);
  const auto c = static_cast<std::int32_t>(blockIdx.x);
  const index_t d = threadIdx.x;
  float sum = 0.0f, members = 0.0f;
  each_member<Threads>(labels, n, c, cuda::shared_as<MembersShared>(), [&](index_t r) {
    const float w = weight == nullptr ? 1.0f : weight[r];
    members += w;
    if (d < dim) sum = __fadd_rn(sum, __fmul_rn(w, rows[r * dim + d]));
  });
  if (d < dim) means[c * dim + d] = members > 0.0f ? sum / members : sum;
  if (d == 0 && counts != nullptr) counts[c] = members;
}

/// Labels as numbers of a file, and the sizes that say how a head's clusters lie.
template <int Threads>
__global__ void __launch_bounds__(Threads) name_parents(ClusterHead found, const std::int32_t* labels) {
  const index_t c = static_cast<index_t>(blockIdx.x) * Threads + threadIdx.x;
  if (found.coarse > 0 && c < found.fine) found.parent()[c] = static_cast<float>(labels[c]);
  if (c == 0) found.at[0] = found.at[1] = 0.0f, found.at[2] = static_cast<float>(found.fine), found.at[3] = static_cast<float>(found.coarse);
}

/// Rows of length 1. A thread a row.
template <int Threads>
__global__ void __launch_bounds__(Threads) make_directions(const float* from, index_t n, int dim, float* to) {
  const index_t r = static_cast<index_t>(blockIdx.x) * Threads + threadIdx.x;
  if (r >= n) return;
  for (int c = 0; c < dim; ++c) to[r * dim + c] = from[r * dim + c];
  make_direction(to + r * dim, dim);
}

/// Candidates that score more than their head's threshold, in order. A block a row of selection.
template <int Threads>
__global__ void __launch_bounds__(Threads) list_above(RaggedView<const float> scores, SlotCodebooks books, index_t rows, float threshold,
                                                      RaggedView<std::int32_t> units, index_t* count) {
  auto& scratch = cuda::shared_as<cuda::BlockScratch<std::int32_t, Threads>>();
  const index_t row = blockIdx.x;
  const float least = threshold > 0.0f ? threshold : books.head(row / rows)[0];
  const float* const x = scores.row(row);
  const std::int32_t all = list_where(scores.length(row), [&](index_t u) { return x[u] > least; }, units.row(row), scratch);
  if (threadIdx.x == 0) count[row] = all;
}

}  // namespace cuda_kernels

/// How clusters of a head are found.
struct ClusterPlan {
  index_t fine = 1, coarse = 0;
  index_t iterations = 300;
  index_t observe = 100;  ///< newest keys that no cluster is made of, and newest queries that thresholds are made of
  double quantile = 0.7, coarse_quantile = 0.7;
};

/// Clusters of a head's keys by direction, with one or two levels; see retrieve::KeyClusters.
///
/// Cost     `fit`: k-means over the keys of a head, which it lists as floats; two or three launches for every cluster and every round.
/// Numbers  directions as KMeans finds them, means and counts bit for bit the CPU's where its compiler leaves products and sums apart; scores and
///          thresholds to 1e-6 of them.
struct KeyClusters {
  static constexpr index_t batch = 64;  ///< queries of the prompt that are scored together

  static std::size_t fit_bytes(const ClusterPlan& plan, index_t slots, index_t dim, index_t group) {
    const index_t rows = std::max(slots, plan.fine);
    return 2 * Scratch::align + Scratch::bytes_for<float>(rows * dim) + Scratch::bytes_for<std::int32_t>(rows) + Scratch::bytes_for<float>(plan.fine) +
           std::max(KMeans<Cuda>::fit_bytes(rows, {plan.fine, plan.iterations, 0}), Scratch::bytes_for<float>(std::max(batch, group) * plan.fine));
  }
  /// `slots` keys of a head and the prompt's queries into `row`, which is laid out as ClusterHead says.
  static Status fit(Context<Cuda>& ctx, const SlotRows<Cuda>& keys, index_t head, index_t slots, const ClusterPlan& plan, TensorView<const float, 3> queries,
                    float scale, float* row, Scratch scratch) {
    using namespace cuda_kernels;
    const index_t dim = keys.dim(), n = slots - plan.observe;
    const ClusterHead found(row, plan.fine, plan.coarse, dim);
    float* rows = scratch.take<float>(std::max(slots, plan.fine) * dim);
    auto* labels = scratch.take<std::int32_t>(std::max(slots, plan.fine));
    float* mean = scratch.take<float>(plan.fine);
    if (rows == nullptr || labels == nullptr || mean == nullptr) return Status::workspace_too_small;
    const auto k_means = [&](index_t count, index_t clusters, float* centroids) {
      Scratch own = scratch;
      Status s = KMeans<Cuda>::fit(ctx, {rows, count, dim}, dim, {clusters, plan.iterations, 0}, centroids, own);
      return s == Status::ok ? KMeans<Cuda>::nearest(ctx, {rows, count, dim}, dim, centroids, clusters, labels) : s;
    };
    const auto means = [&](const float* from, const float* weight, index_t count, index_t clusters, float* to, float* counts) {
      constexpr int threads = static_cast<int>(max_head_dim);
      return cuda::launch(ctx, mean_by_label<threads>, {clusters}, threads, sizeof(MembersShared), from, labels, weight, count, dim, to, counts);
    };
    Status s = SlotCodes::rows(ctx, keys, head, n, true, rows);
    if (s == Status::ok) s = k_means(n, plan.fine, found.directions());
    if (s == Status::ok) s = SlotCodes::rows(ctx, keys, head, n, false, rows);
    if (s == Status::ok) s = means(rows, nullptr, n, plan.fine, found.means(), found.counts());
    if (s == Status::ok && plan.coarse > 0) {
      s = cuda::launch(ctx, make_directions<128>, {cuda::covering(plan.fine, 128)}, 128, 0, found.means(), plan.fine, static_cast<int>(dim), rows);
      if (s == Status::ok) s = k_means(plan.fine, plan.coarse, found.coarse_directions());
      if (s == Status::ok) s = means(found.means(), found.counts(), plan.fine, plan.coarse, found.coarse_means(), nullptr);
    }
    if (s == Status::ok) s = cuda::launch(ctx, name_parents<128>, {cuda::covering(plan.fine, 128)}, 128, 0, found, labels);
    if (s == Status::ok) s = calibrate(ctx, found, false, head, keys.heads(), plan, queries, scale, mean, scratch);
    return s == Status::ok && plan.coarse > 0 ? calibrate(ctx, found, true, head, keys.heads(), plan, queries, scale, mean, scratch) : s;
  }
  /// tables [rows, step] of query rows [rows, dim]. What was learned says how many levels a head has, and may be a file's.
  static Status tables(Context<Cuda>& ctx, const SlotCodebooks& books, const float* queries, index_t rows, index_t per_head, index_t dim, float scale, index_t step,
                       float* out) {
    using namespace cuda_kernels;
    return cuda::launch(ctx, make_cluster_tables<cluster_threads>, {rows}, cluster_threads, shared(true), books, queries, per_head, static_cast<int>(dim), scale, step, out);
  }
  /// `threshold` above 0: of all heads.
  static Status above(Context<Cuda>& ctx, RaggedView<const float> scores, const SlotCodebooks& books, index_t heads, float threshold, RaggedView<std::int32_t> units,
                      index_t* count) {
    using namespace cuda_kernels;
    return cuda::launch(ctx, list_above<256>, {scores.heads}, 256, sizeof(cuda::BlockScratch<std::int32_t, 256>), scores, books, scores.heads / heads, threshold, units,
                        count);
  }

 private:
  static constexpr std::size_t shared(bool coarse) { return sizeof(cuda_kernels::ClusterShared) + (coarse ? sizeof(cuda_kernels::CoarseShared) : 0); }

  /// The threshold of one level, from the mean score of every cluster over the newest queries.
  static Status calibrate(Context<Cuda>& ctx, const ClusterHead& found, bool coarse, index_t head, index_t heads, const ClusterPlan& plan,
                          TensorView<const float, 3> queries, float scale, float* mean, Scratch scratch) {
    using namespace cuda_kernels;
    const index_t n = coarse ? found.coarse : found.fine, group = queries.extent[0] / heads, tokens = queries.extent[1];
    const index_t each = std::max<index_t>(1, batch / group), begin = std::max<index_t>(0, tokens - std::max<index_t>(plan.observe, 1));
    float* scores = scratch.take<float>(each * group * n);
    if (scores == nullptr) return Status::workspace_too_small;
    Status s = Status::ok;
    for (index_t t = begin; t < tokens && s == Status::ok; t += each) {
      const index_t rows = std::min(each, tokens - t) * group;
      const float divide = t + each >= tokens ? static_cast<float>((tokens - begin) * group) : 1.0f;
      s = cuda::launch(ctx, score_prompt<cluster_threads>, {rows}, cluster_threads, shared(coarse), found, coarse, queries, head * group, group, t, scale, scores);
      if (s == Status::ok) s = cuda::launch(ctx, add_prompt<128>, {cuda::covering(n, 128)}, 128, 0, scores, rows, n, t == begin, divide, mean);
    }
    if (s != Status::ok) return s;
    return cuda::launch(ctx, find_quantile<cluster_threads>, {1}, cluster_threads, shared(coarse), found, coarse, mean, coarse ? plan.coarse_quantile : plan.quantile,
                        found.threshold() + (coarse ? 1 : 0));
  }
};

}  // namespace kvcondense::prim
