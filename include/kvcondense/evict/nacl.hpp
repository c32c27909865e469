#pragma once

#include <cstdint>

#include <kvcondense/core/backend.hpp>
#include <kvcondense/core/policy.hpp>
#include <kvcondense/core/shape.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/evict/blocks/allocate.hpp>
#include <kvcondense/evict/blocks/attention_mass.hpp>
#include <kvcondense/evict/blocks/pool.hpp>
#include <kvcondense/evict/blocks/protect.hpp>
#include <kvcondense/evict/blocks/top_then_drawn.hpp>
#include <kvcondense/evict/blocks/trigger.hpp>
#include <kvcondense/evict/pipeline.hpp>
#include <kvcondense/evict/policy.hpp>

namespace kvcondense::evict {

/// Condenses a prompt once: a part of the budget to what its last queries look at, the rest drawn by chance from what they look at less.
///
/// Idea     the last tokens of a prompt stand for the question, but scores of few queries are biased; chance keeps some of what
///          they overlook.
/// Source   NACL, ACL 2024, arXiv:2408.03675.
/// Needs    attention of the last `window` rows, the proxy tokens, of the step that ends the prompt: its last chunk should be as long.
/// Shapes   mass and scores [kv_heads, slots].
/// Cost     slots * 8 bytes of workspace when a prompt ends, and a draw per slot; no state; no allocation.
/// Numbers  sum of rows, mean over the query group, float32. Of the places that the first `sinks` and the newest `recent` leave,
///          floor(drawn * places + 1e-6) are drawn without replacement with chances in proportion to exp(score / temperature), from
///          those that are not among the best. Draws are counter-based, from (seed, layer, head, slot): the same in every run, thread
///          and backend, but where ranks are as near as rounding of logarithms. Ties keep the smaller slot; NaN leaves first.
///          Generated tokens stay.
/// Differs  what part of the budget is drawn is ours to choose: 0.3.
/// Errors   invalid_argument when window is not positive, sinks or recent is negative, tokens <= sinks + recent, drawn is outside
///          [0, 1], or temperature is not from 1e-3 to 1000.
struct Nacl {
  static constexpr Descriptor about{"nacl", Stage::evict, "arXiv:2408.03675"};
  static constexpr Inputs needs = Input::attention;

  index_t tokens = 1024;
  index_t window = 32;
  index_t sinks = 4;
  index_t recent = 32;
  double drawn = 0.3;
  float temperature = 1.0f;
  std::uint64_t seed = 1;

  constexpr auto pipeline() const {
    return Pipeline{AttentionMass<PerHead, Latest>{last_rows(window)},
                    NoPool{},
                    Both{Sinks{sinks}, Recent{recent}},
                    Absolute{tokens},
                    TopThenDrawn{drawn, temperature, seed},
                    PrefillOnce{}};
  }
  Status validate(const CacheShape&) const {
    const bool counts = window >= 1 && sinks >= 0 && recent >= 0 && tokens > sinks + recent;
    const bool chance = drawn >= 0.0 && drawn <= 1.0 && temperature >= 1e-3f && temperature <= 1000.0f;
    return counts && chance ? Status::ok : Status::invalid_argument;
  }
};

static_assert(check_eviction_policy<Nacl, Cpu>());

}  // namespace kvcondense::evict
