#pragma once

#include <kvcondense/core/backend.hpp>
#include <kvcondense/core/policy.hpp>
#include <kvcondense/core/shape.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/evict/blocks/chunk.hpp>
#include <kvcondense/evict/blocks/protect.hpp>
#include <kvcondense/evict/blocks/then.hpp>
#include <kvcondense/evict/blocks/whole_pages.hpp>
#include <kvcondense/evict/pipeline.hpp>
#include <kvcondense/evict/policy.hpp>

namespace kvcondense::evict {

/// Keeps or drops whole pages of slots, by the sum of the policy's scores in each.
///
/// Idea     a page of which one slot stays frees no memory; where whole pages leave, nothing has to be moved.
/// Source   none; paged engines evict so (OpenVINO GenAI's H2O). Over duo_attention with sinks=128 and sparsity=0.5 the
///          head roles of LServe, arXiv:2502.14866, which holds the windows of its streaming heads in pages.
/// Needs    what the policy needs.
/// Shapes   none.
/// Cost     one pass over the scores.
/// Numbers  pages begin at slots 0, page, 2 * page, ... of a head; one that holds a protected slot, or is not full,
///          stays. Of the others as many stay as the budget has room for: up to page - 1 slots of it are free.
///          Sums in float32; ties keep the page in front. `page` is best the cache's page_slots. A policy of windows
///          keeps its first slots and the rest of their pages, and of the newest, from the beginning of a page on, what
///          it protects and at least what the budget has room for.
/// Errors   invalid_argument when page is not positive; incompatible over a policy that neither keeps single
///          slots by score nor a window.
template <class P>
struct PageRound {
  static constexpr Descriptor about{"page_round", Stage::evict, "none"};
  static constexpr Inputs needs = P::needs;

  P policy{};
  index_t page = 64;

  constexpr auto pipeline() const {
    const auto p = policy.pipeline();
    return p.with_pool(Then{p.pool, Chunked{page, prim::ChunkReduce::sum}})
        .with_protect(WholePages{p.protect, page})
        .with_allocate(WholePageBudget{p.allocate, page, keeps_ends(p)})
        .with_select(TopPages{p.select, page});
  }
  Status validate(const CacheShape& shape) const {
    if (page < 1) return Status::invalid_argument;
    const auto p = policy.pipeline();
    return takes_best(p.select) || keeps_ends(p) ? policy.validate(shape) : Status::incompatible;
  }
};

template <class P, class... Fields>
PageRound(P, Fields...) -> PageRound<P>;

}  // namespace kvcondense::evict
