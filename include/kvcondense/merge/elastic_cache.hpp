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

/// Folds each token of a prompt that leaves into the kept one that stands nearest in the text.
///
/// Idea     the anchors of an instruction carry their neighbourhoods; what is generated later needs no merging.
/// Source   Elastic Cache, arXiv:2407.18121, instruction phase. The output phase is `prefixkv(distance=...)`'s.
/// Needs    an eviction stage that chooses the anchors: scores of a whole layer, as in `prefixkv` or `tova`.
/// Shapes   decisions per KV head; all heads alike where the policy keeps one set per layer.
/// Cost     one read of what folds; no state.
/// Numbers  the mean of an anchor and its bucket, keys and values alike; of two anchors as near the older one.
///          The first and the newest tokens are no anchors.
/// Differs  anchors are the best by score, as the paper says; its code compares indices with ranks. While text is
///          generated nothing folds.
/// Errors   invalid_argument when sinks or newest is negative, or the RoPE does not fit; incompatible without an eviction stage.
struct ElasticCache {
  static constexpr Descriptor about{"elastic_cache", Stage::merge, "arXiv:2407.18121"};
  static constexpr Inputs needs{};

  index_t sinks = 4;
  index_t newest = 1;
  Mass mass = Mass::none;
  Place place = Place::as_cached;
  RopeConfig rope{};

  constexpr auto pipeline() const {
    return Pipeline{evict::NoScore{}, NearestAnchor{sinks, newest}, EveryLink{}, Weighted{MergeKernel::uniform, MergeNormaliser::sum},
                    Target::keys_and_values, prim::RowSplit::none, mass, place, rope};
  }
  Status validate(const CacheShape& shape) const {
    return sinks >= 0 && newest >= 0 ? check_place(place, rope, shape) : Status::invalid_argument;
  }
};

static_assert(check_merge_policy<ElasticCache, Cpu>());

}  // namespace kvcondense::merge
