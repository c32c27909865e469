#pragma once

#include <kvcondense/retrieve/blocks/keep.hpp>
#include <kvcondense/retrieve/blocks/partition.hpp>
#include <kvcondense/retrieve/blocks/query.hpp>
#include <kvcondense/retrieve/blocks/reduce.hpp>
#include <kvcondense/retrieve/blocks/representative_keys.hpp>
#include <kvcondense/retrieve/blocks/schedule.hpp>
#include <kvcondense/retrieve/blocks/scorer.hpp>
#include <kvcondense/retrieve/blocks/select.hpp>
#include <kvcondense/retrieve/pipeline.hpp>
#include <kvcondense/retrieve/policy.hpp>

namespace kvcondense::retrieve {

/// Reads the first tokens, a window of the newest, and the blocks behind it whose busiest tokens meet the query, at one distance.
///
/// Idea     a model of a short context reads a long one through a window, and remembers blocks by the tokens that drew
///          attention while they were in it; what is behind the window is read as if it stood at its far end.
/// Source   Xiao et al., InfLLM, NeurIPS 2024, arXiv:2402.04617; thunlp/InfLLM.
/// Needs    raw keys (`reindex` or `rerotate`); the queries of every step, of all of its tokens; KV heads of equal length (no
///          eviction that differs between heads).
/// Shapes   per block and query head one row [head_dim] in the cache's dtype, and per slot and query head a number; one
///          selection for all heads of a layer.
/// Cost     (2 head_dim / block + 4) bytes of index per slot and query head in 16 bits. A call reads the index, the first
///          `init` and the newest `local` slots and the blocks; a step reads the keys of the first and the newest two times more.
/// Numbers  blocks begin behind the first `init` slots and compete once they are whole and out of the window. In every step a
///          slot of a query's window gets the query head's share of attention, in a softmax over the first `init`, the window and
///          what else came with the step; a block's row is the mean raw key of the `representatives` slots with the largest sums.
///          Score = sum over query heads of its row times the query turned by `local`, mean over the call's tokens, float32.
///          Calls of up to `chunk` query tokens choose; longer ones read all. In every call a slot that is farther than `local`
///          from a query is read at that distance. Ties keep the earlier slot and block; NaN ranks last.
/// Differs  shares are of the first slots and the window, the original's also of the blocks that were retrieved. What lies
///          between the last whole block and the window is read; the original leaves it out.
/// Errors   invalid_argument unless block >= 1, blocks >= 1, init >= 0, local >= 1, 1 <= representatives <= 64, 1 <= chunk <= 4096;
///          incompatible with a position stage that stores rotated keys; not_supported in a call where KV heads hold different
///          numbers of slots.
struct InfLlm {
  static constexpr Descriptor about{"infllm", Stage::retrieve, "arXiv:2402.04617"};
  static constexpr KeyState keys = KeyState::raw;

  index_t block = 128;
  index_t blocks = 16;
  index_t init = 128;
  index_t local = 4096;
  index_t representatives = 4;
  index_t chunk = 512;

  constexpr auto pipeline() const {
    return Pipeline{Pages{block, init},
                    RepresentativeKeys{block, representatives, {init, local}},
                    FarQuery{local},
                    PlainScore{},
                    ByHeads{Heads::all_sum},
                    TopUnits{blocks},
                    KeepEnds{init, local},
                    EveryCall{},
                    Aggregate::mean,
                    0,
                    Positions::stored,
                    chunk,
                    0,
                    local};
  }
  Status validate(const CacheShape&) const {
    constexpr index_t most = index_t{1} << 31;
    const bool good = block >= 1 && block <= most && blocks >= 1 && blocks <= most && init >= 0 && init <= most && local >= 1 &&
                      local <= most && representatives >= 1 && representatives <= RepresentativeKeys::most && chunk >= 1 && chunk <= 4096;
    return good ? Status::ok : Status::invalid_argument;
  }
};

static_assert(check_retrieval_policy<InfLlm, Cpu>());

}  // namespace kvcondense::retrieve
