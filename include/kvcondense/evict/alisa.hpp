#pragma once

#include <kvcondense/core/backend.hpp>
#include <kvcondense/core/policy.hpp>
#include <kvcondense/core/shape.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/evict/blocks/pool.hpp>
#include <kvcondense/evict/blocks/select.hpp>
#include <kvcondense/evict/blocks/sparse_window.hpp>
#include <kvcondense/evict/blocks/trigger.hpp>
#include <kvcondense/evict/pipeline.hpp>
#include <kvcondense/evict/policy.hpp>

namespace kvcondense::evict {

/// Keeps the newest tokens, and as many of the others: those that the newest queries of all heads look at.
///
/// Idea     half of what attention needs is near; the other half is wherever the same few queries look, and
///          moves with them.
/// Source   sparse window attention of ALISA, arXiv:2403.17312; there is no code of the authors.
/// Needs    the queries of every step; heads of one length.
/// Shapes   queries [q_heads, tokens, head_dim], keys and scores [kv_heads, slots]; one kept set per layer.
/// Cost     when a prompt ends and at every step after it up to two reads of all keys for every 32 query rows of
///          a head, and slots * 4 bytes of workspace; `every(alisa(history=4), tokens=256)` does it once in 256,
///          with few rows. The queries are history * q_heads * head_dim * 4 bytes per layer. No state per slot.
/// Numbers  k = round(ratio * tokens seen / 2), halves to even, at least 1: the newest k stay, and of the others
///          the k with the largest sum of probabilities over all query heads and the newest min(k, history)
///          queries; float32, softmax over the slots that are there. Ties keep the smaller slot, NaN leaves
///          first.
/// Differs  what is not chosen leaves for good, for who wants its memory. The paper chooses anew at every step from
///          a full cache: that is retrieve/alisa_window.hpp; parts of it lie elsewhere, or are computed again: that
///          is storage/alisa_placement.hpp. No more than `history` queries are remembered.
/// Errors   invalid_argument unless 0 < ratio <= 1 and history >= 1; not_supported in a step whose heads hold
///          different numbers of slots.
struct Alisa {
  static constexpr Descriptor about{"alisa", Stage::evict, "arXiv:2403.17312"};
  static constexpr Inputs needs = Input::queries;

  double ratio = 0.2;
  index_t history = 64;

  constexpr auto pipeline() const {
    const NearShare near{ratio};
    return Pipeline{NearQueryMass{near, history},
                    NoPool{},
                    Near{near},
                    NearAndFar{near},
                    TopK{},
                    PrefillOnceAndEveryStep{}};
  }
  Status validate(const CacheShape&) const {
    return ratio > 0.0 && ratio <= 1.0 && history >= 1 ? Status::ok : Status::invalid_argument;
  }
};

static_assert(check_eviction_policy<Alisa, Cpu>());

}  // namespace kvcondense::evict
