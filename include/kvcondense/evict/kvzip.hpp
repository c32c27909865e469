#pragma once

#include <kvcondense/core/backend.hpp>
#include <kvcondense/core/policy.hpp>
#include <kvcondense/core/shape.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/evict/blocks/above.hpp>
#include <kvcondense/evict/blocks/pool.hpp>
#include <kvcondense/evict/blocks/probe_mass.hpp>
#include <kvcondense/evict/blocks/protect.hpp>
#include <kvcondense/evict/blocks/room.hpp>
#include <kvcondense/evict/blocks/select.hpp>
#include <kvcondense/evict/pipeline.hpp>
#include <kvcondense/evict/policy.hpp>

namespace kvcondense::evict {

/// Keeps the tokens of a context that the model looks at when it is asked to repeat the context.
///
/// Idea     what is needed to say the text again is needed for any question about it; the cache serves questions that
///          nobody has asked yet.
/// Source   KVzip, arXiv:2505.23416. Its non-uniform budgets are global_top(kvzip, keep=...).
/// Needs    probes: for each chunk of the context (the paper's have 2048 tokens) the engine feeds an instruction and
///          the chunk again, in steps of Phase::probe with their queries, probe_first and probe_last, and takes
///          those tokens back; then Phase::turn, when a question is about to come.
/// Shapes   queries [q_heads, tokens, head_dim] of all pending tokens.
/// Cost     one more pass over the context; two reads of the keys per probe; 4 bytes per slot.
/// Numbers  the largest share of attention over all rows of the probes and the query group, softmax over the sinks,
///          the chunk and the probe itself; float32. Of the tokens that were asked about a part `keep` stays; sinks,
///          tokens that no probe asked about, and what an earlier turn chose stay too. Ties keep the smaller slot.
/// Differs  the form weighted by projected values (KVzip+) is not here.
/// Errors   missing_input or out_of_range in a probe without queries or with no tokens to ask about;
///          invalid_argument unless 0 < keep <= 1 and sinks >= 0.
struct KVzip {
  static constexpr Descriptor about{"kvzip", Stage::evict, "arXiv:2505.23416"};
  static constexpr Inputs needs{};

  double keep = 0.3;
  index_t sinks = 4;

  constexpr auto pipeline() const {
    return Pipeline{ProbeMass{sinks}, NoPool{}, Sinks{sinks}, OpenShare{keep}, TopK{}, BeforeTurn{}};
  }
  Status validate(const CacheShape&) const {
    return keep > 0.0 && keep <= 1.0 && sinks >= 0 ? Status::ok : Status::invalid_argument;
  }
};

static_assert(check_eviction_policy<KVzip, Cpu>());

}  // namespace kvcondense::evict
