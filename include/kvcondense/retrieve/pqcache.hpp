#pragma once

#include <kvcondense/retrieve/blocks/codes.hpp>
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

/// Reads the tokens whose key, as product quantization has it, draws most attention of a group.
///
/// Idea     a key cut into parts, each named by its nearest centroid, is a few bits long, and its inner product with a query
///          is a sum of table entries.
/// Source   Zhang et al., PQCache, SIGMOD 2025, arXiv:2407.12820; HugoZHL/PQCache.
/// Needs    keys as attention compares them, any position stage; a prompt: before one has ended everything is read.
/// Shapes   per KV head 2^bits centroids [head_dim] and `parts` codes per slot; one selection per KV head.
/// Cost     parts bytes of index per slot (twice that above 8 bits); a step reads the codes and the share of slots. The end
///          of the first prompt runs k-means: (iterations + 2^bits) passes over the keys of a head.
/// Numbers  of the slots behind `sinks` the share `keep` is read: its part `recent` are the newest, the others have the
///          largest sum over the group of softmax (over candidates) of the approximate logit; several query tokens: their
///          mean. Centroids are float32 and stay: later slots are coded with them. Ties keep the slot in front; NaN ranks
///          last.
/// Errors   invalid_argument unless parts divides head_dim, 1 <= bits <= 12, iterations >= 1, sinks >= 0 and the shares lie
///          in [0, 1].
struct PqCache {
  static constexpr Descriptor about{"pqcache", Stage::retrieve, "arXiv:2407.12820"};
  static constexpr KeyState keys = KeyState::rotated;

  index_t parts = 2;
  index_t bits = 6;
  index_t iterations = 10;
  double keep = 0.2;
  double recent = 0.5;
  index_t sinks = 32;

  constexpr auto pipeline() const {
    return Pipeline{Tokens{},
                    ProductCodes{parts, bits, iterations},
                    EachQuery{},
                    SoftmaxScore{},
                    ByHeads{Heads::group_sum},
                    TopShare{{keep * (1.0 - recent), sinks}},
                    KeepShare{sinks, keep * recent},
                    EveryCall{}};
  }
  Status validate(const CacheShape& shape) const {
    const bool shares = keep >= 0.0 && keep <= 1.0 && recent >= 0.0 && recent <= 1.0;
    const bool sizes = parts >= 1 && shape.head_dim % parts == 0 && bits >= 1 && bits <= 12 && iterations >= 1 && iterations <= 1000 &&
                       sinks >= 0 && sinks <= index_t{1} << 31;
    return shares && sizes ? Status::ok : Status::invalid_argument;
  }
};

static_assert(check_retrieval_policy<PqCache, Cpu>());

}  // namespace kvcondense::retrieve
