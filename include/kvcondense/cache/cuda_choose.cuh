#pragma once

#include <algorithm>
#include <cstddef>
#include <type_traits>

#include <kvcondense/backend/cuda/unit_lists.cuh>
#include <kvcondense/backend/cuda/unit_scores.cuh>
#include <kvcondense/cache/cuda_index.cuh>
#include <kvcondense/core/workspace.hpp>
#include <kvcondense/retrieve/pipeline.hpp>

// A choice of units by the index of a layer: which compete, what queries think of them, which are taken.

namespace kvcondense::cache {

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
/// from a head's first candidate; lists and counts lie on the device. `counts`: what was scored, which the host knows, but of walks: `walked` numbers
/// of query rows are added to.
template <class Pipeline>
Status choose(Context<Cuda>& ctx, const Pipeline& p, const retrieve::ReadView<Cuda>& view, TensorView<const float, 3> queries, const prim::UnitPlanes& planes,
              const CudaCandidates& among, const CudaLists& lists, ReadCounts* counts, Scratch scratch, index_t* walked = nullptr) {
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
  const index_t prepared = CudaUnitSummary<UnitSummary>::prepared(p.summary, shape);
  const CudaQueryRows asked{rows, q_rows, floats, scratch.take<float>(q_rows * prepared), among.most, among.first, walked};
  if (sum.data == nullptr || one.data == nullptr || out.data == nullptr || rows == nullptr || asked.prepared == nullptr) return Status::workspace_too_small;

  const bool last_only = p.aggregate == Aggregate::last;
  const index_t parts = std::max<index_t>(1, p.partition.size() / p.summary.size());
  for (index_t t = last_only ? view.tokens - 1 : 0; t < view.tokens; ++t) {
    const bool begins = last_only || t == 0;
    Status s = CudaQuery<Query>::run(ctx, p.query, queries, t, shape.group(), rows);
    const prim::UnitScores scores{begins ? sum : one, among.first, among.rows, per_head, parts};
    if (s == Status::ok) s = CudaUnitSummary<UnitSummary>::score(ctx, p.summary, view, planes, asked, scores);
    if (s == Status::ok) s = rescore(ctx, p.scorer, view, planes, scores);
    const float divide = p.aggregate == Aggregate::mean && t + 1 == view.tokens ? static_cast<float>(view.tokens) : 1.0f;
    if (s == Status::ok && !begins) s = prim::UnitScoring::join(ctx, RaggedView<const float>(one), p.aggregate == Aggregate::max, divide, sum);
    if (s != Status::ok) return s;
    for (index_t h = 0; counts != nullptr && walked == nullptr && h < shape.kv_heads; ++h) {
      counts->units_scored += among.size(h) * per_head;
      counts->index_bytes += p.summary.read_bytes(shape, among.size(h) * p.partition.size());
    }
  }
  Status s = p.reduce.run(ctx, view, RaggedView<const float>(sum), out);
  if (s != Status::ok) return s;
  using Select = CudaSelect<std::remove_cvref_t<decltype(p.select)>>;
  if (p.rows(shape) == all) return Select::run(ctx, p.select, view, planes, asked, RaggedView<const float>(out), lists, scratch);
  CudaLists each;  // choices that are read together
  each.units = {scratch.take<std::int32_t>(row_offset[all]), row_offset, all}, each.count = scratch.take<index_t>(all);
  if (each.units.data == nullptr || each.count == nullptr) return Status::workspace_too_small;
  s = Select::run(ctx, p.select, view, planes, asked, RaggedView<const float>(out), each, scratch);
  return s == Status::ok ? prim::UnitOrder::unite(ctx, RaggedView<const std::int32_t>(each.units), each.count, lists.units, lists.count) : s;
}

}  // namespace kvcondense::cache
