#pragma once

#include <algorithm>

#include <kvcondense/backend/cuda/channel_pages.cuh>
#include <kvcondense/backend/cuda/key_clusters.cuh>
#include <kvcondense/backend/cuda/partial_columns.cuh>
#include <kvcondense/backend/cuda/slot_codes.cuh>
#include <kvcondense/backend/cuda/top_k.cuh>
#include <kvcondense/cache/cuda_index.cuh>
#include <kvcondense/core/workspace.hpp>
#include <kvcondense/retrieve/blocks/channels.hpp>
#include <kvcondense/retrieve/blocks/clusters.hpp>
#include <kvcondense/retrieve/blocks/codes.hpp>
#include <kvcondense/retrieve/blocks/partial_rows.hpp>

// Forms of blocks whose index holds more than numbers per unit: channels one by one beside the mean of all values, and codes by what a prompt taught.

namespace kvcondense::cache {

/// Keys channel by channel.
template <>
struct CudaUnitSummary<retrieve::ChannelPages> {
  static constexpr bool there = true;
  static index_t prepared(const retrieve::ChannelPages&, const CacheShape&) { return 0; }
  static Status build(Context<Cuda>& ctx, const retrieve::ChannelPages&, const CudaRows& rows, const prim::UnitPlanes& planes, const IndexChange& change, index_t first,
                      index_t last) {
    return prim::ChannelPages::build(ctx, rows.keys, rows.values, planes, change.from, change.known, first, last);
  }
  static Status score(Context<Cuda>& ctx, const retrieve::ChannelPages&, const retrieve::ReadView<Cuda>& view, const prim::UnitPlanes& planes, const CudaQueryRows& queries,
                      const prim::UnitScores& scores) {
    return prim::ChannelPages::score(ctx, planes, scores, queries.rows, view.shape.head_dim, queries.most);
  }
};
/// The largest channels of every query.
template <>
struct CudaQuery<retrieve::TopChannels> {
  static constexpr bool there = true;
  static Status run(Context<Cuda>& ctx, const retrieve::TopChannels& query, TensorView<const float, 3> queries, index_t token, index_t, float* out) {
    return prim::ChannelPages::queries(ctx, queries, token, query.channels, out);
  }
};
/// What part of attention the chosen ones have follows from the last query token's rows.
template <>
struct CudaSelect<retrieve::TopWithShare> {
  static constexpr bool there = true;
  static Status run(Context<Cuda>& ctx, const retrieve::TopWithShare& select, const retrieve::ReadView<Cuda>& view, const prim::UnitPlanes&, const CudaQueryRows& queries,
                    RaggedView<const float> scores, const CudaLists& lists, Scratch& scratch) {
    auto* total = scratch.take_steering<index_t>(scores.heads);
    auto* always = scratch.take_steering<prim::Ends>(scores.heads);
    if (total == nullptr || always == nullptr) return Status::workspace_too_small;
    for (index_t r = 0; r < scores.heads; ++r) {
      total[r] = select.budget(view, r * view.heads() / scores.heads);
      always[r] = {0, std::min(select.local, total[r])};
    }
    const Status s = prim::TopK<Cuda>::run(ctx, scores, always, total, lists.units, lists.count);
    if (s != Status::ok) return s;
    return prim::ChannelPages::share(ctx, *view.keys, {scores, RaggedView<const std::int32_t>(lists.units), lists.count, queries.rows}, view.slots, lists.share);
  }
};

/// As many slots of every row as the mean row has near its best.
template <>
struct CudaSelect<retrieve::WithinAlpha> {
  static constexpr bool there = true;
  static Status run(Context<Cuda>& ctx, const retrieve::WithinAlpha& select, const retrieve::ReadView<Cuda>& view, const prim::UnitPlanes&, const CudaQueryRows&,
                    RaggedView<const float> scores, const CudaLists& lists, Scratch& scratch) {
    auto* most = scratch.take_steering<index_t>(scores.heads);
    auto* total = scratch.take<index_t>(scores.heads);
    if (most == nullptr || total == nullptr) return Status::workspace_too_small;
    for (index_t r = 0; r < scores.heads; ++r) most[r] = select.budget(view, r * view.heads() / scores.heads);
    const Status s = prim::PartialColumns::within(ctx, scores, static_cast<float>(select.alpha) / view.shape.softmax_scale, most, total);
    return s == Status::ok ? prim::TopK<Cuda>::run(ctx, scores, nullptr, total, lists.units, lists.count) : s;
  }
};

/// Codes of parts of keys; their centroids lie where a prompt's lessons do.
template <>
struct CudaUnitSummary<retrieve::ProductCodes> {
  static constexpr bool there = true;
  static index_t prepared(const retrieve::ProductCodes& summary, const CacheShape& shape) { return summary.width(shape); }
  static prim::SlotCodebooks books(const retrieve::ProductCodes& summary, const prim::UnitPlanes& planes) {
    return {planes.found, planes.found_room, summary.parts, summary.code_bytes(), summary.entries(), false};
  }
  static Status build(Context<Cuda>& ctx, const retrieve::ProductCodes& summary, const CudaRows& rows, const prim::UnitPlanes& planes, const IndexChange& change, index_t first,
                      index_t last) {
    return prim::SlotCodes::build(ctx, rows.keys, planes, books(summary, planes), change.from, change.known, first, last);
  }
  static Status score(Context<Cuda>& ctx, const retrieve::ProductCodes& summary, const retrieve::ReadView<Cuda>& view, const prim::UnitPlanes& planes,
                      const CudaQueryRows& queries, const prim::UnitScores& scores) {
    const prim::SlotCodebooks b = books(summary, planes);
    const Status s = prim::SlotCodes::tables(ctx, b, queries.rows, queries.count, scores.per_head, view.shape.head_dim, queries.prepared);
    return s == Status::ok ? prim::SlotCodes::score(ctx, planes, b, scores, queries.prepared, queries.most) : s;
  }
  static prim::KMeansPlan plan(const retrieve::ProductCodes& summary, index_t part) { return {summary.entries(), summary.iterations, static_cast<std::uint64_t>(part)}; }
  static std::size_t fit_bytes(const retrieve::ProductCodes& summary, const CacheShape& shape, index_t slots) {
    return Scratch::align + Scratch::bytes_for<float>(slots * shape.head_dim) + prim::KMeans<Cuda>::fit_bytes(slots, plan(summary, 0));
  }
  static Status fit(Context<Cuda>& ctx, const retrieve::ProductCodes& summary, const CudaRows& rows, const CacheShape& shape, HeadIndex at, index_t slots,
                    TensorView<const float, 3>, float* found, Scratch scratch) {
    const index_t dim = shape.head_dim, part = dim / summary.parts;
    float* keys = scratch.take<float>(slots * dim);
    if (keys == nullptr) return Status::workspace_too_small;
    Status s = prim::SlotCodes::rows(ctx, rows.keys, at.head, slots, false, keys);
    for (index_t p = 0; p < summary.parts && s == Status::ok; ++p) {
      Scratch own = scratch;
      s = prim::KMeans<Cuda>::fit(ctx, {keys + p * part, slots, dim}, part, plan(summary, p), found + p * summary.entries() * part, own);
    }
    return s;
  }
};

/// Labels of clusters; a score is that of the cluster.
template <>
struct CudaUnitSummary<retrieve::KeyClusters> {
  using Blocks = retrieve::KeyClusters;
  static constexpr bool there = true;
  static index_t prepared(const Blocks& summary, const CacheShape& shape) { return summary.width(shape); }
  static prim::SlotCodebooks books(const prim::UnitPlanes& planes) { return {planes.found, planes.found_room, 1, 2, Blocks::most, true}; }
  static Status build(Context<Cuda>& ctx, const Blocks&, const CudaRows& rows, const prim::UnitPlanes& planes, const IndexChange& change, index_t first, index_t last) {
    return prim::SlotCodes::build(ctx, rows.keys, planes, books(planes), change.from, change.known, first, last);
  }
  static Status score(Context<Cuda>& ctx, const Blocks&, const retrieve::ReadView<Cuda>& view, const prim::UnitPlanes& planes, const CudaQueryRows& queries,
                      const prim::UnitScores& scores) {
    const Status s = prim::KeyClusters::tables(ctx, books(planes), queries.rows, queries.count, scores.per_head, view.shape.head_dim, view.shape.softmax_scale,
                                               Blocks::most, queries.prepared);
    return s == Status::ok ? prim::SlotCodes::score(ctx, planes, books(planes), scores, queries.prepared, queries.most) : s;
  }
  static constexpr index_t lead() { return prim::ClusterHead::lead; }
  static prim::ClusterPlan plan(const Blocks& summary, index_t slots) {
    return {summary.clusters(slots), summary.coarse_clusters(slots), summary.iterations, summary.observe, summary.quantile, summary.coarse_quantile};
  }
  /// Whether there are keys to make clusters of.
  static bool learns_from(const Blocks& summary, index_t slots, index_t queries) { return slots > summary.observe && queries > 0; }
  static std::size_t fit_bytes(const Blocks& summary, const CacheShape& shape, index_t slots) {
    return prim::KeyClusters::fit_bytes(plan(summary, slots), slots, shape.head_dim, shape.group());
  }
  static Status fit(Context<Cuda>& ctx, const Blocks& summary, const CudaRows& rows, const CacheShape& shape, HeadIndex at, index_t slots, TensorView<const float, 3> queries,
                    float* found, const Scratch& scratch) {
    return prim::KeyClusters::fit(ctx, rows.keys, at.head, slots, plan(summary, slots), queries, shape.softmax_scale, found, scratch);
  }
  /// Kernels find their way by these numbers.
  static bool found_good(std::span<const float> found, index_t dim) {
    retrieve::FoundClusters out;
    if (!retrieve::FoundClusters::read(const_cast<float*>(found.data()), static_cast<index_t>(found.size()), dim, out)) return false;
    return std::all_of(out.counts(), out.counts() + out.fine, [](float n) { return n >= 0.0f && n <= 2e9f; });
  }
};
/// Thresholds stand in front of what a prompt taught.
template <>
struct CudaSelect<retrieve::AboveThreshold> {
  static constexpr bool there = true;
  static Status run(Context<Cuda>& ctx, const retrieve::AboveThreshold& select, const retrieve::ReadView<Cuda>& view, const prim::UnitPlanes& planes, const CudaQueryRows&,
                    RaggedView<const float> scores, const CudaLists& lists, Scratch&) {
    return prim::KeyClusters::above(ctx, scores, CudaUnitSummary<retrieve::KeyClusters>::books(planes), view.heads(), static_cast<float>(select.threshold), lists.units,
                                    lists.count);
  }
};

}  // namespace kvcondense::cache
