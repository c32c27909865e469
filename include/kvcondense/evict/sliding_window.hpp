#pragma once

#include <kvcondense/core/backend.hpp>
#include <kvcondense/core/policy.hpp>
#include <kvcondense/core/shape.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/evict/blocks/allocate.hpp>
#include <kvcondense/evict/blocks/no_score.hpp>
#include <kvcondense/evict/blocks/pool.hpp>
#include <kvcondense/evict/blocks/protect.hpp>
#include <kvcondense/evict/blocks/select.hpp>
#include <kvcondense/evict/blocks/trigger.hpp>
#include <kvcondense/evict/pipeline.hpp>
#include <kvcondense/evict/policy.hpp>

namespace kvcondense::evict {

/// Keeps the newest tokens.
///
/// Idea     what was said last matters most; memory is constant. Only for models trained with a
///          window: others collapse once the first token leaves, and want sink_window.
/// Source   folklore; Longformer, Mistral 7B.
/// Needs    nothing.
/// Shapes   none.
/// Cost     kv_heads numbers of workspace per step.
/// Numbers  the current token counts as one of the `window`. After a step the window is full, so the
///          next query sees window + 1 slots, its own included; a model whose mask shows exactly w
///          tokens wants window = w - 1.
/// Errors   invalid_argument when window is not positive.
struct SlidingWindow {
  static constexpr Descriptor about{"sliding_window", Stage::evict, "folklore"};
  static constexpr Inputs needs{};

  index_t window = 1024;

  constexpr auto pipeline() const {
    return Pipeline{NoScore{}, NoPool{}, Recent{1}, Absolute{window}, Fixed{.fill = true}, EveryStep{}};
  }
  Status validate(const CacheShape&) const {
    return window < 1 ? Status::invalid_argument : Status::ok;
  }
};

static_assert(check_eviction_policy<SlidingWindow, Cpu>());

}  // namespace kvcondense::evict
