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

/// Reads the pages whose keys could agree most with the query, by the range of every channel in a page.
///
/// Idea     the largest and the smallest number of each channel bound every inner product in a page from above:
///          pages whose bound is low need not be read.
/// Source   Tang et al., Quest, ICML 2024, arXiv:2406.10774; mit-han-lab/Quest.
/// Needs    keys as attention compares them; any position stage.
/// Shapes   per KV head and page two rows [head_dim] in the cache's dtype; a selection per query head, or with
///          `heads` one per KV head.
/// Cost     4 head_dim / page bytes of index per slot in 16 bits; a step reads the index and `tokens` slots per
///          selection.
/// Numbers  score = sum over channels of max(q max, q min), float32, never below the largest inner product of the
///          page; bounds are rounded outwards when they are stored. tokens / page pages, the last one among them,
///          which is always read; with `keep_last=false` it competes, and at least three pages are read. Layers
///          below `dense_layers` read all. Several query tokens: the mean of their scores. Ties keep the page in
///          front; NaN ranks last.
/// Differs  one selection for the heads of a group (`heads`) is no part of the paper.
/// Errors   invalid_argument unless page >= 1, tokens >= page, dense_layers >= 0.
struct Quest {
  static constexpr Descriptor about{"quest", Stage::retrieve, "arXiv:2406.10774"};
  static constexpr KeyState keys = KeyState::rotated;

  index_t page = 16;
  index_t tokens = 1024;
  index_t dense_layers = 2;
  Heads heads = Heads::each;
  bool keep_last = true;

  constexpr auto pipeline() const {
    const index_t pages = tokens / page;
    return Pipeline{Pages{page, 0, !keep_last},
                    MinMax{page},
                    EachQuery{},
                    PlainScore{},
                    ByHeads{heads},
                    TopUnits{keep_last ? pages - 1 : std::max<index_t>(3, pages)},
                    KeepEnds{0, keep_last ? 1 : 0},
                    EveryCall{},
                    Aggregate::mean,
                    dense_layers};
  }
  Status validate(const CacheShape&) const {
    constexpr index_t most = index_t{1} << 31;
    const bool good = page >= 1 && page <= most && tokens >= page && tokens <= most && dense_layers >= 0;
    return good ? Status::ok : Status::invalid_argument;
  }
};

static_assert(check_retrieval_policy<Quest, Cpu>());

}  // namespace kvcondense::retrieve
