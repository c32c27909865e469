#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>

#include <kvcondense/backend/cuda/block.cuh>
#include <kvcondense/backend/cuda/context.cuh>
#include <kvcondense/backend/cuda/launch.cuh>
#include <kvcondense/backend/cuda/merge_order.cuh>
#include <kvcondense/core/status.hpp>
#include <kvcondense/core/view.hpp>
#include <kvcondense/core/workspace.hpp>
#include <kvcondense/prim/merge_weights.hpp>

namespace kvcondense::prim {
namespace cuda_kernels {

/// The order of a head's members lies in `key` until that is written, and `value` is the sort's other array. A block a head; a thread
/// a member, then a thread a target, which adds its members in slot order as the CPU does.
template <int Threads>
__global__ void __launch_bounds__(Threads, 1) merge_weights(WeightRequest request, MergeLinks links) {
  static_assert(Threads == order_threads);
  auto& sums = cuda::shared_as<OrderScratch>();
  const index_t h = blockIdx.x, n = links.slots(h);
  const std::int32_t* to = links.to.row(h);
  auto* order = reinterpret_cast<std::int32_t*>(links.key.row(h));
  float* value = links.value.row(h);
  const index_t m = order_members(to, n, order, reinterpret_cast<std::int32_t*>(value), sums);
  const MergeWeightOf of{request, links, h};
  for (index_t j = threadIdx.x; j < n; j += Threads) value[j] = links.folds(h, j) ? MergeWeightOf::finite(of.member(j)) : 0.0f;
  __syncthreads();
  const bool members = request.normaliser == MergeNormaliser::members;
  for (index_t t = threadIdx.x; t < n; t += Threads) {
    if (to[t] != t) continue;
    float own = of.target(t), sum = members ? 1.0f : own;
    const index_t first = first_member(to, order, m, t);
    for (index_t i = first; i < m && to[order[i]] == t; ++i) {
      sum += members ? 1.0f : value[order[i]];
      if (request.kernel == MergeKernel::middle) own += 0.5f;
    }
    if (request.normaliser != MergeNormaliser::none) {
      for (index_t i = first; i < m && to[order[i]] == t; ++i) value[order[i]] = sum != 0.0f ? MergeWeightOf::finite(value[order[i]] / sum) : 0.0f;
      own = sum != 0.0f ? MergeWeightOf::finite(own / sum) : 1.0f;
    }
    value[t] = own;
  }
  __syncthreads();
  for (index_t j = threadIdx.x; j < n; j += Threads) links.key.row(h)[j] = value[j];
}

/// The same way for votes.
template <int Threads>
__global__ void __launch_bounds__(Threads) merge_votes(RaggedView<const float> log_scores, bool scaled, RaggedView<float> log_sizes, MergeLinks links) {
  static_assert(Threads == order_threads);
  auto& sums = cuda::shared_as<OrderScratch>();
  const index_t h = blockIdx.x, n = links.slots(h);
  const std::int32_t* to = links.to.row(h);
  const float* score = log_scores.row(h);
  float *value = links.value.row(h), *size = log_sizes.row(h), *like = links.likeness.row(h);
  auto* order = reinterpret_cast<std::int32_t*>(links.key.row(h));
  const index_t m = order_members(to, n, order, reinterpret_cast<std::int32_t*>(value), sums);
  for (index_t j = threadIdx.x; j < n; j += Threads) value[j] = 0.0f;
  __syncthreads();
  const auto times = [](float weight, float x) { return weight > 0.0f ? weight * x : 0.0f; };
  for (index_t t = threadIdx.x; t < n; t += Threads) {
    if (to[t] != t) continue;
    const index_t first = first_member(to, order, m, t);
    const auto each = [&](auto&& use) {
      for (index_t i = first; i < m && to[order[i]] == t; ++i) use(order[i]);
    };
    float key = size[t] + score[t], others = 0.0f;
    each([&](index_t j) { key = key < size[j] + score[j] ? size[j] + score[j] : key; });
    const auto part = [&](index_t j) { return expf(size[j] + score[j] - key); };
    float sum = part(t);
    each([&](index_t j) { others += expf(size[j] - size[t]), sum += part(j); });
    key += logf(sum);
    float mean = times(part(t), score[t]);
    each([&](index_t j) { mean += times(part(j), score[j]); });
    each([&](index_t j) { value[j] = MergeWeightOf::finite(part(j)); });
    const bool alone = others == 0.0f || key - key != 0.0f;
    const float own = alone ? 1.0f : MergeWeightOf::finite(part(t)), all = size[t] + log1pf(others), want = key - all;
    const bool stretch = scaled && fabsf(mean) >= 0.05f && (mean > 0.0f) == (want > 0.0f);
    if (!alone) size[t] = stretch ? all : key - mean;
    like[t] = alone || !stretch ? 1.0f : want / mean;
    value[t] = own;
  }
  __syncthreads();
  for (index_t j = threadIdx.x; j < n; j += Threads) links.key.row(h)[j] = to[j] >= 0 ? value[j] * like[to[j]] : 0.0f;
}

/// Where the members of heads are sorted when key and value hold weights: two numbers per slot.
struct MemberRoom {
  std::int32_t *order, *other;
};

/// numbers[t] becomes what it and the parts of its members make: sizes as logarithms, or sums. With a fan a target's members are
/// those of the last `fan` targets up to itself. A block a head, a thread a target.
template <bool Logarithms, int Threads>
__global__ void __launch_bounds__(Threads, 1) merge_numbers(const SlotRange* targets, MergeLinks links, MemberRoom room, RaggedView<float> numbers) {
  static_assert(Threads == order_threads);
  auto& sums = cuda::shared_as<OrderScratch>();
  const index_t h = blockIdx.x, n = links.slots(h), begin = links.to.offset[h] - links.to.offset[0];
  const std::int32_t* to = links.to.row(h);
  std::int32_t* order = room.order + begin;
  float* x = numbers.row(h);
  const index_t m = order_members(to, n, order, room.other + begin, sums);
  const auto target = [&](index_t t) { return to[t] == t && (links.fan == 1 || targets[h].has(t)); };
  for (index_t t = threadIdx.x; t < n; t += Threads) {
    if (!target(t)) continue;
    const Members members = members_of(to, order, m, t, links.fan, target);
    float sum = x[t];
    for (index_t i = members.first; i < members.end; ++i) {
      const index_t j = order[i];
      const auto count = static_cast<float>(links.targets_of(h, j, targets));
      if constexpr (Logarithms) {
        const float part = x[j] - logf(count), top = sum < part ? part : sum;
        sum = top + logf(expf(sum - top) + expf(part - top));
      } else {
        sum += x[j] / count;
      }
    }
    x[t] = sum;
  }
}

/// Integers: the largest of a set needs no order. A block a head.
template <int Threads>
__global__ void __launch_bounds__(Threads) merge_places(bool newest, MergeLinks links, RaggedView<float> places, RaggedView<std::int32_t> turn) {
  const index_t h = blockIdx.x, n = links.slots(h);
  const std::int32_t* to = links.to.row(h);
  std::int32_t* by = turn.row(h);
  float* place = places.row(h);
  const auto position = [&](index_t j) { return detail::bit_cast<std::int32_t>(place[j]); };
  for (index_t j = threadIdx.x; j < n; j += Threads) by[j] = position(j);
  __syncthreads();
  for (index_t j = threadIdx.x; newest && j < n; j += Threads)
    if (links.folds(h, j)) atomicMax(&by[to[j]], by[j]);
  __syncthreads();
  for (index_t j = threadIdx.x; j < n; j += Threads)
    if (links.folds(h, j)) by[j] = by[to[j]] - position(j);
  __syncthreads();
  for (index_t j = threadIdx.x; j < n; j += Threads) {
    if (to[j] != j) continue;
    const std::int32_t at = by[j];
    by[j] = at - position(j);
    place[j] = detail::bit_cast<float>(at);
  }
}

}  // namespace cuda_kernels

/// Sums are made in slot order as on the CPU; exponentials and logarithms are the device's, and what slots have that leave for good
/// becomes 0. `add_sizes` and `add_scales` sort members in the workspace: `slots` is a bound of the host's on all heads' slots together.
template <>
struct MergeWeights<Cuda> {
  static Status run(Context<Cuda>& ctx, const WeightRequest& request, const MergeLinks& links) {
    using namespace cuda_kernels;
    return cuda::launch(ctx, merge_weights<order_threads>, {links.heads()}, order_threads, sizeof(OrderScratch), request, links);
  }
  static Status votes(Context<Cuda>& ctx, RaggedView<const float> log_scores, bool scaled, RaggedView<float> log_sizes, const MergeLinks& links) {
    using namespace cuda_kernels;
    return cuda::launch(ctx, merge_votes<order_threads>, {links.heads()}, order_threads, sizeof(OrderScratch), log_scores, scaled, log_sizes, links);
  }

  static std::size_t workspace_bytes(index_t slots) { return Scratch::align + 2 * Scratch::bytes_for<std::int32_t>(slots); }
  static Status add_sizes(Context<Cuda>& ctx, const SlotRange* targets, const MergeLinks& links, RaggedView<float> log_sizes, index_t slots) {
    return add<true>(ctx, targets, links, log_sizes, slots);
  }
  static Status add_scales(Context<Cuda>& ctx, const SlotRange* targets, const MergeLinks& links, RaggedView<float> scales, index_t slots) {
    return add<false>(ctx, targets, links, scales, slots);
  }

  static Status places(Context<Cuda>& ctx, bool newest, const MergeLinks& links, RaggedView<float> places, RaggedView<std::int32_t> turn) {
    using namespace cuda_kernels;
    return cuda::launch(ctx, merge_places<256>, {links.heads()}, 256, 0, newest, links, places, turn);
  }

 private:
  template <bool Logarithms>
  static Status add(Context<Cuda>& ctx, const SlotRange* targets, const MergeLinks& links, RaggedView<float> numbers, index_t slots) {
    using namespace cuda_kernels;
    if (links.fan < 1) return Status::invalid_argument;
    if (ctx.workspace().size() < workspace_bytes(slots)) return Status::workspace_too_small;
    Scratch scratch(ctx.workspace());
    MemberRoom room{};
    room.order = scratch.take<std::int32_t>(slots), room.other = scratch.take<std::int32_t>(slots);
    return cuda::launch(ctx, merge_numbers<Logarithms, order_threads>, {links.heads()}, order_threads, sizeof(OrderScratch), targets, links, room, numbers);
  }
};

}  // namespace kvcondense::prim
