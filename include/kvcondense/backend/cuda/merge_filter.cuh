#pragma once

#include <cmath>
#include <cstdint>

#include <kvcondense/backend/cuda/block.cuh>
#include <kvcondense/backend/cuda/context.cuh>
#include <kvcondense/backend/cuda/launch.cuh>
#include <kvcondense/backend/cuda/row_cutoff.cuh>
#include <kvcondense/core/random.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/core/view.hpp>
#include <kvcondense/prim/merge_sets.hpp>

namespace kvcondense::prim {
namespace cuda_kernels {

inline constexpr int filter_threads = winner_threads;

/// What likeness a head's slots have to have.
struct LikenessRule {
  float least = 0.0f;
  bool mean = false;             ///< the mean instead, or what it has moved to
  float keep = 0.0f, add = 0.0f;
  TensorView<float, 2> state{};  ///< none: the mean itself
};

struct FilterShared {
  cuda::BlockScratch<std::uint32_t, filter_threads> counts;
  cuda::BlockScratch<double, filter_threads> sums;
  float least;
};

/// A block a head.
template <int Threads>
__global__ void __launch_bounds__(Threads, 4) filter_likeness(LikenessRule rule, MergeLinks links) {
  static_assert(Threads == filter_threads);
  FilterShared& shared = cuda::shared_as<FilterShared>();
  const index_t h = blockIdx.x, n = links.slots(h);
  const float* like = links.likeness.row(h);
  float least = rule.least;
  if (rule.mean) {
    constexpr float slack = 1e-6f;
    std::uint32_t count = 0;
    double sum = 0.0;
    for (index_t j = threadIdx.x; j < n; j += Threads)
      if (links.folds(h, j)) sum += static_cast<double>(like[j]), ++count;
    count = cuda::block_sum<std::uint32_t, Threads>(count, shared.counts);
    sum = cuda::block_sum<double, Threads>(sum, shared.sums);
    if (count == 0) return;  // the same in all threads
    if (threadIdx.x == 0) {
      const auto mean = static_cast<float>(sum / static_cast<double>(count));
      shared.least = mean;
      if (rule.state.data != nullptr) {
        float& moving = rule.state(h, 0);
        shared.least = moving = rule.state(h, 1) > 0.0f ? __fadd_rn(__fmul_rn(rule.keep, moving), __fmul_rn(rule.add, mean)) : mean;
        rule.state(h, 1) = 1.0f;
      }
    }
    __syncthreads();
    least = shared.least - slack;
  }
  for (index_t j = threadIdx.x; j < n; j += Threads)
    if (links.folds(h, j) && !(like[j] >= least)) links.to.row(h)[j] = dropped;
}

/// The ceil(part * number) most like of those that fold, or, with scores, of the unlinked ones the floor(part * slots that stay) with the best
/// scores; the others leave for good. A block a head.
template <int Threads>
__global__ void __launch_bounds__(Threads, 4) filter_best(RaggedView<const float> scores, double part, MergeLinks links) {
  static_assert(Threads == winner_threads);
  WinnerShared& shared = cuda::shared_as<WinnerShared>();
  const index_t h = blockIdx.x, n = links.slots(h);
  std::int32_t* to = links.to.row(h);
  const bool by_score = scores.data != nullptr;
  const auto in = [&](index_t j) { return by_score ? to[j] == unlinked : links.folds(h, j); };
  std::uint32_t count = 0, stay = 0;
  for (index_t j = threadIdx.x; j < n; j += Threads) {
    count += static_cast<std::uint32_t>(in(j));
    stay += static_cast<std::uint32_t>(to[j] == j);
  }
  count = cuda::block_sum<std::uint32_t, Threads>(count, shared.sums);
  stay = cuda::block_sum<std::uint32_t, Threads>(stay, shared.sums);
  const double wanted = by_score ? floor(part * static_cast<double>(stay) + 1e-6) : ceil(part * static_cast<double>(count) - 1e-9);
  const index_t most = wanted < static_cast<double>(count) ? static_cast<index_t>(wanted) : count;
  block_best(
      0, n, by_score ? scores.row(h) : links.likeness.row(h), most, in,
      [&](index_t j, bool chosen) {
        if (in(j) && !chosen) to[j] = dropped;
      },
      shared);
}

/// A block a head. Who passes is found before anybody leaves: with a fan a slot looks at what follows its target.
template <int Threads>
__global__ void __launch_bounds__(Threads) filter_chance(RaggedView<const float> scores, const SlotRange* targets, RaggedView<const std::int32_t> tokens,
                                                         std::uint64_t seed, MergeLinks links) {
  const index_t h = blockIdx.x, n = links.slots(h);
  const float* score = scores.row(h);
  float* passes = links.key.row(h);
  std::int32_t* to = links.to.row(h);
  for (index_t j = threadIdx.x; j < n; j += Threads) {
    if (!links.folds(h, j)) continue;
    float mean = 0.0f;
    index_t count = 0;
    for (index_t t = to[j]; t < n && count < links.fan; ++t)
      if (links.fan == 1 || (to[t] == t && targets[h].has(t))) mean += score[t], ++count;
    mean /= static_cast<float>(count);
    const bool certain = mean == 0.0f && score[j] > 0.0f;
    const float p = certain ? 1.0f : score[j] / mean;  // 0 / 0 passes nothing
    const float u = random_uniform(random_bits(seed, static_cast<std::uint64_t>(h)), static_cast<std::uint64_t>(tokens.row(h)[j]));
    passes[j] = u < p ? 1.0f : 0.0f;
  }
  __syncthreads();
  for (index_t j = threadIdx.x; j < n; j += Threads)
    if (links.folds(h, j) && passes[j] == 0.0f) to[j] = dropped;
}

}  // namespace cuda_kernels

/// Exactly the CPU's but for means, which are summed in double: a slot whose likeness is as near to the mean as rounding may go the other
/// way. `links.key` is scratch for `chance`.
template <>
struct MergeFilter<Cuda> {
  static Status least(Context<Cuda>& ctx, float likeness, const MergeLinks& links) { return by_likeness(ctx, {.least = likeness}, links); }
  static Status mean(Context<Cuda>& ctx, const MergeLinks& links) { return by_likeness(ctx, {.mean = true}, links); }
  static Status moving_mean(Context<Cuda>& ctx, float keep, float add, TensorView<float, 2> state, const MergeLinks& links) {
    return by_likeness(ctx, {.mean = true, .keep = keep, .add = add, .state = state}, links);
  }
  static Status best_part(Context<Cuda>& ctx, double part, const MergeLinks& links) { return best(ctx, {}, part, links); }
  static Status best_scores(Context<Cuda>& ctx, RaggedView<const float> scores, double per_target, const MergeLinks& links) {
    return best(ctx, scores, per_target, links);
  }
  static Status chance(Context<Cuda>& ctx, RaggedView<const float> scores, const SlotRange* targets, RaggedView<const std::int32_t> tokens,
                       std::uint64_t seed, const MergeLinks& links) {
    using namespace cuda_kernels;
    return cuda::launch(ctx, filter_chance<filter_threads>, {links.heads()}, filter_threads, 0, scores, targets, tokens, seed, links);
  }

 private:
  static Status by_likeness(Context<Cuda>& ctx, const cuda_kernels::LikenessRule& rule, const MergeLinks& links) {
    using namespace cuda_kernels;
    return cuda::launch(ctx, filter_likeness<filter_threads>, {links.heads()}, filter_threads, sizeof(FilterShared), rule, links);
  }
  static Status best(Context<Cuda>& ctx, RaggedView<const float> scores, double part, const MergeLinks& links) {
    using namespace cuda_kernels;
    return cuda::launch(ctx, filter_best<filter_threads>, {links.heads()}, filter_threads, sizeof(WinnerShared), scores, part, links);
  }
};

}  // namespace kvcondense::prim
