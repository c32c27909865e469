#pragma once

#include <algorithm>
#include <cstddef>
#include <limits>
#include <span>
#include <type_traits>

#include <kvcondense/backend/cuda/drawn_slots.cuh>
#include <kvcondense/backend/cuda/memory.cuh>
#include <kvcondense/backend/cuda/steering.cuh>
#include <kvcondense/backend/cuda/unit_codes.cuh>
#include <kvcondense/backend/cuda/unit_index.cuh>
#include <kvcondense/backend/cuda/unit_scores.cuh>
#include <kvcondense/cache/cuda_select.cuh>
#include <kvcondense/cache/cuda_slot_store.cuh>
#include <kvcondense/core/buffer.hpp>
#include <kvcondense/core/workspace.hpp>
#include <kvcondense/retrieve/blocks/codes.hpp>
#include <kvcondense/retrieve/blocks/group_bound.hpp>
#include <kvcondense/retrieve/blocks/keep.hpp>
#include <kvcondense/retrieve/blocks/outliers.hpp>
#include <kvcondense/retrieve/blocks/partial_rows.hpp>
#include <kvcondense/retrieve/blocks/query.hpp>
#include <kvcondense/retrieve/blocks/reduce.hpp>
#include <kvcondense/retrieve/blocks/representative_keys.hpp>
#include <kvcondense/retrieve/blocks/schedule.hpp>
#include <kvcondense/retrieve/blocks/scorer.hpp>
#include <kvcondense/retrieve/blocks/select.hpp>
#include <kvcondense/retrieve/blocks/unit_rows.hpp>
#include <kvcondense/retrieve/pipeline.hpp>
#include <kvcondense/retrieve/read_all.hpp>

// The index of a layer on the device. Blocks of a retrieval pipeline that are written over words run as they are; how a summary and a
// query transform, which work on one head of the host, are done for all heads of the device is said here.

namespace kvcondense::cache {

/// How a summary is made and scored on the device. One without a rule is the CPU's alone.
template <class UnitSummary>
struct CudaUnitSummary {
  static constexpr bool there = false;
};
/// Bounds per channel.
template <>
struct CudaUnitSummary<retrieve::MinMax> {
  static constexpr bool there = true;
  static constexpr auto rule = prim::IndexRule::bounds;
};
/// Bounds that the group of a KV head shares: stored as bounds are.
template <>
struct CudaUnitSummary<retrieve::GroupMinMax> : CudaUnitSummary<retrieve::MinMax> {};
/// Means.
template <>
struct CudaUnitSummary<retrieve::MeanKey> {
  static constexpr bool there = true;
  static constexpr auto rule = prim::IndexRule::mean;
};
/// Means, and how far keys lie from them.
template <>
struct CudaUnitSummary<retrieve::MeanKeySpread> {
  static constexpr bool there = true;
  static constexpr auto rule = prim::IndexRule::spread;
};
/// Keys of last slots.
template <>
struct CudaUnitSummary<retrieve::LastKey> {
  static constexpr bool there = true;
  static constexpr auto rule = prim::IndexRule::last;
};
/// Of slots that drew most of attention, which steps tell.
template <>
struct CudaUnitSummary<retrieve::RepresentativeKeys> {
  static constexpr bool there = true;
  static constexpr auto rule = prim::IndexRule::representatives;
};
/// The codebook and the metric lie on the device.
template <>
struct CudaUnitSummary<retrieve::VectorCodes> {
  static constexpr bool there = true;
  static constexpr auto rule = prim::IndexRule::codes;
};
/// The basis lies on the device. Its first columns alone: what a prompt teaches is the CPU's.
template <>
struct CudaUnitSummary<retrieve::PartialRows> {
  static constexpr bool there = true;
  static constexpr auto rule = prim::IndexRule::coordinates;
};

/// The same of query transforms. `channels`: see prim::UnitScoring::queries.
template <class Query>
struct CudaQuery {
  static constexpr bool there = false;
};
/// Every query for itself.
template <>
struct CudaQuery<retrieve::EachQuery> {
  static constexpr bool there = true;
  static constexpr auto rule = prim::QueryRule::each;
  static constexpr index_t channels(const retrieve::EachQuery&) { return 0; }
};
/// The same at one distance from all keys, which are raw: where they are turned.
template <>
struct CudaQuery<retrieve::FarQuery> : CudaQuery<retrieve::EachQuery> {
  static constexpr index_t channels(const retrieve::FarQuery&) { return 0; }
};
/// The mean of a group.
template <>
struct CudaQuery<retrieve::GroupMeanQuery> {
  static constexpr bool there = true;
  static constexpr auto rule = prim::QueryRule::mean;
  static constexpr index_t channels(const retrieve::GroupMeanQuery&) { return 0; }
};
/// The channels in which a group is largest.
template <>
struct CudaQuery<retrieve::GroupChannels> {
  static constexpr bool there = true;
  static constexpr auto rule = prim::QueryRule::group_channels;
  static constexpr index_t channels(const retrieve::GroupChannels& q) { return q.channels; }
};

/// Scores in place: by words, or by what the index knows too.
template <class Scorer>
Status rescore(Context<Cuda>& ctx, const Scorer& scorer, const retrieve::ReadView<Cuda>& view, const prim::UnitPlanes&, const prim::UnitScores& scores) {
  return scorer.run(ctx, view, scores.out);
}
inline Status rescore(Context<Cuda>& ctx, const retrieve::OutlierSoftmax& scorer, const retrieve::ReadView<Cuda>& view, const prim::UnitPlanes& planes,
                      const prim::UnitScores& scores) {
  constexpr float inf = std::numeric_limits<float>::infinity();
  Status s = prim::UnitScoring::mark_outliers(ctx, planes, scores, scorer.units, -inf);
  if (s == Status::ok) s = retrieve::SoftmaxScore{}.run(ctx, view, scores.out);
  return s == Status::ok ? prim::UnitScoring::mark_outliers(ctx, planes, scores, scorer.units, inf) : s;
}

/// Whether a block runs words alone, so that where numbers lie is all the same to it.
template <class Block, class... Over>
inline constexpr bool one_of = (std::is_same_v<Block, Over> || ...);

/// Whether blocks of a pipeline, each of which has a form, have one together: outliers are those of an index that knows spreads, and
/// queries which say themselves what meets which bound meet a summary that lets them.
template <class UnitSummary, class Query, class Scorer>
inline constexpr bool cuda_pairs = (!std::is_same_v<Scorer, retrieve::OutlierSoftmax> || std::is_same_v<UnitSummary, retrieve::MeanKeySpread>) &&
                                   std::is_same_v<UnitSummary, retrieve::GroupMinMax> == std::is_same_v<Query, retrieve::GroupChannels>;

/// Whether a cache on the device can retrieve with such a pipeline, or needs not.
template <class Pipeline>
inline constexpr bool cuda_retrieves = std::is_same_v<Pipeline, retrieve::ReadAll::Nothing>;
template <class P, class Su, class Q, class Sc, class R, class Se, class K, class Sd>
inline constexpr bool cuda_retrieves<retrieve::Pipeline<P, Su, Q, Sc, R, Se, K, Sd>> =
    CudaUnitSummary<Su>::there && CudaQuery<Q>::there && cuda_pairs<Su, Q, Sc> && one_of<Sc, retrieve::PlainScore, retrieve::SoftmaxScore, retrieve::OutlierSoftmax> &&
    std::is_same_v<R, retrieve::ByHeads> && one_of<Se, retrieve::TopUnits, retrieve::TopShare, retrieve::GroupedBlocks, retrieve::RankedUnits> &&
    one_of<K, retrieve::KeepEnds, retrieve::KeepShare, retrieve::KeepGenerated> && one_of<Sd, retrieve::EveryCall, retrieve::EveryTokens, retrieve::EveryQuestion, retrieve::WhenAsked>;

/// What of a layer's slots a step changes, as far as an index asks: in steering memory, per head.
struct IndexChange {
  index_t* from = nullptr;   ///< the first slot whose stored form changes, or which no index knew
  index_t* known = nullptr;  ///< slots that rows are made of
  index_t* prompt = nullptr; ///< slots of prompts before the step
  bool device = false;       ///< the device lowers `from` by what leaves
};

/// The index of one layer: planes [heads][room] on the device, and how many slots of each head they know.
class CudaIndex {
 public:
  explicit CudaIndex(MemoryResource<Cuda>& memory) : planes_{SlotStore<std::byte>(memory), SlotStore<std::byte>(memory)}, covered_(heap_memory()) {}

  /// `steering`: what calls of `attend` write for kernels.
  Status make(index_t heads, std::span<std::byte> steering) {
    steering_ = steering.subspan(told_bytes(heads));
    prompt_ = {reinterpret_cast<index_t*>(steering.data()), static_cast<std::size_t>(heads)};
    std::fill(prompt_.begin(), prompt_.end(), index_t{0});
    const Status s = covered_.resize(heads);
    return s == Status::ok ? read_.make() : s;
  }
  /// Of `steering`, what the device tells.
  static std::size_t told_bytes(index_t heads) { return Scratch::bytes_for<index_t>(heads); }
  /// Slots of each head that hold tokens of prompts: told by the device in a step, where a pipeline asks.
  std::span<index_t> prompt() const { return prompt_; }
  index_t covered(index_t head) const { return covered_[head]; }
  bool empty() const {
    return std::all_of(covered_.begin(), covered_.end(), [](index_t n) { return n == 0; });
  }
  std::span<std::byte> steering() const { return steering_; }
  /// Behind the last call of `attend`, which reads `steering`. Such calls change nothing else.
  cuda::Fence& fence() const { return read_; }
  std::size_t bytes() const { return planes_[0].bytes() + planes_[1].bytes(); }

  /// Room for rows of `slots` slots of each head. On refusal nothing changes; where memory grows the stream is waited for.
  template <class Pipeline>
  Status reserve(const Context<Cuda>& ctx, const Pipeline& p, const CacheShape& shape, index_t slots) {
    for (int i = 0; i < 2; ++i) {
      const auto bytes = static_cast<index_t>(p.summary.plane_bytes(shape, i));
      if (bytes == 0) continue;
      const auto old = [&](index_t h) { return p.index_rows(covered_[h]) * bytes; };
      if (const Status s = planes_[i].reserve(ctx, shape.kv_heads, p.index_rows(slots) * bytes, old); s != Status::ok) return s;
    }
    return Status::ok;
  }
  /// Makes the rows of what has changed anew, after `reserve`. `keys`: as they are stored now.
  template <class Pipeline>
  Status refresh(Context<Cuda>& ctx, const Pipeline& p, const CacheShape& shape, index_t layer, const SlotRows<Cuda>& keys, const prim::DrawnNumbers& drawn,
                 const IndexChange& change) {
    index_t first = 0, last = 0;
    bool any = false;
    for (index_t h = 0; h < shape.kv_heads; ++h) {
      const index_t rows = known_rows(p, change.known[h]);
      last = std::max(last, rows);
      const index_t from = change.device ? 0 : std::max<index_t>(0, change.from[h] - p.partition.origin()) / p.summary.size();
      if (from < rows) first = any ? std::min(first, from) : from, any = true;
    }
    for (index_t h = 0; h < shape.kv_heads; ++h) covered_[h] = change.known[h];
    if (!any) return Status::ok;
    using UnitSummary = std::remove_cvref_t<decltype(p.summary)>;
    constexpr auto rule = CudaUnitSummary<UnitSummary>::rule;
    if constexpr (rule == prim::IndexRule::codes)
      return prim::UnitCodes::build(ctx, keys, planes(p, shape, layer), change.from, change.known, first, last);
    else if constexpr (rule == prim::IndexRule::representatives)
      return prim::DrawnSlots::build(ctx, keys, planes(p, shape, layer), drawn, p.summary.count, change.from, change.known, first, last);
    else return prim::UnitIndex::build<rule>(ctx, keys, planes(p, shape, layer), change.from, change.known, first, last);
  }
  /// Rows that an index of so many slots has: where steps tell what slots draw, of whole units behind the window in which they do.
  template <class Pipeline>
  static index_t known_rows(const Pipeline& p, index_t slots) {
    const index_t window = p.watch().window;
    return window == 0 ? p.index_rows(slots) : std::max<index_t>(0, slots - window - p.partition.origin()) / p.summary.size();
  }
  template <class Pipeline>
  prim::UnitPlanes planes(const Pipeline& p, const CacheShape& shape, index_t layer) const {
    prim::UnitPlanes out;
    for (int i = 0; i < 2; ++i) {
      const prim::HeadNumbers<const std::byte> v = planes_[i].view();
      out.plane[i] = const_cast<std::byte*>(v.data), out.room[i] = v.room;
    }
    out.dtype = shape.dtype, out.slots = p.summary.size(), out.origin = p.partition.origin();
    out.width = static_cast<int>(p.summary.plane_bytes(shape, 0) / size_of(shape.dtype));
    if constexpr (requires { p.summary.codebook; }) {
      out.width = static_cast<int>(shape.head_dim), out.entries = p.summary.codes(shape);
      out.book = p.summary.codebook(layer), out.metric = p.summary.metric.empty() ? nullptr : p.summary.metric(layer);
    }
    if constexpr (requires { p.summary.basis; }) out.basis = p.summary.basis(layer), out.columns = p.summary.basis.columns;
    return out;
  }
  Status fork(const Context<Cuda>& ctx, CudaIndex& out) const {
    std::copy_n(covered_.data(), covered_.size(), out.covered_.data());
    std::copy(prompt_.begin(), prompt_.end(), out.prompt_.begin());
    const Status s = planes_[0].fork(ctx, out.planes_[0]);
    return s == Status::ok ? planes_[1].fork(ctx, out.planes_[1]) : s;
  }
  /// Only while no kernel uses it.
  void clear() {
    for (auto& p : planes_) p.clear();
    std::fill(covered_.begin(), covered_.end(), index_t{0});
    std::fill(prompt_.begin(), prompt_.end(), index_t{0});
  }

 private:
  SlotStore<std::byte> planes_[2];
  Buffer<index_t> covered_;
  std::span<std::byte> steering_;
  std::span<index_t> prompt_;
  mutable cuda::Fence read_;
};

/// Which units compete in every KV head, where kernels read it too.
struct CudaCandidates {
  index_t *first = nullptr, *last = nullptr;  ///< units
  index_t* rows = nullptr;                    ///< of the index
  index_t most = 0;                           ///< candidates of any head

  static std::size_t bytes(const CacheShape& shape) { return 3 * Scratch::bytes_for<index_t>(shape.kv_heads); }
  template <class Pipeline>
  bool make(const Pipeline& p, const retrieve::ReadView<Cuda>& view, Scratch& scratch) {
    first = scratch.take_steering<index_t>(view.heads()), last = scratch.take_steering<index_t>(view.heads());
    rows = scratch.take_steering<index_t>(view.heads());
    if (first == nullptr || last == nullptr || rows == nullptr) return false;
    for (index_t h = 0; h < view.heads(); ++h) {
      const retrieve::UnitRange c = p.candidates(view, h);
      first[h] = c.first, last[h] = c.last, rows[h] = p.index_rows(view.known[h]), most = std::max(most, c.size());
    }
    return true;
  }
  /// Those that competed in an earlier choice.
  bool as(index_t* begins, index_t* ends, index_t heads) {
    first = begins, last = ends;
    for (index_t h = 0; h < heads; ++h) most = std::max(most, size(h));
    return true;
  }
  index_t size(index_t head) const { return last[head] - first[head]; }
};

/// Steering memory that `choose` takes.
template <class Pipeline>
std::size_t choice_steering_bytes(const Pipeline& p, const CacheShape& shape) {
  return Scratch::bytes_for<index_t>(shape.kv_heads * p.query.rows(shape.group()) + 1) + Scratch::bytes_for<index_t>(p.reduce.rows(shape) + 1) +
         p.select.workspace_bytes(shape, 0, 0);
}

/// As Pipeline::choose, for all heads at once: scores the candidates of every head by the index and chooses among them. Units in the lists count
/// from a head's first candidate; lists and counts lie on the device. `counts`: what was scored, which the host knows.
template <class Pipeline>
Status choose(Context<Cuda>& ctx, const Pipeline& p, const retrieve::ReadView<Cuda>& view, TensorView<const float, 3> queries, const prim::UnitPlanes& planes,
              const CudaCandidates& among, const CudaLists& lists, ReadCounts* counts, Scratch scratch) {
  using Query = std::remove_cvref_t<decltype(p.query)>;
  using UnitSummary = std::remove_cvref_t<decltype(p.summary)>;
  using retrieve::Aggregate;
  const CacheShape& shape = view.shape;
  const index_t per_head = p.query.rows(shape.group()), q_rows = shape.kv_heads * per_head, all = p.reduce.rows(shape);
  index_t floats = shape.head_dim;
  if constexpr (requires { p.query.floats(index_t{}); }) floats = p.query.floats(shape.head_dim);
  auto* offset = scratch.take_steering<index_t>(q_rows + 1);
  auto* row_offset = scratch.take_steering<index_t>(all + 1);
  if (offset == nullptr || row_offset == nullptr) return Status::workspace_too_small;
  offset[0] = row_offset[0] = 0;
  for (index_t r = 0; r < q_rows; ++r) offset[r + 1] = offset[r] + among.size(r / per_head);
  for (index_t r = 0; r < all; ++r) row_offset[r + 1] = row_offset[r] + among.size(r * shape.kv_heads / all);
  const RaggedView<float> sum{scratch.take<float>(offset[q_rows]), offset, q_rows};
  const RaggedView<float> one = view.tokens == 1 ? sum : RaggedView<float>{scratch.take<float>(offset[q_rows]), offset, q_rows};
  const RaggedView<float> out{scratch.take<float>(row_offset[all]), row_offset, all};
  float* rows = scratch.take<float>(q_rows * floats);
  constexpr auto rule = CudaUnitSummary<UnitSummary>::rule;
  constexpr bool mapped = rule == prim::IndexRule::coordinates, tabled = rule == prim::IndexRule::codes;
  float* prepared = mapped ? scratch.take<float>(q_rows * planes.width) : tabled ? scratch.take<float>(q_rows * planes.entries) : rows;
  if (sum.data == nullptr || one.data == nullptr || out.data == nullptr || rows == nullptr || prepared == nullptr) return Status::workspace_too_small;

  const bool last_only = p.aggregate == Aggregate::last;
  const index_t parts = std::max<index_t>(1, p.partition.size() / p.summary.size());
  for (index_t t = last_only ? view.tokens - 1 : 0; t < view.tokens; ++t) {
    const bool begins = last_only || t == 0;
    Status s = prim::UnitScoring::queries<CudaQuery<Query>::rule>(ctx, queries, t, shape.group(), CudaQuery<Query>::channels(p.query), rows);
    const prim::UnitScores scores{begins ? sum : one, among.first, among.rows, per_head, parts};
    if constexpr (mapped)
      if (s == Status::ok) s = prim::UnitScoring::coordinates(ctx, planes, rows, q_rows, per_head, shape.head_dim, prepared);
    if constexpr (tabled) {
      if (s == Status::ok) s = prim::UnitCodes::tables(ctx, planes, rows, q_rows, per_head, prepared);
      if (s == Status::ok) s = prim::UnitCodes::score(ctx, planes, scores, prepared, among.most);
    } else if constexpr (rule == prim::IndexRule::representatives) {
      if (s == Status::ok) s = prim::DrawnSlots::score(ctx, planes, scores, rows, shape.head_dim, among.most);
    } else if (s == Status::ok) {
      s = prim::UnitScoring::score<rule>(ctx, planes, scores, prepared, mapped ? planes.width : floats, among.most);
    }
    if (s == Status::ok) s = rescore(ctx, p.scorer, view, planes, scores);
    const float divide = p.aggregate == Aggregate::mean && t + 1 == view.tokens ? static_cast<float>(view.tokens) : 1.0f;
    if (s == Status::ok && !begins) s = prim::UnitScoring::join(ctx, RaggedView<const float>(one), p.aggregate == Aggregate::max, divide, sum);
    if (s != Status::ok) return s;
    for (index_t h = 0; counts != nullptr && h < shape.kv_heads; ++h) {
      counts->units_scored += among.size(h) * per_head;
      counts->index_bytes += p.summary.read_bytes(shape, among.size(h) * p.partition.size());
    }
  }
  if (const Status s = p.reduce.run(ctx, view, RaggedView<const float>(sum), out); s != Status::ok) return s;
  const CudaScores from{RaggedView<const float>(out), queries, among.first, p.partition.size(), p.partition.origin()};
  if (p.rows(shape) == all) return select_units(ctx, p.select, view, from, lists, scratch);
  CudaLists each;  // choices that are read together
  each.units = {scratch.take<std::int32_t>(row_offset[all]), row_offset, all}, each.count = scratch.take<index_t>(all);
  if (each.units.data == nullptr || each.count == nullptr) return Status::workspace_too_small;
  const Status s = select_units(ctx, p.select, view, from, each, scratch);
  return s == Status::ok ? prim::UnitOrder::unite(ctx, RaggedView<const std::int32_t>(each.units), each.count, lists.units, lists.count) : s;
}

}  // namespace kvcondense::cache
