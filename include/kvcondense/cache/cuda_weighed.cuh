#pragma once

#include <algorithm>

#include <kvcondense/backend/cuda/drawn_slots.cuh>
#include <kvcondense/backend/cuda/metric_codes.cuh>
#include <kvcondense/backend/cuda/sign_hashes.cuh>
#include <kvcondense/backend/cuda/slot_codes.cuh>
#include <kvcondense/backend/cuda/unit_biases.cuh>
#include <kvcondense/backend/cuda/unit_lists.cuh>
#include <kvcondense/cache/cuda_index.cuh>
#include <kvcondense/core/workspace.hpp>
#include <kvcondense/retrieve/blocks/codes.hpp>
#include <kvcondense/retrieve/blocks/drawn_mass.hpp>
#include <kvcondense/retrieve/blocks/hashes.hpp>
#include <kvcondense/retrieve/blocks/marked_blocks.hpp>
#include <kvcondense/retrieve/blocks/representative_keys.hpp>
#include <kvcondense/retrieve/blocks/select.hpp>

// Forms of blocks whose choice is more than a set of units, an order or something to add to logits, and of indexes of raw keys.

namespace kvcondense::cache {

/// Of slots that drew most of attention, which steps tell.
template <>
struct CudaUnitSummary<retrieve::RepresentativeKeys> {
  static constexpr bool there = true;
  static index_t prepared(const retrieve::RepresentativeKeys&, const CacheShape&) { return 0; }
  static Status build(Context<Cuda>& ctx, const retrieve::RepresentativeKeys& summary, const CudaRows& rows, const prim::UnitPlanes& planes, const IndexChange& change,
                      index_t first, index_t last) {
    return prim::DrawnSlots::build(ctx, rows.keys, planes, change.drawn, summary.count, change.from, change.known, first, last);
  }
  static Status score(Context<Cuda>& ctx, const retrieve::RepresentativeKeys&, const retrieve::ReadView<Cuda>& view, const prim::UnitPlanes& planes,
                      const CudaQueryRows& queries, const prim::UnitScores& scores) {
    return prim::DrawnSlots::score(ctx, planes, scores, queries.rows, view.shape.head_dim, queries.most);
  }
};
/// What slots drew is all that there is.
template <>
struct CudaUnitSummary<retrieve::DrawnMass> {
  static constexpr bool there = true;
  static index_t prepared(const retrieve::DrawnMass&, const CacheShape&) { return 0; }
  static Status build(Context<Cuda>&, const retrieve::DrawnMass&, const CudaRows&, const prim::UnitPlanes&, const IndexChange&, index_t, index_t) { return Status::ok; }
  static Status score(Context<Cuda>& ctx, const retrieve::DrawnMass&, const retrieve::ReadView<Cuda>&, const prim::UnitPlanes& planes, const CudaQueryRows& queries,
                      const prim::UnitScores& scores) {
    return prim::DrawnSlots::copy(ctx, {planes.found, planes.found_room}, scores, queries.most);
  }
};
/// The codebook and the metric lie on the device.
template <>
struct CudaUnitSummary<retrieve::VectorCodes> {
  static constexpr bool there = true;
  static index_t prepared(const retrieve::VectorCodes& summary, const CacheShape& shape) { return summary.width(shape); }
  static prim::SlotCodebooks books(const prim::UnitPlanes& planes, index_t dim) { return {planes.found, planes.found_room, 1, 2, planes.found_room / dim, false}; }
  static Status build(Context<Cuda>& ctx, const retrieve::VectorCodes&, const CudaRows& rows, const prim::UnitPlanes& planes, const IndexChange& change, index_t first,
                      index_t last) {
    return prim::MetricCodes::build(ctx, rows.keys, planes, books(planes, rows.keys.dim()), change.from, change.known, first, last);
  }
  static Status score(Context<Cuda>& ctx, const retrieve::VectorCodes&, const retrieve::ReadView<Cuda>& view, const prim::UnitPlanes& planes, const CudaQueryRows& queries,
                      const prim::UnitScores& scores) {
    const prim::SlotCodebooks b = books(planes, view.shape.head_dim);
    const Status s = prim::SlotCodes::tables(ctx, b, queries.rows, queries.count, scores.per_head, view.shape.head_dim, queries.prepared);
    return s == Status::ok ? prim::SlotCodes::score(ctx, planes, b, scores, queries.prepared, queries.most) : s;
  }
};

/// Chosen units of query heads, as kernels take them that make biases.
inline prim::BiasedUnits biased(const retrieve::ReadView<Cuda>& view, const prim::UnitPlanes& planes, const CudaQueryRows& queries, const CudaLists& lists) {
  return {RaggedView<const std::int32_t>(lists.units), lists.count, queries.first, view.heads(), planes.slots, planes.origin, queries.rows};
}
/// Words of slots; the planes lie on the device.
template <>
struct CudaUnitSummary<retrieve::SignHashes> {
  static constexpr bool there = true;
  static index_t prepared(const retrieve::SignHashes& summary, const CacheShape& shape) { return summary.width(shape); }
  static Status build(Context<Cuda>& ctx, const retrieve::SignHashes& summary, const CudaRows& rows, const prim::UnitPlanes& planes, const IndexChange& change, index_t first,
                      index_t last) {
    return prim::SignWords::build(ctx, rows.keys, planes, summary.planes, change.from, change.known, first, last);
  }
  static Status score(Context<Cuda>& ctx, const retrieve::SignHashes& summary, const retrieve::ReadView<Cuda>&, const prim::UnitPlanes& planes, const CudaQueryRows& queries,
                      const prim::UnitScores& scores) {
    const Status s = prim::SignWords::queries(ctx, summary.planes, queries.rows, queries.count, queries.prepared);
    return s == Status::ok ? prim::SignWords::score(ctx, planes, scores, summary.planes.tables, queries.prepared, queries.most) : s;
  }
  static std::size_t fit_bytes(const retrieve::SignHashes&, const CacheShape&, index_t) { return 0; }
  static Status fit(Context<Cuda>& ctx, const retrieve::SignHashes& summary, const CudaRows& rows, const CacheShape&, HeadIndex at, index_t slots, TensorView<const float, 3>,
                    float* found, const Scratch&) {
    const index_t last = slots - summary.local;
    return prim::SignWords::mean(ctx, rows.keys, at.head, std::min(summary.sinks, last), last, static_cast<double>(std::max<index_t>(1, last - summary.sinks)), found);
  }
};
/// A sample, weighed by chances.
template <>
struct CudaSelect<retrieve::Sampled> {
  static constexpr bool there = true;
  static Status run(Context<Cuda>& ctx, const retrieve::Sampled& select, const retrieve::ReadView<Cuda>& view, const prim::UnitPlanes& planes, const CudaQueryRows& queries,
                    RaggedView<const float> scores, const CudaLists& lists, Scratch&) {
    if (const Status s = prim::SignWords::sample(ctx, scores, lists.units, lists.count); s != Status::ok) return s;
    return prim::SignWords::chances(ctx, *view.keys, planes, biased(view, planes, queries, lists), select.bits, select.tables, queries.most, lists.bias);
  }
};
/// Blocks that weigh what their landmarks do.
template <>
struct CudaSelect<retrieve::GroupedBlocks> {
  static constexpr bool there = true;
  static Status run(Context<Cuda>& ctx, const retrieve::GroupedBlocks& select, const retrieve::ReadView<Cuda>& view, const prim::UnitPlanes& planes,
                    const CudaQueryRows& queries, RaggedView<const float> scores, const CudaLists& lists, Scratch& scratch) {
    if (const Status s = retrieve::TopUnits{select.blocks}.run(ctx, view, scores, lists, scratch); s != Status::ok) return s;
    return prim::UnitBiases::of_blocks(ctx, *view.keys, biased(view, planes, queries, lists), select.tokens, view.shape.softmax_scale, scores.data, std::min(queries.most, select.blocks), lists.bias);
  }
};
/// The order is told where it is asked for.
template <>
struct CudaSelect<retrieve::RankedUnits> {
  static constexpr bool there = true;
  static Status run(Context<Cuda>& ctx, const retrieve::RankedUnits& select, const retrieve::ReadView<Cuda>& view, const prim::UnitPlanes&, const CudaQueryRows&,
                    RaggedView<const float> scores, const CudaLists& lists, Scratch& scratch) {
    const Status s = retrieve::TopUnits{select.units}.run(ctx, view, scores, lists, scratch);
    return s != Status::ok || lists.rank == nullptr ? s : prim::UnitOrder::ranks(ctx, scores, RaggedView<const std::int32_t>(lists.units), lists.count, lists.rank);
  }
};

}  // namespace kvcondense::cache
