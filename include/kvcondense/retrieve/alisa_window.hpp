#pragma once

#include <kvcondense/prim/near_share.hpp>
#include <kvcondense/retrieve/blocks/drawn_mass.hpp>
#include <kvcondense/retrieve/blocks/keep.hpp>
#include <kvcondense/retrieve/blocks/partition.hpp>
#include <kvcondense/retrieve/blocks/query.hpp>
#include <kvcondense/retrieve/blocks/reduce.hpp>
#include <kvcondense/retrieve/blocks/schedule.hpp>
#include <kvcondense/retrieve/blocks/scorer.hpp>
#include <kvcondense/retrieve/blocks/select.hpp>
#include <kvcondense/retrieve/pipeline.hpp>
#include <kvcondense/retrieve/policy.hpp>

namespace kvcondense::retrieve {

/// Reads the newest tokens, and as many of the others: those that the newest queries of all heads look at.
///
/// Idea     half of what attention needs is near; the other half is wherever the newest queries of the layer look, and moves
///          with them. Nothing leaves, so what nobody looks at now may be read later.
/// Source   sparse window attention of ALISA, arXiv:2403.17312; there is no code of the authors.
/// Needs    the queries of every step; any position stage; KV heads of equal length (no eviction that differs between heads).
/// Shapes   per KV head and slot one float32; one selection for all heads of a layer. The newest queries are history * q_heads *
///          head_dim * 4 bytes per layer.
/// Cost     a step reads all keys up to two times for every 32 query rows of a KV head, which are min(k, history) tokens times
///          its query heads: more than the 2 k slots that `attend` reads, beside 4 bytes per slot and KV head to choose them.
/// Numbers  of the n slots that steps have seen, k = round(ratio * n / 2), halves to even, at least 1: the newest k are read, of
///          the others the k with the largest sum of probabilities over all query heads and the newest queries, and what no step
///          has seen. The queries are min(k, history) with n the tokens so far; softmax over all slots that a query sees, float32.
///          Calls of one query token choose; longer ones, like a prompt, read all. After `truncate` sums are those of the last
///          step until the next one, then of the queries that are left. Ties keep the smaller slot; a sum that is no number is 0.
/// Differs  probabilities are those over all slots, made in the step from queries that are kept, so that it reads keys wherever they
///          lie; the paper keeps rows of the attention that was computed. No more than `history` queries are remembered. Where
///          slots lie is planned by storage/alisa_placement.hpp, and moved by the caller.
/// Errors   invalid_argument unless 0 < ratio <= 1 and history >= 1; not_supported in a call where KV heads hold different
///          numbers of slots.
struct AlisaWindow {
  static constexpr Descriptor about{"alisa_window", Stage::retrieve, "arXiv:2403.17312"};
  static constexpr KeyState keys = KeyState::any;

  double ratio = 0.2;
  index_t history = 8;

  constexpr auto pipeline() const {
    const prim::NearShare near{ratio};
    return Pipeline{Tokens{},
                    DrawnMass{near, history},
                    NoQuery{},
                    PlainScore{},
                    ByHeads{Heads::all_sum},
                    TopNear{{near}},
                    KeepNear{near},
                    EveryCall{},
                    Aggregate::last,
                    0,
                    Positions::stored,
                    1};
  }
  Status validate(const CacheShape&) const {
    return ratio > 0.0 && ratio <= 1.0 && history >= 1 && history <= (index_t{1} << 31) ? Status::ok : Status::invalid_argument;
  }
};

static_assert(check_retrieval_policy<AlisaWindow, Cpu>());

}  // namespace kvcondense::retrieve
