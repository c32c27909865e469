#pragma once

#include <cmath>

#include <kvcondense/backend/cuda/block.cuh>
#include <kvcondense/backend/cuda/context.cuh>
#include <kvcondense/backend/cuda/launch.cuh>
#include <kvcondense/backend/cuda/row_cutoff.cuh>
#include <kvcondense/core/status.hpp>
#include <kvcondense/core/view.hpp>
#include <kvcondense/prim/head_policy.hpp>

namespace kvcondense::prim {
namespace cuda_kernels {

/// use(slot, first policy that keeps it, wherever it lies) for every slot of a head. All threads of a block.
template <class Use>
__device__ inline void each_policy(const HeadPolicySets& sets, const float* scores, index_t h, Use&& use, WinnerShared& shared) {
  const index_t n = sets.classes.length(h), k = sets.frequent < 0 ? 0 : sets.frequent < n ? sets.frequent : n;
  const float* kind = sets.classes.row(h);
  block_best(
      0, n, scores, k, [](index_t) { return true; },
      [&](index_t j, bool frequent) {
        use(j, kind[j] == static_cast<float>(TokenClass::special)       ? HeadPolicy::special
               : kind[j] == static_cast<float>(TokenClass::punctuation) ? HeadPolicy::punctuation
               : frequent                                               ? HeadPolicy::frequent
                                                                        : HeadPolicy::full);
      },
      shared);
}

struct PolicyShared {
  WinnerShared winners;
  cuda::BlockScratch<double, winner_threads> sums;
};

/// A block a head.
template <int Threads>
__global__ void __launch_bounds__(Threads) choose_policies(HeadPolicySets sets, RaggedView<const float> sums, RaggedView<const float> near,
                                                           RaggedView<const float> scores, double recovery, RaggedView<float> policy) {
  static_assert(Threads == winner_threads);
  PolicyShared& shared = cuda::shared_as<PolicyShared>();
  const index_t h = blockIdx.x, n = policy.length(h);
  double special = 0.0, punctuation = 0.0, frequent = 0.0, rest = 0.0, close = 0.0;
  each_policy(
      sets, scores.row(h), h,
      [&](index_t j, HeadPolicy least) {
        const auto mass = static_cast<double>(sums.row(h)[j]);
        if (least == HeadPolicy::special) special += mass;
        else if (least == HeadPolicy::punctuation) punctuation += mass;
        else if (least == HeadPolicy::frequent) frequent += mass;
        else rest += mass, close += static_cast<double>(near.row(h)[j]);
      },
      shared.winners);
  const auto all_of = [&](double x) { return cuda::block_sum<double, Threads>(x, shared.sums); };
  special = all_of(special), punctuation = all_of(punctuation), frequent = all_of(frequent), rest = all_of(rest), close = all_of(close);
  const double wanted = recovery * (special + punctuation + frequent + rest);
  HeadPolicy choice = HeadPolicy::full;  // of sums that are NaN too
  if (double kept = special; kept >= wanted) choice = HeadPolicy::special;
  else if ((kept += punctuation) >= wanted) choice = HeadPolicy::punctuation;
  else if ((kept += frequent) >= wanted) choice = HeadPolicy::frequent;
  else if ((kept += close) >= wanted) choice = HeadPolicy::local;
  for (index_t j = threadIdx.x; j < n; j += Threads) policy.row(h)[j] = static_cast<float>(choice);
}

/// A block a head.
template <int Threads>
__global__ void __launch_bounds__(Threads) mark_policies(HeadPolicySets sets, RaggedView<const float> policy, RaggedView<float> scores) {
  static_assert(Threads == winner_threads);
  WinnerShared& shared = cuda::shared_as<WinnerShared>();
  const index_t h = blockIdx.x, n = scores.length(h);
  if (n == 0) return;  // the whole block
  const auto own = static_cast<HeadPolicy>(static_cast<int>(policy.row(h)[0]));
  each_policy(
      sets, scores.row(h), h,
      [&](index_t j, HeadPolicy least) {
        if (least > HeadPolicy::local && j >= n - sets.local) least = HeadPolicy::local;
        if (own == HeadPolicy::undecided || least <= own) scores.row(h)[j] = INFINITY;
      },
      shared);
}

}  // namespace cuda_kernels

/// A block a head. Sums are made in another order than the CPU's: a part as near to `recovery` as rounding may go the other way.
template <>
struct HeadPolicies<Cuda> {
  static Status choose(Context<Cuda>& ctx, const HeadPolicySets& sets, RaggedView<const float> sums, RaggedView<const float> near,
                       RaggedView<const float> scores, double recovery, RaggedView<float> policy) {
    using namespace cuda_kernels;
    return cuda::launch(ctx, choose_policies<winner_threads>, {policy.heads}, winner_threads, sizeof(PolicyShared), sets, sums, near, scores, recovery, policy);
  }
  static Status mark(Context<Cuda>& ctx, const HeadPolicySets& sets, RaggedView<const float> policy, RaggedView<float> scores) {
    using namespace cuda_kernels;
    return cuda::launch(ctx, mark_policies<winner_threads>, {scores.heads}, winner_threads, sizeof(WinnerShared), sets, policy, scores);
  }
};

}  // namespace kvcondense::prim
