#pragma once

#include <algorithm>
#include <cstddef>

#include <kvcondense/backend/cuda/expected_attention.cuh>
#include <kvcondense/backend/cuda/retaining_head.cuh>
#include <kvcondense/core/shape.hpp>
#include <kvcondense/core/workspace.hpp>
#include <kvcondense/evict/blocks/expected_mass.hpp>
#include <kvcondense/evict/blocks/frozen.hpp>
#include <kvcondense/evict/blocks/then.hpp>

namespace kvcondense::cache {

/// Scratch that the words of a block of evictions take on CUDA beyond what the block plans, which is what those of the CPU take. `slots`: of a
/// head, at most; `tokens`: of a step.
template <class Block>
struct CudaWordBytes {
  static std::size_t of(const Block&, const CacheShape&, index_t, index_t) { return 0; }
};
/// Of moments of queries: a turned copy for every query head, and its logits.
template <>
struct CudaWordBytes<evict::ExpectedMass> {
  static std::size_t of(const evict::ExpectedMass&, const CacheShape& shape, index_t slots, index_t) {
    return prim::ExpectedAttention<Cuda>::workspace_bytes(shape.q_heads, shape.head_dim, slots);
  }
};
/// Of a retaining head: what lies between its layers.
template <>
struct CudaWordBytes<evict::Frozen<evict::RetainingScore>> {
  static std::size_t of(const evict::Frozen<evict::RetainingScore>& block, const CacheShape&, index_t, index_t tokens) {
    return prim::RetainingHead<Cuda>::workspace_bytes(tokens, block.from.weights_in.columns);
  }
};
/// Of two blocks, one after the other.
template <class A, class C>
struct CudaWordBytes<evict::Then<A, C>> {
  static std::size_t of(const evict::Then<A, C>& block, const CacheShape& shape, index_t slots, index_t tokens) {
    return std::max(CudaWordBytes<A>::of(block.base, shape, slots, tokens), CudaWordBytes<C>::of(block.next, shape, slots, tokens));
  }
};

/// What a pipeline's blocks and their words take.
template <class Pipeline>
std::size_t cuda_pipeline_bytes(const Pipeline& p, const CacheShape& shape, index_t slots, index_t total, index_t tokens) {
  return p.workspace_bytes(shape, total) + std::max(CudaWordBytes<decltype(p.source)>::of(p.source, shape, slots, tokens),
                                                    CudaWordBytes<decltype(p.pool)>::of(p.pool, shape, slots, tokens));
}

}  // namespace kvcondense::cache
