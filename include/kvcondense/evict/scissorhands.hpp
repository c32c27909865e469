#pragma once

#include <kvcondense/core/backend.hpp>
#include <kvcondense/core/policy.hpp>
#include <kvcondense/core/shape.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/evict/blocks/allocate.hpp>
#include <kvcondense/evict/blocks/pool.hpp>
#include <kvcondense/evict/blocks/protect.hpp>
#include <kvcondense/evict/blocks/query_mass.hpp>
#include <kvcondense/evict/blocks/select.hpp>
#include <kvcondense/evict/blocks/trigger.hpp>
#include <kvcondense/evict/pipeline.hpp>
#include <kvcondense/evict/policy.hpp>

namespace kvcondense::evict {

/// Drops, many at once, the tokens that the newest queries passed over most often.
///
/// Idea     what mattered lately keeps mattering; a token that row after row gives less than an even share
///          can go, and dropping many at a time makes it cheap.
/// Source   Scissorhands, arXiv:2305.17118; there is no code of the authors.
/// Needs    the queries of every step.
/// Shapes   queries [q_heads, tokens, head_dim], keys and scores [kv_heads, slots].
/// Cost     no state per slot: low counts are computed from the last `history` queries when they are wanted,
///          up to two reads of all keys for every 32 query rows of a head, once in `drop` tokens. The queries are
///          history * q_heads * head_dim * 4 bytes per layer, so a long history costs what it saves.
/// Numbers  a row counts against a slot when the mean probability over the query group is below 1 / (slots
///          that the row sees); whole numbers, so ties abound: of equal counts the newer slot stays. A layer
///          of `drop` slots per head more than `tokens` is cut to `tokens`, in chunks of a prompt too. NaN
///          counts against its slot.
/// Differs  rows are judged when tokens leave, over the slots that are there. While history <= drop these are those of
///          their own time: nothing has left since. Older rows are judged over what is left of theirs. The paper's
///          budget, at which dropping starts, is tokens + drop; all layers have the same.
/// Errors   invalid_argument when history or drop is not positive, recent or sinks is negative, or
///          tokens <= recent + sinks.
struct Scissorhands {
  static constexpr Descriptor about{"scissorhands", Stage::evict, "arXiv:2305.17118"};
  static constexpr Inputs needs = Input::queries;

  index_t tokens = 1024;
  index_t drop = 512;
  index_t history = 64;
  index_t recent = 10;
  index_t sinks = 0;

  constexpr auto pipeline() const {
    return Pipeline{QueryMass{history, prim::GroupReduce::mean, prim::RowReduce::low_count},
                    Negated{},
                    Both{Sinks{sinks}, Recent{recent}},
                    Absolute{tokens},
                    TopK{prim::Ties::last},
                    Slack{drop}};
  }
  Status validate(const CacheShape&) const {
    const bool good = history >= 1 && drop >= 1 && recent >= 0 && sinks >= 0 && tokens > recent + sinks;
    return good ? Status::ok : Status::invalid_argument;
  }
};

static_assert(check_eviction_policy<Scissorhands, Cpu>());

}  // namespace kvcondense::evict
