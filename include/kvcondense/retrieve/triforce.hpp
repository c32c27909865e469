#pragma once

#include <kvcondense/retrieve/blocks/keep.hpp>
#include <kvcondense/retrieve/blocks/partition.hpp>
#include <kvcondense/retrieve/blocks/query.hpp>
#include <kvcondense/retrieve/blocks/reduce.hpp>
#include <kvcondense/retrieve/blocks/schedule.hpp>
#include <kvcondense/retrieve/blocks/scorer.hpp>
#include <kvcondense/retrieve/blocks/select.hpp>
#include <kvcondense/retrieve/blocks/unit_rows.hpp>
#include <kvcondense/retrieve/pipeline.hpp>
#include <kvcondense/retrieve/policy.hpp>

namespace kvcondense::retrieve {

/// Reads chunks of the prompt that its last query chose, and keeps to them: the cache of a drafting pass.
///
/// Idea     drafts may err, so a draft reads a small fixed part of the cache; new tokens take the place of the chunks
///          that were chosen last.
/// Source   Sun et al., TriForce, COLM 2024, arXiv:2404.11912; Infini-AI-Lab/TriForce.
/// Needs    keys as attention compares them, any position stage; the queries of the step that ends a prompt.
/// Shapes   per KV head and chunk one row [head_dim] in the cache's dtype; a selection per query head.
/// Cost     2 head_dim / chunk bytes of index per slot in 16 bits; the index is read when a prompt ends, not in steps.
/// Numbers  score = q . mean key, float32, q the prompt's last query. Chunk 0, the best tokens / chunk - 1 others in the
///          order of scores, what is left of the prompt behind its last whole chunk, and all tokens since: those take
///          slots from the end of that order, until only chunk 0 and they are read. `choose_anew` and every prompt
///          choose again; so does the next call after an eviction. A fork of the cache with another recipe verifies:
///          drafts that are refused are truncated. Ties keep the chunk in front; NaN ranks last.
/// Errors   invalid_argument unless chunk >= 1 and tokens >= 2 chunk.
struct TriForce {
  static constexpr Descriptor about{"triforce", Stage::retrieve, "arXiv:2404.11912"};
  static constexpr KeyState keys = KeyState::rotated;

  index_t chunk = 8;
  index_t tokens = 4096;

  constexpr auto pipeline() const {
    return Pipeline{Pages{chunk},          MeanKey{chunk},
                    EachQuery{},           PlainScore{},
                    ByHeads{Heads::each},  RankedUnits{tokens / chunk - 1, tokens / chunk * chunk - chunk},
                    KeepGenerated{chunk},  WhenAsked{},
                    Aggregate::last};
  }
  Status validate(const CacheShape&) const {
    constexpr index_t most = index_t{1} << 31;
    const bool good = chunk >= 1 && chunk <= most && tokens <= most && tokens >= 2 * chunk;
    return good ? Status::ok : Status::invalid_argument;
  }
};

static_assert(check_retrieval_policy<TriForce, Cpu>());

}  // namespace kvcondense::retrieve
