#pragma once

#include <kvcondense/core/backend.hpp>
#include <kvcondense/core/policy.hpp>
#include <kvcondense/core/shape.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/evict/blocks/chunk.hpp>
#include <kvcondense/evict/blocks/then.hpp>
#include <kvcondense/evict/pipeline.hpp>
#include <kvcondense/evict/policy.hpp>

namespace kvcondense::evict {

/// Keeps or drops tokens in chunks of neighbours, by the policy's scores.
///
/// Idea     single tokens shred phrases; what a policy scores is kept with the text around it.
/// Source   ChunkKV, arXiv:2502.00299, as a wrapper; kvpress has one too.
/// Needs    what the policy needs.
/// Shapes   none.
/// Cost     one pass over the scores.
/// Numbers  a chunk's score is the mean or sum of the policy's pooled scores, float32. Chunks are cut from the
///          first slot that may leave; as many whole ones stay as the budget has room for beside protected slots.
///          A last chunk that is shorter counts as a whole one. Ties keep the chunk in front. After earlier
///          evictions neighbours are what stayed, not what was written next to each other.
/// Errors   invalid_argument when chunk is not positive; incompatible over a policy that does not keep single
///          slots by score.
template <class P>
struct InChunks {
  static constexpr Descriptor about{"chunked", Stage::evict, "arXiv:2502.00299"};
  static constexpr Inputs needs = P::needs;

  P policy{};
  index_t chunk = 10;
  prim::ChunkReduce reduce = prim::ChunkReduce::mean;

  constexpr auto pipeline() const {
    const auto p = policy.pipeline();
    return p.with_pool(Then{p.pool, Chunked{chunk, reduce}}).with_select(ChunkTopK{chunk});
  }
  Status validate(const CacheShape& shape) const {
    if (chunk < 1) return Status::invalid_argument;
    return takes_best(policy.pipeline().select) ? policy.validate(shape) : Status::incompatible;
  }
};

template <class P, class... Fields>
InChunks(P, Fields...) -> InChunks<P>;

}  // namespace kvcondense::evict
