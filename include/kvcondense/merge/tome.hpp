#pragma once

#include <kvcondense/core/backend.hpp>
#include <kvcondense/core/policy.hpp>
#include <kvcondense/core/shape.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/merge/blocks/sets.hpp>
#include <kvcondense/merge/blocks/thresholds.hpp>
#include <kvcondense/merge/blocks/weights.hpp>
#include <kvcondense/merge/pipeline.hpp>
#include <kvcondense/merge/policy.hpp>

namespace kvcondense::merge {

/// Folds the most alike pairs of slots until a head is within its budget.
///
/// Idea     a bipartite matching finds many pairs at once: every second slot looks for its like among the others.
/// Source   Token Merging, arXiv:2210.09461, made for vision; over a KV cache as CentroidKV and others use it.
/// Needs    keys only; no eviction stage. With one, only what stays is looked at.
/// Shapes   decisions per KV head; no state.
/// Cost     slots^2 / 4 products of rows in a step that is over budget.
/// Numbers  cosine of keys; r = slots - tokens edges with the largest one fold, the smaller slot first where equal.
///          Means weigh each slot by the tokens it stands for, and it may fold again later.
/// Differs  keys per KV head, not their mean over heads. Slots stay in order. A step folds at most half of what it
///          looks at, so that the budget is met after a few steps.
/// Errors   invalid_argument when tokens <= sinks + recent, a field is negative, or the RoPE does not fit.
struct ToMe {
  static constexpr Descriptor about{"tome", Stage::merge, "arXiv:2210.09461"};
  static constexpr Inputs needs{};

  index_t tokens = 1024;
  index_t slack = 32;
  index_t sinks = 4;
  index_t recent = 32;
  Mass mass = Mass::log_count;
  Place place = Place::as_cached;
  RopeConfig rope{};

  constexpr auto pipeline() const {
    return Pipeline{evict::NoScore{}, Pairs{tokens, slack, sinks, recent, 0}, EveryLink{},
                    Weighted{MergeKernel::size, MergeNormaliser::sum},
                    Target::keys_and_values, prim::RowSplit::none, mass, place, rope};
  }
  Status validate(const CacheShape& shape) const {
    if (sinks < 0 || recent < 0 || slack < 0 || tokens <= sinks || tokens - sinks <= recent) return Status::invalid_argument;
    return check_place(place, rope, shape);
  }
};

static_assert(check_merge_policy<ToMe, Cpu>());

}  // namespace kvcondense::merge
