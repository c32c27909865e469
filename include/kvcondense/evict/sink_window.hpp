#pragma once

#include <kvcondense/core/backend.hpp>
#include <kvcondense/core/policy.hpp>
#include <kvcondense/core/shape.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/evict/blocks/no_score.hpp>
#include <kvcondense/evict/blocks/pool.hpp>
#include <kvcondense/evict/blocks/protect.hpp>
#include <kvcondense/evict/blocks/room.hpp>
#include <kvcondense/evict/blocks/select.hpp>
#include <kvcondense/evict/pipeline.hpp>
#include <kvcondense/evict/policy.hpp>

namespace kvcondense::evict {

/// Keeps the first and the newest tokens.
///
/// Idea     the first tokens soak up attention that has nowhere else to go; without them the model
///          breaks, with them a short window is stable for millions of tokens.
/// Source   StreamingLLM, arXiv:2309.17453.
/// Needs    nothing. The paper counts positions inside the cache: add a re-indexing position stage.
///          Without one positions stay absolute, and grow beyond what the model was trained on.
/// Shapes   none.
/// Cost     kv_heads numbers of workspace per step.
/// Numbers  a step appends, attends, then trims: a query sees sinks + recent + 1 slots. A step with
///          Phase::turn makes room for `incoming` tokens before they come; the sinks stay.
/// Errors   invalid_argument when sinks is negative or recent is not positive.
struct SinkWindow {
  static constexpr Descriptor about{"sink_window", Stage::evict, "arXiv:2309.17453"};
  static constexpr Inputs needs{};

  index_t recent = 2000;
  index_t sinks = 4;

  constexpr auto pipeline() const {
    return Pipeline{NoScore{},
                    NoPool{},
                    Both{Sinks{sinks}, Newest{}},
                    RoomFor{sinks + recent},
                    Fixed{.fill = true},
                    EveryStepAndTurn{}};
  }

  Status validate(const CacheShape&) const {
    return sinks < 0 || recent < 1 ? Status::invalid_argument : Status::ok;
  }
};

static_assert(check_eviction_policy<SinkWindow, Cpu>());

}  // namespace kvcondense::evict
