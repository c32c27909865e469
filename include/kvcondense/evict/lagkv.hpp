#pragma once

#include <kvcondense/core/backend.hpp>
#include <kvcondense/core/policy.hpp>
#include <kvcondense/core/shape.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/evict/blocks/block_top_k.hpp>
#include <kvcondense/evict/blocks/lag_statistics.hpp>
#include <kvcondense/evict/blocks/pool.hpp>
#include <kvcondense/evict/blocks/protect.hpp>
#include <kvcondense/evict/blocks/trigger.hpp>
#include <kvcondense/evict/pipeline.hpp>
#include <kvcondense/evict/policy.hpp>

namespace kvcondense::evict {

/// Keeps the tokens of a block whose keys and values vary most, measured by the block after it.
///
/// Idea     what the next block already spans is repetition; a token whose channels stick out of that
///          range carries something of its own.
/// Source   LagKV, arXiv:2504.04704. kvpress's form is a ratio over it:
///          ratio(lagkv(sinks=4, lag=128), keep=...), with `across` what it calls cross scoring.
/// Needs    keys and values as they are stored: keys rotated, unless a position stage stores them raw.
/// Shapes   keys and values [kv_heads, slots, dim], scores [kv_heads, slots].
/// Cost     two reads of each key and value, when the block after its own is full; 4 bytes per slot to
///          know what was decided; slots * 8 bytes of workspace every `lag` tokens; no allocation.
/// Numbers  deviation over channels (n - 1) of values scaled by the next block's lowest and highest,
///          softmax inside the block, keys + value_weight * values, in float32. Every block keeps its best
///          floor(keep * lag + 1e-6); the last whole block and what follows it wait. Without `across` the same
///          tokens stay however they were chunked. Ties keep the smaller slot; NaN leaves first.
/// Differs  under a budget that is a total, blocks that are up for choice share what the decided ones and
///          the newest leave of it: with one that does not grow (uniform) later blocks get nothing. Where
///          kvpress, short of two blocks, evicts by age, nothing leaves.
/// Errors   invalid_argument when lag < 1, sinks < 0, value_weight is negative or no number, keep > 1, or
///          keep leaves a block nothing.
struct LagKV {
  static constexpr Descriptor about{"lagkv", Stage::evict, "arXiv:2504.04704"};
  static constexpr Inputs needs{};

  index_t sinks = 16;
  index_t lag = 128;
  double keep = 0.5;
  float value_weight = 1.0f;
  bool across = false;  ///< blocks that are chosen from in one step compete with each other

  constexpr auto pipeline() const {
    return Pipeline{LagStatistics{sinks, lag, value_weight},
                    NoPool{},
                    Both{Sinks{sinks}, Recent{lag}},
                    BlockRatio{lag, keep},
                    BlockTopK{lag, across},
                    EveryM{lag, sinks}};
  }
  Status validate(const CacheShape&) const {
    const bool good = lag >= 1 && sinks >= 0 && value_weight >= 0.0f && value_weight <= 1e6f;
    return good && keep > 0.0 && keep <= 1.0 && BlockRatio{lag, keep}.of(lag) >= 1 ? Status::ok : Status::invalid_argument;
  }
};

static_assert(check_eviction_policy<LagKV, Cpu>());

}  // namespace kvcondense::evict
