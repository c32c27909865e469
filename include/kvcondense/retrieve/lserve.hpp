#pragma once

#include <algorithm>

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

/// Reads pages by the bounds of their parts, and goes on reading them for a few steps.
///
/// Idea     bounds over short parts are tighter than over a long page, and queries that follow each other look at the
///          same pages.
/// Source   Yang et al., LServe, MLSys 2025, arXiv:2502.14866; mit-han-lab/omniserve.
/// Needs    keys as attention compares them, any position stage; the queries of every step.
/// Shapes   per KV head and part two rows [head_dim] in the cache's dtype; a selection per query head, or with `heads`
///          one per KV head.
/// Cost     4 head_dim / part bytes of index per slot in 16 bits; the index is read twice every `interval` steps, by the
///          call of `attend` that chooses and by its step, which keeps the choice.
/// Numbers  a part's score as `Quest`'s; a page's is the largest of its parts. max(3, tokens / page) pages, the last
///          among them, which is always read, as is all that came since. A step chooses when the length before it is a
///          multiple of `interval`; after an eviction, a rollback behind the choice or a range removed the next call
///          does. Ties keep the page in front; NaN ranks last.
/// Differs  streaming heads are an eviction stage, where their memory comes back: duo_attention + lserve. Scores are
///          float32, the original's half.
/// Errors   invalid_argument unless page is a multiple of part >= 1, tokens >= page, interval >= 1.
struct LServe {
  static constexpr Descriptor about{"lserve", Stage::retrieve, "arXiv:2502.14866"};
  static constexpr KeyState keys = KeyState::rotated;

  index_t page = 64;
  index_t part = 16;
  index_t tokens = 4096;
  index_t interval = 4;
  Heads heads = Heads::each;

  constexpr auto pipeline() const {
    return Pipeline{Pages{page},     MinMax{part},      EachQuery{},       PlainScore{},
                    ByHeads{heads},  TopUnits{pages() - 1}, KeepEnds{0, 1}, EveryTokens{interval}};
  }
  Status validate(const CacheShape&) const {
    constexpr index_t most = index_t{1} << 31;
    const bool good = part >= 1 && page >= part && page <= most && page % part == 0 && tokens >= page && tokens <= most && interval >= 1;
    return good ? Status::ok : Status::invalid_argument;
  }

  /// Pages that a selection reads where a head has enough of them.
  constexpr index_t pages() const { return std::max<index_t>(3, tokens / page); }
  /// Where block `block` of a streaming head lies in a ring of `sinks + local` blocks: the sinks stay in place.
  static constexpr index_t ring_slot(index_t block, index_t sinks, index_t local) {
    return block < sinks + local ? block : sinks + (block - sinks) % local;
  }
};

static_assert(check_retrieval_policy<LServe, Cpu>());

}  // namespace kvcondense::retrieve
