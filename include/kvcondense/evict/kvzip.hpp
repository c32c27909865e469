#pragma once

#include <kvcondense/core/backend.hpp>
#include <kvcondense/core/model_arrays.hpp>
#include <kvcondense/core/policy.hpp>
#include <kvcondense/core/shape.hpp>
#include <kvcondense/core/stage_traits.hpp>
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
/// Source   KVzip, arXiv:2505.23416. Its non-uniform budgets are global_top(kvzip, keep=...). `weighted` is KVzip+, as in kvpress.
/// Needs    probes: for each chunk of the context (the paper's have 2048 tokens) the engine feeds an instruction and
///          the chunk again, in steps of Phase::probe with their queries, probe_first and probe_last, and takes
///          those tokens back; then Phase::turn, when a question is about to come. With `weighted` the lengths of hidden states of
///          the tokens that ask (`hidden_norms`), values, and the model's output projections, without their bias.
/// Shapes   queries [q_heads, tokens, head_dim] and hidden_norms [tokens] of all pending tokens; output [hidden, q_heads * value_dim]
///          per layer, as `o_proj.weight`.
/// Cost     one more pass over the context; two reads of the keys per probe; 4 bytes per slot. With `weighted` also, for each token that
///          is asked about, hidden * value_dim multiplications per query head, and 4 bytes of workspace per slot and query head.
/// Numbers  the largest share of attention over all rows of the probes and the query group, softmax over the sinks,
///          the chunk and the probe itself; float32. Of the tokens that were asked about a part `keep` stays; sinks,
///          tokens that no probe asked about, and what an earlier turn chose stay too. Ties keep the smaller slot. With `weighted`
///          a share is multiplied by the length of the slot's value behind the query head's part of the output projection and divided by
///          that of the row's hidden state, before the maximum; a row whose length is not positive counts nothing.
/// Differs  kvpress counts its sinks among the tokens of which a part stays, as global_top(kvzip) does; alone, they stay beside
///          that part.
/// Errors   missing_input or out_of_range in a probe without queries, with `weighted` without hidden_norms, or with no tokens to ask about;
///          invalid_argument unless 0 < keep <= 1 and sinks >= 0; with `weighted` missing_input without projections, shape_mismatch where
///          they do not fit.
struct KVzip {
  static constexpr Descriptor about{"kvzip", Stage::evict, "arXiv:2505.23416"};
  static constexpr Inputs needs{};

  double keep = 0.3;
  index_t sinks = 4;
  bool weighted = false;
  LayerMatrices output{};

  constexpr auto pipeline() const {
    return Pipeline{ProbeMass{sinks, weighted, output}, NoPool{}, Sinks{sinks}, OpenShare{keep}, TopK{}, BeforeTurn{}};
  }
  constexpr const char* missing() const { return weighted && output.empty() ? "output" : nullptr; }
  constexpr StageTraits traits() const { return {.output_weights = weighted}; }
  Status validate(const CacheShape& shape) const {
    if (weighted && output.empty()) return Status::missing_input;
    if (weighted && (output.layers != shape.layers || output.rows < 1 || output.columns != shape.q_heads * shape.values())) return Status::shape_mismatch;
    return keep > 0.0 && keep <= 1.0 && sinks >= 0 ? Status::ok : Status::invalid_argument;
  }
};

static_assert(check_eviction_policy<KVzip, Cpu>());

}  // namespace kvcondense::evict
