#pragma once

#include <kvcondense/core/backend.hpp>
#include <kvcondense/core/policy.hpp>
#include <kvcondense/core/shape.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/evict/blocks/attention_mass.hpp>
#include <kvcondense/evict/blocks/sum_exposure.hpp>
#include <kvcondense/merge/blocks/nearest_kept.hpp>
#include <kvcondense/merge/blocks/thresholds.hpp>
#include <kvcondense/merge/blocks/weights.hpp>
#include <kvcondense/merge/pipeline.hpp>
#include <kvcondense/merge/policy.hpp>

namespace kvcondense::merge {

/// Drops the key of a token that leaves and folds its value into that of the next kept one, by the attention they drew.
///
/// Idea     keys of neighbours are much alike, values are not: the next token's key stands for both.
/// Source   WeightedKV, arXiv:2503.01330, of which the rule is partly not published.
/// Needs    attention of every query row; an eviction stage, in the paper one that drops least mean attention.
/// Shapes   decisions per KV head.
/// Cost     one value written per token that leaves; 8 bytes per slot for sums of attention and rows.
/// Numbers  (a v + b w) / (a + b) with a and b the mean attention of rows that saw the tokens; where both are 0 the kept
///          value stays. The kept token's own mean is not changed.
/// Differs  coded slots are no targets: the value goes on to the next one that is not.
/// Errors   incompatible beside a policy that measures the newest rows only, or without an eviction stage.
struct WeightedKV {
  static constexpr Descriptor about{"weightedkv", Stage::merge, "arXiv:2503.01330"};
  static constexpr Inputs needs = Input::attention;

  Mass mass = Mass::none;

  constexpr auto pipeline() const {
    using namespace evict;
    return Pipeline{AttentionMass<PerHead, SumExposure>{all_rows(), Reduce::sum, {Reduce::mean}, {}},
                    NextKept{1},
                    EveryLink{},
                    Weighted{MergeKernel::score, MergeNormaliser::sum},
                    Target::values, prim::RowSplit::none, mass, Place::as_cached, RopeConfig{}};
  }
  Status validate(const CacheShape&) const { return Status::ok; }
};

static_assert(check_merge_policy<WeightedKV, Cpu>());

}  // namespace kvcondense::merge
