#pragma once

#include <cstdint>

#include <kvcondense/core/backend.hpp>
#include <kvcondense/core/policy.hpp>
#include <kvcondense/core/shape.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/evict/blocks/allocate.hpp>
#include <kvcondense/evict/blocks/noisy_mass.hpp>
#include <kvcondense/evict/blocks/pool.hpp>
#include <kvcondense/evict/blocks/protect.hpp>
#include <kvcondense/evict/blocks/select.hpp>
#include <kvcondense/evict/blocks/trigger.hpp>
#include <kvcondense/evict/pipeline.hpp>
#include <kvcondense/evict/policy.hpp>

namespace kvcondense::evict {

/// Keeps the newest tokens and those that drew most attention so far, measured with noise and rising temperature.
///
/// Idea     tokens that left leave their share to the others and spoil sums of attention; noise on the logits
///          and a temperature that rises while text is generated make up for it.
/// Source   Keyformer, arXiv:2403.09054; both position modes of its code: absolute, and with `+ reindex`.
/// Needs    the queries of every step.
/// Shapes   queries [q_heads, tokens, head_dim], keys and scores [kv_heads, slots].
/// Cost     two reads of all keys for every 32 query rows of a head, and one draw per logit; 4 bytes per slot
///          for the running sum; slots * 4 bytes of workspace; no allocation.
/// Numbers  sums over rows of the group's mean of softmax((logit + Gumbel noise) / temperature), float32. The
///          noise is counter-based, drawn from (seed, layer, query head, tokens of row and slot), so chunks and
///          threads change nothing; seed 0 draws none. The temperature goes from tau_start in the prompt to
///          tau_end after `generation` tokens, and stays. Ties keep the smaller slot. Attention itself has neither.
/// Differs  budgets are slots, not parts of the prompt. The masks of the authors' code never let a generated token
///          become a key token, and one of its paths acts at every eighth step: not here.
/// Errors   invalid_argument when recent is negative, tokens <= recent, generation is not positive, or a
///          temperature is not above 0 (at most 1000).
struct Keyformer {
  static constexpr Descriptor about{"keyformer", Stage::evict, "arXiv:2403.09054"};
  static constexpr Inputs needs = Input::queries;

  index_t tokens = 512;
  index_t recent = 154;
  float tau_start = 1.0f;
  float tau_end = 2.0f;
  index_t generation = 128;
  std::uint64_t seed = 1;

  constexpr auto pipeline() const {
    return Pipeline{NoisyMass{tau_start, tau_end, generation, seed},
                    NoPool{},
                    Recent{recent},
                    Absolute{tokens},
                    TopK{},
                    PrefillOnceAndEveryStep{}};
  }
  Status validate(const CacheShape&) const {
    const auto heat = [](float tau) { return tau > 0.0f && tau <= 1000.0f; };
    const bool good = recent >= 0 && tokens > recent && generation >= 1 && heat(tau_start) && heat(tau_end);
    return good ? Status::ok : Status::invalid_argument;
  }
};

static_assert(check_eviction_policy<Keyformer, Cpu>());

}  // namespace kvcondense::evict
