#pragma once

#include <kvcondense/core/backend.hpp>
#include <kvcondense/core/model_arrays.hpp>
#include <kvcondense/core/policy.hpp>
#include <kvcondense/core/shape.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/evict/blocks/attention_mass.hpp>
#include <kvcondense/evict/blocks/layer_parts.hpp>
#include <kvcondense/evict/blocks/pool.hpp>
#include <kvcondense/evict/blocks/protect.hpp>
#include <kvcondense/evict/blocks/trigger.hpp>
#include <kvcondense/evict/pipeline.hpp>
#include <kvcondense/evict/policy.hpp>

namespace kvcondense::evict {

/// Keeps of a prompt the tokens that drew most attention, of each layer its own part, then a fixed slot
/// leaves for each new token.
///
/// Idea     some layers attend to few tokens and others to many: at one level of attention kept each gives
///          up another part. What a prompt left stays; only the newest tokens slide.
/// Source   PrefixKV, arXiv:2412.03409.
/// Needs    `evicted`, the part of its tokens that each layer gives up (`budget::find_prefix_mass`,
///          averaged over a few samples); attention of every query row; heads of one length.
/// Shapes   evicted [layers], mass and scores [kv_heads, slots].
/// Cost     4 bytes per slot for the running sum; slots * 4 bytes of workspace; no allocation.
/// Numbers  sum of rows, mean of all query heads, float32; round(evicted * tokens), halves to even, leave
///          when a prompt ends, ties keep the smaller slot. Then of each new token that is one too many
///          for ceil(tokens * (1 - evicted)) the slot `distance` before the last of these leaves, in the
///          middle where there is none; a step of several tokens drops neighbours.
/// Errors   missing_input without the table; shape_mismatch when it is not of this model;
///          invalid_argument unless 0 <= evicted <= 1, sinks >= 0, recent >= 1 and distance >= 0;
///          not_supported in a step whose heads hold different numbers of slots.
struct PrefixKV {
  static constexpr Descriptor about{"prefixkv", Stage::evict, "arXiv:2412.03409"};
  static constexpr Inputs needs = Input::attention;

  index_t sinks = 1;
  index_t recent = 1;
  index_t distance = 25;
  LayerTable evicted{};  ///< borrowed

  const char* missing() const { return evicted.empty() ? "evicted" : nullptr; }

  constexpr auto pipeline() const {
    return Pipeline{AttentionMass<AllHeads, RunningSum>{all_rows()},
                    NoPool{},
                    Both{Sinks{sinks}, Recent{recent}},
                    LayerParts{evicted},
                    DropBehind{distance},
                    PrefillOnceAndEveryStep{}};
  }
  Status validate(const CacheShape& shape) const {
    if (sinks < 0 || recent < 1 || distance < 0) return Status::invalid_argument;
    if (evicted.empty()) return Status::missing_input;
    if (!evicted.fits(shape)) return Status::shape_mismatch;
    return evicted.within(0.0f, 1.0f) ? Status::ok : Status::invalid_argument;
  }
};

static_assert(check_eviction_policy<PrefixKV, Cpu>());

}  // namespace kvcondense::evict
