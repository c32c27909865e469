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

/// Folds the value of what leaves into the kept token whose key is most like its own, by likeness and length.
///
/// Idea     the kept key answers for the one that leaves where both point the same way; a value that is short beside the
///          kept one moves it little.
/// Source   MergingPress of NVIDIA/kvpress; no paper.
/// Needs    an eviction stage.
/// Shapes   decisions per KV head; no state.
/// Cost     one product per token that leaves and token that stays, and one read of the values for their lengths.
/// Numbers  weight w = max(cosine, 0) * |v| / (|v| + |kept v| + 1e-6); (kept v + sum of w v) / (1 + sum of w).
/// Differs  `part` is a number of tokens, not a quantile: the ceil(part * n) most alike of a head fold.
/// Errors   invalid_argument when least is not in [-1, 1] or part not in [0, 1]; incompatible without an eviction stage.
struct ValueMerge {
  static constexpr Descriptor about{"value_merge", Stage::merge, "NVIDIA/kvpress"};
  static constexpr Inputs needs{};

  float least = 0.0f;
  double part = 1.0;
  Mass mass = Mass::none;

  constexpr auto pipeline() const {
    return Pipeline{evict::NoScore{}, NearestKept{}, Least{least, part}, LengthShare{},
                    Target::values, prim::RowSplit::none, mass, Place::as_cached, RopeConfig{}};
  }
  Status validate(const CacheShape&) const {
    return least >= -1.0f && least <= 1.0f && part >= 0.0 && part <= 1.0 ? Status::ok : Status::invalid_argument;
  }
};

static_assert(check_merge_policy<ValueMerge, Cpu>());

}  // namespace kvcondense::merge
