#pragma once

#include <kvcondense/core/backend.hpp>
#include <kvcondense/core/policy.hpp>
#include <kvcondense/core/shape.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/evict/blocks/above.hpp>
#include <kvcondense/evict/blocks/frozen.hpp>
#include <kvcondense/evict/blocks/pool.hpp>
#include <kvcondense/evict/blocks/select.hpp>
#include <kvcondense/evict/blocks/trigger.hpp>
#include <kvcondense/evict/pipeline.hpp>
#include <kvcondense/evict/policy.hpp>

namespace kvcondense::evict {

/// Evicts tokens that a trained gate has marked, once they leave a window of the newest.
///
/// Idea     a token that is marked stays visible for a while, so that what it says can be absorbed by
///          tokens after it.
/// Source   DMS, arXiv:2506.05345; the gate there is a spare channel of each group's first query head
///          (set to 0 before attention), scaled and shifted.
/// Needs    the gate of every (KV head, token) as `gates`: the channel's number, before scale and shift.
/// Shapes   gates [kv_heads, tokens].
/// Cost     4 bytes per slot; a look at the slots that leave the window, and where a step works on copies of
///          numbers of slots (`of_previous`, CUDA, a stage that merges or grades) a copy of all; no budget,
///          so a cache grows with what the gate lets stay.
/// Numbers  a token leaves when gate * scale - offset > 0, compared as gate > offset / scale in float32,
///          and `window` newer tokens are there: with the coming one window + 1, the ring of the
///          reference code. A NaN leaves.
///          `of_previous`: a gate speaks of the token before its own, as in the reference's cache;
///          whether a checkpoint does is to be tried.
/// Errors   invalid_argument when window < 1, scale is not positive or offset is negative.
struct Dms {
  static constexpr Descriptor about{"dms", Stage::evict, "arXiv:2506.05345"};
  static constexpr bool trained = true;
  static constexpr Inputs needs = Input::gates;

  index_t window = 512;
  float scale = 100.0f;
  float offset = 5.0f;
  bool of_previous = false;

  constexpr auto pipeline() const {
    return Pipeline{Frozen<Gate>{{of_previous ? 1 : 0, -1.0f}}, NoPool{}, NotLeaving{window},
                    Above{-offset / scale},                            TopK{},   EveryStep{}};
  }
  Status validate(const CacheShape&) const {
    return window >= 1 && scale > 0.0f && scale <= 1e9f && offset >= 0.0f && offset <= 1e9f ? Status::ok
                                                                                          : Status::invalid_argument;
  }
};

static_assert(check_eviction_policy<Dms, Cpu>());

}  // namespace kvcondense::evict
