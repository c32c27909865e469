#pragma once

#include <algorithm>

#include <kvcondense/backend/cuda/key_graph.cuh>
#include <kvcondense/backend/cuda/top_k.cuh>
#include <kvcondense/cache/cuda_index.cuh>
#include <kvcondense/core/workspace.hpp>
#include <kvcondense/retrieve/blocks/key_graph.hpp>

// The form of a graph of keys: its links are the index, its hubs what a prompt taught, its scores what walks saw.

namespace kvcondense::cache {

/// Links between slots.
template <>
struct CudaUnitSummary<retrieve::KeyGraph> {
  using Blocks = retrieve::KeyGraph;
  static constexpr bool there = true;
  static prim::GraphPlan plan(const Blocks& b) { return {b.degree, b.beam, b.hubs, b.hub_keys}; }
  static bool fits(const Blocks& summary) { return prim::KeyGraph::fits(plan(summary)); }
  static index_t prepared(const Blocks&, const CacheShape&) { return 0; }
  static Status build(Context<Cuda>& ctx, const Blocks& summary, const CudaRows& rows, const prim::UnitPlanes& planes, const IndexChange& change, index_t, index_t) {
    return prim::KeyGraph::build(ctx, rows.keys, planes, plan(summary), change.from, change.known);
  }
  /// Before rows are made anew, or left out: none of those that stay may name them.
  static Status forget(Context<Cuda>& ctx, const Blocks& summary, const prim::UnitPlanes& planes, const IndexChange& change, index_t heads, index_t most) {
    return prim::KeyGraph::forget(ctx, planes, plan(summary), change.from, heads, most);
  }
  static Status score(Context<Cuda>& ctx, const Blocks& summary, const retrieve::ReadView<Cuda>& view, const prim::UnitPlanes& planes, const CudaQueryRows& queries,
                      const prim::UnitScores& scores) {
    return prim::KeyGraph::score(ctx, *view.keys, planes, plan(summary), scores, queries.rows, queries.counted);
  }
  static bool learns_from(const Blocks&, index_t slots, index_t queries) { return slots > 0 && queries > 0; }
  static std::size_t fit_bytes(const Blocks&, const CacheShape&, index_t slots) { return prim::KeyGraph::fit_bytes(slots); }
  static Status fit(Context<Cuda>& ctx, const Blocks& summary, const CudaRows& rows, const CacheShape&, HeadIndex at, index_t slots, TensorView<const float, 3> queries,
                    float* found, const Scratch& scratch) {
    return prim::KeyGraph::fit(ctx, rows.keys, at.head, slots, plan(summary), queries, found, scratch);
  }
};
/// The best of what was seen.
template <>
struct CudaSelect<retrieve::TopVisited> {
  static constexpr bool there = true;
  static Status run(Context<Cuda>& ctx, const retrieve::TopVisited& select, const retrieve::ReadView<Cuda>&, const prim::UnitPlanes&, const CudaQueryRows&,
                    RaggedView<const float> scores, const CudaLists& lists, Scratch& scratch) {
    auto* total = scratch.take_steering<index_t>(scores.heads);
    if (total == nullptr) return Status::workspace_too_small;
    std::fill_n(total, scores.heads, select.slots);
    const Status s = prim::TopK<Cuda>::run(ctx, scores, nullptr, total, lists.units, lists.count);
    return s == Status::ok ? prim::KeyGraph::keep_visited(ctx, scores, lists.units, lists.count) : s;
  }
};

}  // namespace kvcondense::cache
