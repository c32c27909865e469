#pragma once

#include <kvcondense/retrieve/blocks/keep.hpp>
#include <kvcondense/retrieve/blocks/partition.hpp>
#include <kvcondense/retrieve/blocks/query.hpp>
#include <kvcondense/retrieve/blocks/reduce.hpp>
#include <kvcondense/retrieve/blocks/schedule.hpp>
#include <kvcondense/retrieve/blocks/scorer.hpp>
#include <kvcondense/retrieve/blocks/select.hpp>
#include <kvcondense/retrieve/blocks/unit_rows.hpp>
#include <kvcondense/retrieve/pipeline.hpp>
#include <kvcondense/retrieve/policy.hpp>

namespace kvcondense::retrieve {

/// Reads the blocks whose mean logit is largest, one choice for all query heads of a KV head.
///
/// Idea     the mean logit of a block over the heads of a group is the inner product of two means: one row per block
///          and one query per KV head are enough.
/// Source   Sadhukhan et al., Kinetics: Rethinking Test-Time Scaling Laws, arXiv:2506.05333; Infini-AI-Lab/Kinetics.
/// Needs    keys as attention compares them; any position stage.
/// Shapes   per KV head and block one row [head_dim] in the cache's dtype; one selection per KV head.
/// Cost     2 head_dim / block bytes of index per slot in 16 bits; a step reads the index once per KV head, and sinks +
///          local + blocks * block slots (up to block - 1 more).
/// Numbers  blocks begin behind `sinks`; those that do not lie whole in front of the newest `local` slots are kept.
///          Several query tokens: the mean of their scores. Layers below `dense_layers` read all. Ties keep the block
///          in front; NaN ranks last.
/// Errors   invalid_argument unless block >= 1, blocks >= 1 and no other number is negative.
struct Kinetics {
  static constexpr Descriptor about{"kinetics", Stage::retrieve, "arXiv:2506.05333"};
  static constexpr KeyState keys = KeyState::rotated;

  index_t block = 16;
  index_t blocks = 64;
  index_t sinks = 4;
  index_t local = 64;
  index_t dense_layers = 1;

  constexpr auto pipeline() const {
    return Pipeline{Pages{block, sinks}, MeanKey{block},        GroupMeanQuery{},     PlainScore{},
                    ByHeads{Heads::group_mean}, TopUnits{blocks}, KeepEnds{sinks, local}, EveryCall{},
                    Aggregate::mean,     dense_layers};
  }
  Status validate(const CacheShape&) const {
    constexpr index_t most = index_t{1} << 31;
    const bool good = block >= 1 && block <= most && blocks >= 1 && blocks <= most && sinks >= 0 && sinks <= most && local >= 0 &&
                      local <= most && dense_layers >= 0;
    return good ? Status::ok : Status::invalid_argument;
  }
};

static_assert(check_retrieval_policy<Kinetics, Cpu>());

}  // namespace kvcondense::retrieve
