#pragma once

#include <algorithm>

#include <kvcondense/backend/cuda/unit_biases.cuh>
#include <kvcondense/backend/cuda/unit_lists.cuh>
#include <kvcondense/core/workspace.hpp>
#include <kvcondense/retrieve/blocks/marked_blocks.hpp>
#include <kvcondense/retrieve/blocks/select.hpp>
#include <kvcondense/retrieve/blocks/view.hpp>

// How selectors choose on the device: those that are written over words run as they are, the others say here what kernels they start.

namespace kvcondense::cache {

/// Chosen units on the device, counted from the first candidate of a head.
struct CudaLists : retrieve::UnitLists {
  std::int32_t* rank = nullptr;  ///< like units: places in the order of scores; null: nobody asks
};

/// What a selector may look at: the scores of every candidate, a row per row of selection, and the queries of the call.
struct CudaScores {
  RaggedView<const float> scores;
  TensorView<const float, 3> queries;
  const index_t* first = nullptr;  ///< per KV head: the first candidate
  index_t size = 1, origin = 0;    ///< slots of a unit, and where units begin
};

/// Units that a row chooses at most of so many candidates.
template <class Select>
index_t most_chosen(const Select& select, const retrieve::ReadView<Cuda>& view, index_t head, index_t candidates) {
  if constexpr (requires { select.budget(view, head); }) return std::min(candidates, select.budget(view, head));
  else return candidates;
}

template <class Select>
Status select_units(Context<Cuda>& ctx, const Select& select, const retrieve::ReadView<Cuda>& view, const CudaScores& from, const CudaLists& lists,
                    Scratch& scratch) {
  return select.run(ctx, view, from.scores, lists, scratch);
}

inline prim::BiasedUnits biased_units(const retrieve::ReadView<Cuda>& view, const CudaScores& from, const CudaLists& lists) {
  return {RaggedView<const std::int32_t>(lists.units), lists.count, from.first, view.heads(), from.size, from.origin, from.queries, view.tokens - 1};
}

inline Status select_units(Context<Cuda>& ctx, const retrieve::GroupedBlocks& select, const retrieve::ReadView<Cuda>& view, const CudaScores& from,
                           const CudaLists& lists, Scratch& scratch) {
  if (const Status s = retrieve::TopUnits{select.blocks}.run(ctx, view, from.scores, lists, scratch); s != Status::ok) return s;
  index_t most = 0;
  for (index_t h = 0; h < from.scores.heads; ++h) most = std::max(most, from.scores.length(h));
  return prim::UnitBiases::of_blocks(ctx, *view.keys, biased_units(view, from, lists), select.tokens, view.shape.softmax_scale, from.scores.data,
                                     std::min(most, select.blocks), lists.bias);
}

inline Status select_units(Context<Cuda>& ctx, const retrieve::RankedUnits& select, const retrieve::ReadView<Cuda>& view, const CudaScores& from, const CudaLists& lists,
                           Scratch& scratch) {
  const Status s = retrieve::TopUnits{select.units}.run(ctx, view, from.scores, lists, scratch);
  if (s != Status::ok || lists.rank == nullptr) return s;
  return prim::UnitOrder::ranks(ctx, from.scores, RaggedView<const std::int32_t>(lists.units), lists.count, lists.rank);
}

}  // namespace kvcondense::cache
