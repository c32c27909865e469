#pragma once

#include <kvcondense/core/backend.hpp>
#include <kvcondense/core/policy.hpp>
#include <kvcondense/core/shape.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/evict/blocks/allocate.hpp>
#include <kvcondense/evict/blocks/key_direction.hpp>
#include <kvcondense/evict/blocks/pool.hpp>
#include <kvcondense/evict/blocks/protect.hpp>
#include <kvcondense/evict/blocks/select.hpp>
#include <kvcondense/evict/blocks/trigger.hpp>
#include <kvcondense/evict/pipeline.hpp>
#include <kvcondense/evict/policy.hpp>

namespace kvcondense::evict {

/// Keeps the tokens whose keys point away from the mean key, and the newest.
///
/// Idea     keys that point where all keys point say the same thing; the odd ones draw attention and
///          cover the space of keys best.
/// Source   KeyDiff, arXiv:2504.15364, which protects nothing: recent = 0.
/// Needs    keys only, as they are stored: rotated, unless a position stage stores them raw. Prefill in
///          chunks (the paper's are 128 tokens) and memory stays within tokens + a chunk.
/// Shapes   keys [kv_heads, slots, head_dim], scores [kv_heads, slots].
/// Cost     two reads of all keys in every step that is over budget, so once in 256 tokens with
///          `every(keydiff, tokens=256)`; no state; no workspace beyond 4 bytes per slot for scores.
/// Numbers  minus the cosine to the mean of the resident keys, in float32; a key with NaN or Inf scores
///          NaN and leaves first, a key of zeros scores 0; where keys cancel out all score 0. Ties keep
///          the smaller slot.
/// Errors   invalid_argument when recent is negative or tokens <= recent.
struct KeyDiff {
  static constexpr Descriptor about{"keydiff", Stage::evict, "arXiv:2504.15364"};
  static constexpr Inputs needs{};

  index_t tokens = 2048;
  index_t recent = 32;
  prim::Anchor anchor = prim::Anchor::mean_direction;

  constexpr auto pipeline() const {
    return Pipeline{KeyDirection{anchor}, NoPool{}, Recent{recent},
                    Absolute{tokens},     TopK{},   EveryStep{}};
  }
  Status validate(const CacheShape&) const {
    return recent < 0 || tokens <= recent ? Status::invalid_argument : Status::ok;
  }
};

static_assert(check_eviction_policy<KeyDiff, Cpu>());

}  // namespace kvcondense::evict
