#pragma once

#include <kvcondense/core/backend.hpp>
#include <kvcondense/core/policy.hpp>
#include <kvcondense/core/shape.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/evict/blocks/decayed_score.hpp>
#include <kvcondense/merge/blocks/nearest_kept.hpp>
#include <kvcondense/merge/blocks/thresholds.hpp>
#include <kvcondense/merge/blocks/votes.hpp>
#include <kvcondense/merge/pipeline.hpp>
#include <kvcondense/merge/policy.hpp>

namespace kvcondense::merge {

/// Folds what leaves into the most alike kept token so that the output of a predicted query does not change.
///
/// Idea     a slot that has votes counts as several; weights by votes and attention leave the value right, and a key that
///          is stretched a little leaves the weight right.
/// Source   KeepKV, arXiv:2504.09936, the paper's formulas; its code has no stretched keys and no fading mean.
/// Needs    the queries of every step; an eviction stage.
/// Shapes   decisions per KV head.
/// Cost     one product per slot, query head and step for the scores; one product per token that leaves and token that
///          stays. 12 bytes per slot: votes, score, the mark of its rows.
/// Numbers  score s: exp(logit), mean over the group, a mean over rows that fades to `decay` per row, corrected by the
///          number of rows in it; of a prompt the newest `window` rows count. Weights votes * s, in logarithms. The key is
///          multiplied by (log of summed weight - log of votes) / mean score; where that mean is below 0.05 or of the other
///          sign, or without `scaled`, votes of the slot become what does the same. With decay 0 and one query head per KV
///          head the newest query's output does not change, but for what is dropped below `least`.
/// Differs  votes as a logarithm in float32. Layer budgets are a budget's business (pyramid).
/// Errors   invalid_argument when decay is not in [0, 1), window < 1, least not in [-1, 1], or the RoPE does not fit;
///          incompatible without an eviction stage.
struct KeepKV {
  static constexpr Descriptor about{"keepkv", Stage::merge, "arXiv:2504.09936"};
  static constexpr Inputs needs = Input::queries;

  float decay = 0.9f;
  index_t window = 32;
  float least = 0.8f;
  bool scaled = true;
  Mass mass = Mass::log_count;
  Place place = Place::as_cached;
  RopeConfig rope{};

  constexpr auto pipeline() const {
    return Pipeline{evict::DecayedScore{decay, window}, NearestKept{}, Least{least}, Votes{scaled},
                    Target::keys_and_values, prim::RowSplit::none, mass, place, rope};
  }
  Status validate(const CacheShape& shape) const {
    if (!(decay >= 0.0f && decay < 1.0f) || window < 1 || !(least >= -1.0f && least <= 1.0f)) return Status::invalid_argument;
    return check_place(place, rope, shape);
  }
};

static_assert(check_merge_policy<KeepKV, Cpu>());

}  // namespace kvcondense::merge
