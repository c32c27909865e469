#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>

#include <kvcondense/backend/cpu/context.hpp>
#include <kvcondense/core/backend.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/core/view.hpp>
#include <kvcondense/prim/merge_weights.hpp>

namespace kvcondense::prim {

template <>
struct MergeWeights<Cpu> {
  static Status run(Context<Cpu>& ctx, const WeightRequest& request, const MergeLinks& links) {
    each(ctx, links, [&](index_t h) {
      const index_t n = links.slots(h);
      const std::int32_t* to = links.to.row(h);
      float *weight = links.value.row(h), *sum = links.key.row(h);
      const MergeWeightOf of{request, links, h};
      for (index_t j = 0; j < n; ++j)
        if (to[j] == j) weight[j] = of.target(j), sum[j] = request.normaliser == MergeNormaliser::members ? 1.0f : weight[j];
      for (index_t j = 0; j < n; ++j) {
        if (!links.folds(h, j)) continue;
        weight[j] = finite(of.member(j));
        sum[to[j]] += request.normaliser == MergeNormaliser::members ? 1.0f : weight[j];
        if (request.kernel == MergeKernel::middle) weight[to[j]] += 0.5f;  // its half of the middle
      }
      if (request.normaliser != MergeNormaliser::none) {
        for (index_t j = 0; j < n; ++j)
          if (links.folds(h, j)) weight[j] = sum[to[j]] != 0.0f ? finite(weight[j] / sum[to[j]]) : 0.0f;
        for (index_t j = 0; j < n; ++j)
          if (to[j] == j) weight[j] = sum[j] != 0.0f ? finite(weight[j] / sum[j]) : 1.0f;
      }
      std::copy_n(weight, n, sum);
    });
    return Status::ok;
  }

  static Status votes(Context<Cpu>& ctx, RaggedView<const float> log_scores, bool scaled, RaggedView<float> log_sizes,
                      const MergeLinks& links) {
    each(ctx, links, [&](index_t h) {
      const index_t n = links.slots(h);
      const std::int32_t* to = links.to.row(h);
      const float* score = log_scores.row(h);
      float *key = links.key.row(h), *value = links.value.row(h), *size = log_sizes.row(h), *like = links.likeness.row(h);
      // Of targets: key is the largest exponent of the sum, then its logarithm; value the sizes of what folds in, as
      // parts of the target's; likeness the mean score.
      for (index_t j = 0; j < n; ++j)
        if (to[j] == j) key[j] = size[j] + score[j];
      for (index_t j = 0; j < n; ++j)
        if (links.folds(h, j)) key[to[j]] = std::max(key[to[j]], size[j] + score[j]);
      const auto part = [&](index_t j, index_t t) { return std::exp(size[j] + score[j] - key[t]); };
      const auto share = [&](index_t j, index_t t) { return std::exp(size[j] - size[t]); };
      for (index_t j = 0; j < n; ++j)
        if (to[j] == j) value[j] = 0.0f, like[j] = part(j, j);
      for (index_t j = 0; j < n; ++j)
        if (links.folds(h, j)) value[to[j]] += share(j, to[j]), like[to[j]] += part(j, to[j]);
      for (index_t j = 0; j < n; ++j)
        if (to[j] == j) key[j] += std::log(like[j]), like[j] = times(std::exp(size[j] + score[j] - key[j]), score[j]);
      for (index_t j = 0; j < n; ++j)
        if (links.folds(h, j)) like[to[j]] += times(std::exp(size[j] + score[j] - key[to[j]]), score[j]);
      for (index_t j = 0; j < n; ++j)
        if (links.folds(h, j)) value[j] = finite(std::exp(size[j] + score[j] - key[to[j]]));
      for (index_t j = 0; j < n; ++j) {
        if (to[j] != j) continue;
        const bool alone = value[j] == 0.0f || !std::isfinite(key[j]);
        const float own = alone ? 1.0f : finite(std::exp(size[j] + score[j] - key[j]));
        const float sum = size[j] + std::log1p(value[j]);  // of sizes
        const float want = key[j] - sum, mean = like[j];
        const bool stretch = scaled && std::fabs(mean) >= 0.05f && (mean > 0.0f) == (want > 0.0f);
        if (!alone) size[j] = stretch ? sum : key[j] - mean;
        like[j] = alone || !stretch ? 1.0f : want / mean;
        value[j] = own, key[j] = own * like[j];
      }
      for (index_t j = 0; j < n; ++j)
        if (links.folds(h, j)) key[j] = value[j] * like[to[j]];
    });
    return Status::ok;
  }

  static Status add_sizes(Context<Cpu>& ctx, const SlotRange* targets, const MergeLinks& links, RaggedView<float> log_sizes, index_t = 0) {
    each(ctx, links, [&](index_t h) {
      float* size = log_sizes.row(h);
      for (index_t j = 0; j < links.slots(h); ++j) {
        if (!links.folds(h, j)) continue;
        const float part = size[j] - std::log(static_cast<float>(links.targets_of(h, j, targets)));
        links.for_targets(h, j, targets, [&](index_t t) {
          const float top = std::max(size[t], part);
          size[t] = top + std::log(std::exp(size[t] - top) + std::exp(part - top));
        });
      }
    });
    return Status::ok;
  }

  static Status add_scales(Context<Cpu>& ctx, const SlotRange* targets, const MergeLinks& links, RaggedView<float> scales, index_t = 0) {
    each(ctx, links, [&](index_t h) {
      float* scale = scales.row(h);
      for (index_t j = 0; j < links.slots(h); ++j) {
        if (!links.folds(h, j)) continue;
        const float part = scale[j] / static_cast<float>(links.targets_of(h, j, targets));
        links.for_targets(h, j, targets, [&](index_t t) { scale[t] += part; });
      }
    });
    return Status::ok;
  }

  static Status places(Context<Cpu>& ctx, bool newest, const MergeLinks& links, RaggedView<float> places,
                       RaggedView<std::int32_t> turn) {
    each(ctx, links, [&](index_t h) {
      const index_t n = links.slots(h);
      const std::int32_t* to = links.to.row(h);
      std::int32_t* by = turn.row(h);
      const auto position = [&](index_t j) { return std::bit_cast<std::int32_t>(places.row(h)[j]); };
      for (index_t j = 0; j < n; ++j) by[j] = position(j);
      for (index_t j = 0; j < n && newest; ++j)
        if (links.folds(h, j)) by[to[j]] = std::max(by[to[j]], by[j]);
      for (index_t j = 0; j < n; ++j)  // of targets by is still a position
        if (links.folds(h, j)) by[j] = by[to[j]] - position(j);
      for (index_t j = 0; j < n; ++j) {
        if (to[j] != j) continue;
        const std::int32_t place = by[j];
        by[j] = place - position(j);
        places.row(h)[j] = std::bit_cast<float>(place);
      }
    });
    return Status::ok;
  }

 private:
  template <class F>
  static void each(Context<Cpu>& ctx, const MergeLinks& links, F&& f) {
    ctx.parallel(links.heads(), [&](index_t h, index_t) { f(h); });
  }

  /// What weighs nothing adds nothing, be it -inf.
  static float times(float weight, float x) { return weight > 0.0f ? weight * x : 0.0f; }
  static float finite(float x) { return std::isfinite(x) ? x : 0.0f; }
};

}  // namespace kvcondense::prim
