#pragma once

#include <kvcondense/core/backend.hpp>
#include <kvcondense/core/policy.hpp>
#include <kvcondense/core/shape.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/evict/blocks/allocate.hpp>
#include <kvcondense/evict/blocks/key_norm.hpp>
#include <kvcondense/evict/blocks/pool.hpp>
#include <kvcondense/evict/blocks/protect.hpp>
#include <kvcondense/evict/blocks/select.hpp>
#include <kvcondense/evict/blocks/trigger.hpp>
#include <kvcondense/evict/pipeline.hpp>
#include <kvcondense/evict/policy.hpp>

namespace kvcondense::evict {

/// Keeps the tokens whose keys are shortest, and the newest.
///
/// Idea     short keys tend to draw more attention, so long keys leave first. Models that normalise
///          their keys have nothing to tell them apart.
/// Source   Devoto et al., arXiv:2406.11430, which protects nothing: recent = 0.
/// Needs    keys only: no attention weights, so it sits beside fused attention.
/// Shapes   keys [kv_heads, slots, head_dim], scores [kv_heads, slots].
/// Cost     one read of every key, when it is new; 4 bytes per slot for its length.
/// Numbers  length in float32; a key with NaN or Inf scores -inf and leaves first; ties keep the
///          smaller slot. Rotation keeps lengths, so stored rotated or raw makes no difference.
/// Errors   invalid_argument when recent is negative or tokens <= recent.
struct Knorm {
  static constexpr Descriptor about{"knorm", Stage::evict, "arXiv:2406.11430"};
  static constexpr Inputs needs{};
  static constexpr bool key_norms = true;

  index_t tokens = 1024;
  index_t recent = 32;

  constexpr auto pipeline() const {
    return Pipeline{KeyNorm{},        NoPool{}, Recent{recent},
                    Absolute{tokens}, TopK{},   PrefillOnceAndEveryStep{}};
  }
  Status validate(const CacheShape&) const {
    return recent < 0 || tokens <= recent ? Status::invalid_argument : Status::ok;
  }
};

static_assert(check_eviction_policy<Knorm, Cpu>());

}  // namespace kvcondense::evict
