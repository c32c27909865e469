#pragma once

#include <kvcondense/core/backend.hpp>
#include <kvcondense/core/policy.hpp>
#include <kvcondense/core/shape.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/merge/blocks/nearest_kept.hpp>
#include <kvcondense/merge/blocks/thresholds.hpp>
#include <kvcondense/merge/blocks/weights.hpp>
#include <kvcondense/merge/pipeline.hpp>
#include <kvcondense/merge/policy.hpp>

namespace kvcondense::merge {

/// Folds a token that leaves into the kept one whose key is most like its own, if it is more alike than such
/// tokens have been lately.
///
/// Idea     what an eviction drops is partly said by what it keeps; a threshold that moves with the stream tells
///          tokens worth recalling from the others.
/// Source   D2O, arXiv:2406.13035, and its code; `exponential` are the weights of the paper's text.
/// Needs    an eviction stage, whatever chooses: h2o as in the paper, `variance` around it for its layer budgets.
/// Shapes   decisions per KV head; two numbers of state per KV head.
/// Cost     one product per token that leaves and token that stays.
/// Numbers  threshold = keep * threshold + add * mean of the best cosines of a step, before it is used. Sum
///          (k + sum of cosine * k_i) / (1 + n), keys and values with the same weights, as in the code: it shrinks
///          where cosines are below 1; exponential: weights e and exp(cosine), divided by their sum.
/// Differs  decides per KV head, not per query head; the threshold starts anew with every sequence. Coded slots are no
///          targets. Taking tokens back (truncate) leaves what they folded into as it is.
/// Errors   invalid_argument when keep or add is not in [0, 1], or the RoPE does not fit; incompatible, see `check_place`.
struct D2O {
  static constexpr Descriptor about{"d2o", Stage::merge, "arXiv:2406.13035"};
  static constexpr Inputs needs{};

  float keep = 0.5f;
  float add = 0.5f;
  bool exponential = false;
  Mass mass = Mass::none;
  Place place = Place::as_cached;
  RopeConfig rope{};

  constexpr auto pipeline() const {
    return Pipeline{evict::NoScore{}, NearestKept{}, MovingMean{keep, add},
                    exponential ? Weighted{MergeKernel::exponential, MergeNormaliser::sum}
                                : Weighted{MergeKernel::likeness, MergeNormaliser::members},
                    Target::keys_and_values, prim::RowSplit::none, mass, place, rope};
  }
  Status validate(const CacheShape& shape) const {
    const auto part = [](float x) { return x >= 0.0f && x <= 1.0f; };
    return part(keep) && part(add) ? check_place(place, rope, shape) : Status::invalid_argument;
  }
};

static_assert(check_merge_policy<D2O, Cpu>());

}  // namespace kvcondense::merge
