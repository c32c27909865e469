#pragma once

#include <kvcondense/retrieve/blocks/keep.hpp>
#include <kvcondense/retrieve/blocks/outliers.hpp>
#include <kvcondense/retrieve/blocks/partition.hpp>
#include <kvcondense/retrieve/blocks/query.hpp>
#include <kvcondense/retrieve/blocks/reduce.hpp>
#include <kvcondense/retrieve/blocks/schedule.hpp>
#include <kvcondense/retrieve/blocks/select.hpp>
#include <kvcondense/retrieve/pipeline.hpp>
#include <kvcondense/retrieve/policy.hpp>

namespace kvcondense::retrieve {

/// Reads the chunks of the prompt whose mean key a query head attends to most, and those that a mean does not describe.
///
/// Idea     keys of neighbours point the same way, so their mean stands for them; the few chunks where they do not are
///          read always.
/// Source   Sun et al., ShadowKV, ICML 2025, arXiv:2410.21465; bytedance/ShadowKV.
/// Needs    keys as attention compares them; any position stage.
/// Shapes   per KV head and chunk one row [head_dim] in the cache's dtype and one float32; one selection per KV head.
/// Cost     2 head_dim / chunk + 4 / chunk bytes of index per slot in 16 bits; a step reads the index, and tokens +
///          chunk (outliers + local_chunks) slots and those generated.
/// Numbers  score = softmax over a prompt's chunks of q . mean key times the softmax scale, float32; the largest over a
///          group's heads, summed over query tokens. The newest `local_chunks` of the prompt with what is left behind the
///          last whole chunk, all generated tokens, and the `outliers` chunks with the smallest cosine between a key
///          and its mean are read always and take no part. Ties keep the chunk in front; NaN ranks last.
/// Differs  outliers are found among the prompt's chunks as they are stored now, not once. Low-rank keys are a stage of
///          their own.
/// Errors   invalid_argument unless chunk >= 1, tokens >= chunk, and no other number is negative.
struct ShadowSelect {
  static constexpr Descriptor about{"shadow_select", Stage::retrieve, "arXiv:2410.21465"};
  static constexpr KeyState keys = KeyState::rotated;

  index_t chunk = 8;
  index_t tokens = 2048;
  index_t outliers = 48;
  index_t local_chunks = 4;

  constexpr auto pipeline() const {
    return Pipeline{Pages{chunk},
                    MeanKeySpread{chunk},
                    EachQuery{},
                    OutlierSoftmax{outliers},
                    ByHeads{Heads::group_max},
                    TopUnits{tokens / chunk + outliers},
                    KeepGenerated{0, local_chunks * chunk},
                    EveryCall{},
                    Aggregate::sum};
  }
  Status validate(const CacheShape&) const {
    constexpr index_t most = index_t{1} << 20;
    const bool good = chunk >= 1 && chunk <= most && tokens >= chunk && tokens <= most * most && outliers >= 0 && outliers <= most &&
                      local_chunks >= 0 && local_chunks <= most;
    return good ? Status::ok : Status::invalid_argument;
  }
};

static_assert(check_retrieval_policy<ShadowSelect, Cpu>());

}  // namespace kvcondense::retrieve
