#pragma once

#include <kvcondense/retrieve/blocks/keep.hpp>
#include <kvcondense/retrieve/blocks/key_graph.hpp>
#include <kvcondense/retrieve/blocks/partition.hpp>
#include <kvcondense/retrieve/blocks/query.hpp>
#include <kvcondense/retrieve/blocks/reduce.hpp>
#include <kvcondense/retrieve/blocks/schedule.hpp>
#include <kvcondense/retrieve/blocks/scorer.hpp>
#include <kvcondense/retrieve/pipeline.hpp>
#include <kvcondense/retrieve/policy.hpp>

namespace kvcondense::retrieve {

/// Reads the first tokens, the newest, and those that a walk over a graph of keys finds nearest to the query.
///
/// Idea     a nearest-neighbour graph reaches the few keys that matter after looking at a small part of all; walks begin at keys
///          that the prompt's own queries attended to, since queries do not lie among keys.
/// Source   Liu et al., RetrievalAttention, arXiv:2409.10516; the graph is this library's, after Chen et al., RoarGraph,
///          arXiv:2408.08933.
/// Needs    keys as attention compares them, any position stage; a prompt, and the queries of the step that ends it: before one
///          has ended everything is read.
/// Shapes   per KV head 2 degree links per slot, `hubs` queries with hub_keys keys each; a selection per query head.
/// Cost     8 degree bytes of index per slot; a step looks at the keys that its walk visits (at most 8192), once, and attends to
///          sinks + local + tokens slots. A new slot is one more walk; the end of the first prompt looks at all keys once per hub,
///          and walks once per slot. Nothing is sublinear after an eviction: the graph is made anew from the first slot that left.
/// Numbers  score = inner product, float32. A slot links to the `degree` best earlier keys that a walk with its own key finds, and
///          back from each, first come. A walk keeps the `beam` best places, opens the best that is not open yet, and ends when all
///          are; the `tokens` best it saw are read. ReadCounts::units_scored is what walks visited. Ties keep the slot in front;
///          NaN ranks last.
/// Differs  the original builds one graph after the prompt; here tokens are inserted as they come, the same whatever chunks they
///          came in.
/// Errors   invalid_argument unless 1 <= degree <= 64, 1 <= beam <= 256, tokens >= 1, 1 <= hubs <= 1024, 1 <= hub_keys <= 256, sinks
///          and local not negative.
struct RetrievalAttention {
  static constexpr Descriptor about{"retrieval_attention", Stage::retrieve, "arXiv:2409.10516"};
  static constexpr KeyState keys = KeyState::rotated;

  index_t tokens = 100;
  index_t sinks = 128;
  index_t local = 512;
  index_t degree = 16;
  index_t beam = 128;
  index_t hubs = 64;
  index_t hub_keys = 8;

  constexpr auto pipeline() const {
    return Pipeline{Tokens{},
                    KeyGraph{degree, beam, hubs, hub_keys},
                    EachQuery{},
                    PlainScore{},
                    ByHeads{Heads::each},
                    TopVisited{tokens},
                    KeepEnds{sinks, local},
                    EveryCall{},
                    Aggregate::max};
  }
  Status validate(const CacheShape&) const {
    constexpr index_t most = index_t{1} << 31;
    const bool good = degree >= 1 && degree <= 64 && beam >= 1 && beam <= 256 && tokens >= 1 && tokens <= most && hubs >= 1 && hubs <= 1024 &&
                      hub_keys >= 1 && hub_keys <= 256 && sinks >= 0 && sinks <= most && local >= 0 && local <= most;
    return good ? Status::ok : Status::invalid_argument;
  }
};

static_assert(check_retrieval_policy<RetrievalAttention, Cpu>());

}  // namespace kvcondense::retrieve
