#pragma once

#include <kvcondense/core/backend.hpp>
#include <kvcondense/core/policy.hpp>
#include <kvcondense/core/shape.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/evict/blocks/allocate.hpp>
#include <kvcondense/evict/blocks/attention_mass.hpp>
#include <kvcondense/evict/blocks/pool.hpp>
#include <kvcondense/evict/blocks/protect.hpp>
#include <kvcondense/evict/blocks/select.hpp>
#include <kvcondense/evict/blocks/trigger.hpp>
#include <kvcondense/evict/pipeline.hpp>
#include <kvcondense/evict/policy.hpp>

namespace kvcondense::evict {

/// Keeps the newest tokens and those that drew most attention so far.
///
/// Idea     few tokens, the heavy hitters, draw most of the attention, and keep drawing it.
/// Source   Heavy-Hitter Oracle, arXiv:2306.14048; sets per kv head, as grouped heads need them.
/// Needs    attention of every query row, prompt and decode.
/// Shapes   mass and scores [kv_heads, slots].
/// Cost     4 bytes per slot for the running sum; slots * 4 bytes of workspace; no allocation.
/// Numbers  sums in float32 over the query group and all rows; ties keep the smaller slot. Evicted
///          sums are forgotten. Old tokens were seen by more rows and win: that is the method.
/// Differs  the authors' simulation by masks counts the coming token among the recent ones and judges what leaves them a step
///          later; a cache has let that go by then. But for that one token it shows what recent - 1 keeps.
/// Errors   invalid_argument when heavy or recent is negative, or both are zero.
struct H2O {
  static constexpr Descriptor about{"h2o", Stage::evict, "arXiv:2306.14048"};
  static constexpr Inputs needs = Input::attention;

  index_t heavy = 256;
  index_t recent = 256;

  constexpr auto pipeline() const {
    return Pipeline{AttentionMass<PerHead, RunningSum>{all_rows(), Reduce::sum, {Reduce::sum}, {}},
                    NoPool{},
                    Recent{recent},
                    Absolute{heavy + recent},
                    TopK{},
                    PrefillOnceAndEveryStep{}};
  }
  Status validate(const CacheShape&) const {
    return heavy < 0 || recent < 0 || heavy + recent < 1 ? Status::invalid_argument : Status::ok;
  }
};

static_assert(check_eviction_policy<H2O, Cpu>());

}  // namespace kvcondense::evict
