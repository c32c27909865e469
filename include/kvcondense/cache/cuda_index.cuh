#pragma once

#include <algorithm>
#include <cstddef>
#include <limits>
#include <span>
#include <type_traits>

#include <kvcondense/backend/cuda/drawn_slots.cuh>
#include <kvcondense/backend/cuda/memory.cuh>
#include <kvcondense/backend/cuda/partial_columns.cuh>
#include <kvcondense/backend/cuda/steering.cuh>
#include <kvcondense/backend/cuda/unit_index.cuh>
#include <kvcondense/backend/cuda/unit_scores.cuh>
#include <kvcondense/cache/cuda_found.cuh>
#include <kvcondense/cache/cuda_slot_store.cuh>
#include <kvcondense/core/buffer.hpp>
#include <kvcondense/core/workspace.hpp>
#include <kvcondense/retrieve/blocks/channels.hpp>
#include <kvcondense/retrieve/blocks/clusters.hpp>
#include <kvcondense/retrieve/blocks/codes.hpp>
#include <kvcondense/retrieve/blocks/group_bound.hpp>
#include <kvcondense/retrieve/blocks/keep.hpp>
#include <kvcondense/retrieve/blocks/key_graph.hpp>
#include <kvcondense/retrieve/blocks/marked_blocks.hpp>
#include <kvcondense/retrieve/blocks/outliers.hpp>
#include <kvcondense/retrieve/blocks/partial_rows.hpp>
#include <kvcondense/retrieve/blocks/query.hpp>
#include <kvcondense/retrieve/blocks/reduce.hpp>
#include <kvcondense/retrieve/blocks/schedule.hpp>
#include <kvcondense/retrieve/blocks/scorer.hpp>
#include <kvcondense/retrieve/blocks/select.hpp>
#include <kvcondense/retrieve/blocks/unit_rows.hpp>
#include <kvcondense/retrieve/pipeline.hpp>
#include <kvcondense/retrieve/read_all.hpp>

// The index of a layer on the device. Blocks of a retrieval pipeline that are written over words run as they are; how a summary and a
// query transform, which work on one head of the host, are done for all heads of the device is said here.

namespace kvcondense::cache {

/// What of a layer's slots a step changes, as far as an index asks: in steering memory, per head.
struct IndexChange {
  index_t* from = nullptr;   ///< the first slot whose stored form changes, or which no index knew
  index_t* known = nullptr;  ///< slots that rows are made of
  index_t* prompt = nullptr; ///< slots of prompts before the step
  bool device = false;       ///< the device lowers `from` by what leaves
  prim::DrawnNumbers drawn{};  ///< what slots draw, where steps tell
  const TensorView<const float, 3>* lesson = nullptr;  ///< the queries of a step that ends a prompt
  index_t* learned = nullptr;  ///< how many numbers the prompt teaches; 0: none, or they were there
};

/// The rows of a layer as they are stored now.
struct CudaRows {
  SlotRows<Cuda> keys, values;
};

template <class Layer>
CudaRows rows_of(const Layer& l) {
  return {l.keys.rows(l.device_slots(), l.longest()), l.values.rows(l.device_slots(), l.longest())};
}

/// Query rows that score, and room for what a summary makes of them: `CudaUnitSummary::prepared` numbers each.
struct CudaQueryRows {
  const float* rows = nullptr;
  index_t count = 0, floats = 0;  ///< rows, and numbers of each
  float* prepared = nullptr;
  index_t most = 0;  ///< candidates of any head
  const index_t* first = nullptr;  ///< per KV head: the first candidate
  index_t* counted = nullptr;  ///< of summaries that walk, where somebody asks: per row, how many candidates were looked at
};

/// Chosen units on the device, counted from the first candidate of a head.
struct CudaLists : retrieve::UnitLists {
  std::int32_t* rank = nullptr;  ///< like units: places in the order of scores; null: nobody asks
};

/// How a summary is made and scored on the device. One without a form is the CPU's alone.
///   prepared(summary, shape) -> index_t    numbers that a query row becomes before it scores; 0: none
///   build(ctx, summary, CudaRows, UnitPlanes, IndexChange, first, last)    rows [first, last) of the index
///   score(ctx, summary, view, UnitPlanes, CudaQueryRows, UnitScores)
///   fits(summary) -> bool (may be left out)   whether kernels have room for such a one
///   forget(ctx, summary, UnitPlanes, IndexChange, heads, most) (may be left out)   before rows are made anew that were there
///   lead() (may be left out), fit_bytes(summary, shape, slots), fit(ctx, summary, CudaRows, shape, HeadIndex, slots, queries, float* found, Scratch)
///                                          what a prompt teaches a head: see CudaFound
template <class UnitSummary>
struct CudaUnitSummary {
  static constexpr bool there = false;
};
template <class UnitSummary>
bool summary_fits(const UnitSummary& summary) {
  if constexpr (requires { CudaUnitSummary<UnitSummary>::fits(summary); }) return CudaUnitSummary<UnitSummary>::fits(summary);
  else return true;
}
/// Rows and scores by a rule.
template <prim::IndexRule Rule>
struct CudaRuleSummary {
  static constexpr bool there = true;
  static index_t prepared(const auto&, const CacheShape&) { return 0; }
  static Status build(Context<Cuda>& ctx, const auto&, const CudaRows& rows, const prim::UnitPlanes& planes, const IndexChange& change, index_t first, index_t last) {
    return prim::UnitIndex::build<Rule>(ctx, rows.keys, planes, change.from, change.known, first, last);
  }
  static Status score(Context<Cuda>& ctx, const auto&, const retrieve::ReadView<Cuda>&, const prim::UnitPlanes& planes, const CudaQueryRows& queries,
                      const prim::UnitScores& scores) {
    return prim::UnitScoring::score<Rule>(ctx, planes, scores, queries.rows, queries.floats, queries.most);
  }
};
/// Bounds per channel.
template <>
struct CudaUnitSummary<retrieve::MinMax> : CudaRuleSummary<prim::IndexRule::bounds> {};
/// Bounds that the group of a KV head shares: stored as bounds are.
template <>
struct CudaUnitSummary<retrieve::GroupMinMax> : CudaUnitSummary<retrieve::MinMax> {};
/// Means.
template <>
struct CudaUnitSummary<retrieve::MeanKey> : CudaRuleSummary<prim::IndexRule::mean> {};
/// Means, and how far keys lie from them.
template <>
struct CudaUnitSummary<retrieve::MeanKeySpread> : CudaRuleSummary<prim::IndexRule::spread> {};
/// Keys of last slots.
template <>
struct CudaUnitSummary<retrieve::LastKey> : CudaRuleSummary<prim::IndexRule::last> {};
/// The basis lies on the device.
template <>
struct CudaUnitSummary<retrieve::PartialRows> : CudaRuleSummary<prim::IndexRule::coordinates> {
  static std::size_t fit_bytes(const retrieve::PartialRows& summary, const CacheShape& shape, index_t) {
    return prim::PartialColumns::choose_bytes(shape.group(), summary.basis.columns);
  }
  static Status fit(Context<Cuda>& ctx, const retrieve::PartialRows& summary, const CudaRows&, const CacheShape& shape, HeadIndex at, index_t,
                    TensorView<const float, 3> queries, float* found, const Scratch& scratch) {
    const index_t columns = summary.basis.columns;
    const float* basis = summary.basis(at.layer) + at.head * shape.head_dim * columns;
    return prim::PartialColumns::choose(ctx, queries, at.head, shape.group(), basis, columns, summary.taken(shape), found, scratch);
  }
  static index_t prepared(const retrieve::PartialRows& summary, const CacheShape& shape) { return summary.width(shape); }
  static Status score(Context<Cuda>& ctx, const retrieve::PartialRows&, const retrieve::ReadView<Cuda>& view, const prim::UnitPlanes& planes, const CudaQueryRows& queries,
                      const prim::UnitScores& scores) {
    const Status s = prim::UnitScoring::coordinates(ctx, planes, queries.rows, queries.count, scores.per_head, view.shape.head_dim, queries.prepared);
    return s == Status::ok ? prim::UnitScoring::score<prim::IndexRule::coordinates>(ctx, planes, scores, queries.prepared, planes.width, queries.most) : s;
  }
};

/// The same of query transforms: rows of token `token`.
template <class Query>
struct CudaQuery {
  static constexpr bool there = false;
};
/// Rows by a rule.
template <prim::QueryRule Rule>
struct CudaRuleQuery {
  static constexpr bool there = true;
  static Status run(Context<Cuda>& ctx, const auto& query, TensorView<const float, 3> queries, index_t token, index_t group, float* out) {
    index_t channels = 0;
    if constexpr (requires { query.channels; }) channels = query.channels;
    return prim::UnitScoring::queries<Rule>(ctx, queries, token, group, channels, out);
  }
};
/// Every query for itself.
template <>
struct CudaQuery<retrieve::EachQuery> : CudaRuleQuery<prim::QueryRule::each> {};
/// The same at one distance from all keys, which are raw: where they are turned.
template <>
struct CudaQuery<retrieve::FarQuery> : CudaQuery<retrieve::EachQuery> {};
/// No query.
template <>
struct CudaQuery<retrieve::NoQuery> {
  static constexpr bool there = true;
  static Status run(Context<Cuda>&, const auto&, TensorView<const float, 3>, index_t, index_t, float*) { return Status::ok; }
};
/// The mean of a group.
template <>
struct CudaQuery<retrieve::GroupMeanQuery> : CudaRuleQuery<prim::QueryRule::mean> {};
/// The channels in which a group is largest.
template <>
struct CudaQuery<retrieve::GroupChannels> : CudaRuleQuery<prim::QueryRule::group_channels> {};

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

/// Units that a row chooses at most of so many candidates.
template <class Select>
index_t most_chosen(const Select& select, const retrieve::ReadView<Cuda>& view, index_t head, index_t candidates) {
  if constexpr (requires { select.budget(view, head); }) return std::min(candidates, select.budget(view, head));
  else return candidates;
}

/// How a selector chooses on the device.
///   run(ctx, selector, view, UnitPlanes, CudaQueryRows, scores, CudaLists, Scratch&)
template <class Select>
struct CudaSelect {
  static constexpr bool there = one_of<Select, retrieve::TopUnits, retrieve::TopShare, retrieve::TopNear>;
  static Status run(Context<Cuda>& ctx, const Select& select, const retrieve::ReadView<Cuda>& view, const prim::UnitPlanes&, const CudaQueryRows&,
                    RaggedView<const float> scores, const CudaLists& lists, Scratch& scratch) {
    return select.run(ctx, view, scores, lists, scratch);
  }
};

/// Whether blocks of a pipeline, each of which has a form, have one together: outliers are those of an index that knows spreads, queries which say
/// themselves what meets which bound meet a summary that lets them, channels a summary that has them one by one,
/// thresholds are of clusters, and what was not visited is not chosen.
template <class UnitSummary, class Query, class Scorer, class Select>
inline constexpr bool cuda_pairs = (!std::is_same_v<Scorer, retrieve::OutlierSoftmax> || std::is_same_v<UnitSummary, retrieve::MeanKeySpread>) &&
                                   std::is_same_v<UnitSummary, retrieve::GroupMinMax> == std::is_same_v<Query, retrieve::GroupChannels> &&
                                   std::is_same_v<UnitSummary, retrieve::ChannelPages> == std::is_same_v<Query, retrieve::TopChannels> &&
                                   (!std::is_same_v<Select, retrieve::TopWithShare> || std::is_same_v<UnitSummary, retrieve::ChannelPages>) &&
                                   (!std::is_same_v<Select, retrieve::AboveThreshold> || std::is_same_v<UnitSummary, retrieve::KeyClusters>) &&
                                   std::is_same_v<Select, retrieve::TopVisited> == std::is_same_v<UnitSummary, retrieve::KeyGraph>;

/// Whether a cache on the device can retrieve with such a pipeline, or needs not.
template <class Pipeline>
inline constexpr bool cuda_retrieves = std::is_same_v<Pipeline, retrieve::ReadAll::Nothing>;
template <class P, class Su, class Q, class Sc, class R, class Se, class K, class Sd>
inline constexpr bool cuda_retrieves<retrieve::Pipeline<P, Su, Q, Sc, R, Se, K, Sd>> =
    CudaUnitSummary<Su>::there && CudaQuery<Q>::there && cuda_pairs<Su, Q, Sc, Se> && one_of<Sc, retrieve::PlainScore, retrieve::SoftmaxScore, retrieve::OutlierSoftmax> &&
    std::is_same_v<R, retrieve::ByHeads> && CudaSelect<Se>::there &&
    one_of<K, retrieve::KeepEnds, retrieve::KeepShare, retrieve::KeepNear, retrieve::KeepGenerated> && one_of<Sd, retrieve::EveryCall, retrieve::EveryTokens, retrieve::EveryQuestion, retrieve::WhenAsked>;

/// The index of one layer: planes [heads][room] on the device, and how many slots of each head they know.
class CudaIndex {
 public:
  explicit CudaIndex(MemoryResource<Cuda>& memory) : found(memory), planes_{SlotStore<std::byte>(memory), SlotStore<std::byte>(memory)}, covered_(heap_memory()) {}

  CudaFound found;  ///< where a prompt teaches something

  /// `steering`: what calls of `attend` write for kernels. `lead`: see CudaFound.
  Status make(index_t heads, index_t lead, std::span<std::byte> steering) {
    steering_ = steering.subspan(told_bytes(heads));
    prompt_ = {reinterpret_cast<index_t*>(steering.data()), static_cast<std::size_t>(heads)};
    std::fill(prompt_.begin(), prompt_.end(), index_t{0});
    Status s = covered_.resize(heads);
    if (s == Status::ok) s = found.make(heads, lead);
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
  std::size_t bytes() const { return planes_[0].bytes() + planes_[1].bytes() + found.bytes(); }

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
  /// Makes the rows of what has changed anew, after `reserve`.
  template <class Pipeline>
  Status refresh(Context<Cuda>& ctx, const Pipeline& p, const CacheShape& shape, index_t layer, const CudaRows& rows, const IndexChange& change) {
    index_t first = 0, last = 0;
    bool any = false;
    for (index_t h = 0; h < shape.kv_heads; ++h) {
      const index_t n = known_rows(p, change.known[h]);
      last = std::max(last, n);
      const index_t from = change.device ? 0 : std::max<index_t>(0, change.from[h] - p.partition.origin()) / p.summary.size();
      if (from < n) first = any ? std::min(first, from) : from, any = true;
    }
    using UnitSummary = std::remove_cvref_t<decltype(p.summary)>;
    if constexpr (requires { &CudaUnitSummary<UnitSummary>::forget; }) {
      bool again = change.device;  // or only those that are new
      for (index_t h = 0; h < shape.kv_heads; ++h) again = again || std::min(change.from[h], change.known[h]) < covered_[h];
      const Status s = again ? CudaUnitSummary<UnitSummary>::forget(ctx, p.summary, planes(p, shape, layer), change, shape.kv_heads, last) : Status::ok;
      if (s != Status::ok) return s;
    }
    for (index_t h = 0; h < shape.kv_heads; ++h) covered_[h] = change.known[h];
    if (!any) return Status::ok;
    return CudaUnitSummary<UnitSummary>::build(ctx, p.summary, rows, planes(p, shape, layer), change, first, last);
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
    if (p.found_floats(shape, 1) > 0) out.found = found.view().data, out.found_room = found.view().room;
    if constexpr (requires { p.summary.metric.empty(); }) {  // a codebook that was made before
      out.found = p.summary.codebook(layer), out.found_room = p.summary.codes(shape) * shape.head_dim;
      out.metric = p.summary.metric.empty() ? nullptr : p.summary.metric(layer);
    }
    if constexpr (requires { p.summary.basis; }) out.basis = p.summary.basis(layer), out.columns = p.summary.basis.columns;
    return out;
  }
  Status fork(const Context<Cuda>& ctx, CudaIndex& out) const {
    std::copy_n(covered_.data(), covered_.size(), out.covered_.data());
    std::copy(prompt_.begin(), prompt_.end(), out.prompt_.begin());
    Status s = planes_[0].fork(ctx, out.planes_[0]);
    if (s == Status::ok) s = planes_[1].fork(ctx, out.planes_[1]);
    return s == Status::ok ? found.fork(ctx, out.found) : s;
  }
  /// Only while no kernel uses it.
  void clear() {
    for (auto& p : planes_) p.clear();
    found.clear();
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

}  // namespace kvcondense::cache
