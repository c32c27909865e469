#pragma once

#include <kvcondense/core/backend.hpp>
#include <kvcondense/core/policy.hpp>
#include <kvcondense/core/shape.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/evict/blocks/frozen.hpp>
#include <kvcondense/evict/blocks/pool.hpp>
#include <kvcondense/evict/blocks/protect.hpp>
#include <kvcondense/evict/blocks/room.hpp>
#include <kvcondense/evict/pipeline.hpp>
#include <kvcondense/evict/policy.hpp>

namespace kvcondense::evict {

/// Remembers what was surprising, and forgets it slowly; makes room before every turn of a dialogue.
///
/// Idea     a token that the model did not expect carries what later turns will ask for.
/// Source   SirLLM, ACL 2024, arXiv:2405.12528. The paper stores raw keys: position stage `reindex`.
/// Needs    the surprise of every token (prim::TokenSurprise makes it of logits), and a step with
///          Phase::turn and `incoming` before each turn. No attention, keys or values.
/// Shapes   one number per token, the same for all layers and heads, so all keep one set.
/// Cost     4 bytes per slot; one selection per turn. Decode steps never evict.
/// Numbers  before a turn of c tokens that would not fit: the first `sinks`, the `memory` - c most
///          surprising of all, and the newest, sinks + memory + recent - c in all. Then all surprise is
///          multiplied by `decay`. A token that no logits came before counts as the most surprising one
///          of its step. Ties keep the older token; NaN leaves first.
/// Differs  the published code measures the surprise of repeating a token: prim::SurpriseOf::repeated.
/// Errors   invalid_argument when a number of tokens is negative, all are 0, or decay is not in [0, 1].
struct SirLLM {
  static constexpr Descriptor about{"sirllm", Stage::evict, "arXiv:2405.12528"};
  static constexpr Inputs needs = Input::surprise;

  index_t sinks = 4;
  index_t memory = 1020;
  index_t recent = 0;
  float decay = 0.7f;

  constexpr auto pipeline() const {
    return Pipeline{Frozen<Surprise>{.decay = decay},
                    NoPool{},
                    Sinks{sinks},
                    RoomFor{sinks + memory + recent},
                    TopThenNewest{sinks, memory},
                    BeforeTurn{}};
  }
  Status validate(const CacheShape&) const {
    const bool good = sinks >= 0 && memory >= 0 && recent >= 0 && sinks + memory + recent > 0;
    return good && decay >= 0.0f && decay <= 1.0f ? Status::ok : Status::invalid_argument;
  }
};

static_assert(check_eviction_policy<SirLLM, Cpu>());

}  // namespace kvcondense::evict
