#pragma once

#include <kvcondense/core/backend.hpp>
#include <kvcondense/core/shape.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/core/step_view.hpp>
#include <kvcondense/core/view.hpp>
#include <kvcondense/core/workspace.hpp>
#include <kvcondense/evict/pipeline.hpp>
#include <kvcondense/prim/chunk_pool.hpp>
#include <kvcondense/prim/chunk_top_k.hpp>

namespace kvcondense::evict {

/// Pool: every candidate gets the sum or mean of its chunk of neighbours, in slot order.
struct Chunked {
  index_t chunk = 10;
  prim::ChunkReduce reduce = prim::ChunkReduce::mean;

  std::size_t workspace_bytes(const CacheShape&, index_t) const { return 0; }

  template <Backend B>
  Status run(Context<B>& ctx, const StepView<B>&, const Protected* shield, RaggedView<float> scores,
             Scratch&) const {
    return prim::ChunkPool<B>::run(ctx, shield, reduce, chunk, scores);
  }
};

/// Select: the protected slots, then as many whole chunks of the others as the budget has room for; a
/// last chunk that is shorter counts as a whole one.
struct ChunkTopK {
  index_t chunk = 10;

  std::size_t workspace_bytes(const CacheShape&, index_t) const { return 0; }

  template <Backend B>
  Status run(Context<B>& ctx, const StepView<B>&, RaggedView<const float> scores,
             const Protected* shield, const KeepSet& keep, Scratch&) const {
    return prim::ChunkTopK<B>::run(ctx, scores, shield, chunk, keep.budget, keep.slots, keep.count, keep.nan);
  }
};

}  // namespace kvcondense::evict
