#pragma once

#include <algorithm>
#include <span>

#include <kvcondense/cache/cache.hpp>

namespace kvcondense {

/// Scratch for the queries' attention, where the step looks at any; nothing is taken where it does not.
template <Backend B, class R>
bool Cache<B, R>::take_columns(const Layer& l, const StepView<B>& view, index_t workers, Scratch& scratch, std::span<std::byte>& out) const {
  const bool step = view.phase != Phase::turn && view.phase != Phase::probe;
  const bool looks = step && (queries(view.layer).rows != AttentionNeed::Rows::none || plan_.drawn > 0);
  if (!looks && view.phase != Phase::probe) return true;
  index_t most = 0;
  for (const auto& head : l.heads) most = std::max(most, head.slots());
  const index_t rows = std::max(view.inputs.queries.extent[1], plan_.query_rows);
  const std::size_t bytes = prim::AttendColumns<Cpu>::workspace_bytes(workers, shape_, rows, plan_.query_width, most);
  std::byte* p = scratch.take<std::byte>(static_cast<index_t>(bytes));
  if (p != nullptr) out = {p, bytes};
  return p != nullptr;
}

/// Whether a step that has inputs can be refused for nothing but what `make_room` asks for.
template <Backend B, class R>
bool Cache<B, R>::knows_refusals(const StepView<B>& view) const {
  if (merging_ || graded_ || view.phase == Phase::turn || view.phase == Phase::probe || view.phase == Phase::prefill_end) return false;
  const bool alone = pipeline_.asks_for_room_alone() && !pipeline_.reuse.follows(view.layer);
  return !retrieval_.active() && plan_.drawn == 0 && (alone || !pipeline_.fires(view));
}

/// Room for all that such a step may take and may code. `workspace`: what is left of it.
template <Backend B, class R>
Status Cache<B, R>::make_room(Layer& l, const StepView<B>& view, std::size_t workspace, index_t workers) const {
  const std::size_t work = std::max(pipeline_.workspace_bytes(shape_, l.total()),
                                    static_cast<std::size_t>(workers) * Scratch::bytes_for<float>(plan_.commit_floats));
  const std::size_t own = static_cast<std::size_t>(plan_.lanes) * Scratch::bytes_for<float*>(shape_.kv_heads) + Scratch::bytes_for<std::int32_t>(l.total()) +
                          2 * Scratch::bytes_for<index_t>(shape_.kv_heads) + Scratch::bytes_for<prim::Ends>(shape_.kv_heads);
  if (workspace < own + work) return Status::workspace_too_small;
  const bool fires = pipeline_.fires(view);
  for (auto& head : l.heads)
    if (const Status s = head.reserve_any_commit(fires); s != Status::ok) return l.trim(), s;
  return Status::ok;
}

/// Whether the policy may work on its numbers where they lie; room for what the step may code is made for that.
template <Backend B, class R>
bool Cache<B, R>::lends_lanes(Layer& l, const StepView<B>& view, std::size_t workspace, index_t workers) const {
  using evict::Touches;
  const Touches what = evict::touches(pipeline_.source);
  if (what == Touches::any || merging_ || graded_ || view.phase == Phase::turn || view.phase == Phase::probe) return false;
  if (what == Touches::newest) return true;
  if (what == Touches::none) return !pipeline_.fires(view);
  // Attention adds to every number, and nothing takes it away again. So whatever could be refused after that is asked before.
  // Where memory is refused now, the step may still do with less: slots that leave need not be coded.
  return knows_refusals(view) && make_room(l, view, workspace, workers) == Status::ok;
}

template <Backend B, class R>
bool Cache<B, R>::counts_attention(index_t layer, index_t tokens, Phase phase) const {
  if (layer < 0 || layer >= shape_.layers || tokens < 1 || groups_.most() > 1 || pipeline_.reuse.follows(layer)) return false;
  const StepView<B> view = step_view(layer, phase);
  return evict::touches(pipeline_.source) == evict::Touches::whole && evict::counting(pipeline_.source, shape_, mass_rows(tokens)) &&
         fold_.attention.rows == AttentionNeed::Rows::none && prim::Attend<Cpu>::counts(shape_.group() * tokens) && knows_refusals(view);
}

template <Backend B, class R>
Status Cache<B, R>::attend_counted(Context<B>& ctx, index_t layer, TensorView<const float, 3> queries, TensorView<float, 3> out,
                                   const AttendOutputs& measure, Phase phase) {
  if (layer < 0 || layer >= shape_.layers) return Status::out_of_range;
  Layer& l = layers_[layer];
  if (l.counted > 0 || l.counters.pending == 0) return Status::order_violation;
  const index_t rows = mass_rows(queries.extent[1]);
  if (measure.mass.heads > 0 || !counts_attention(layer, queries.extent[1], phase)) return Status::not_supported;
  l.fetch();
  Scratch scratch(ctx.workspace()), rest = scratch;
  StepView<B> view = step_view(layer, phase);
  view.inputs.queries = queries;
  std::span<std::byte> columns;
  if (!take_columns(l, view, ctx.workers(), scratch, columns)) return Status::workspace_too_small;
  const evict::Counting where = evict::counting(pipeline_.source, shape_, rows);
  float** sums = rest.take<float*>(shape_.kv_heads);
  if (sums == nullptr) return Status::workspace_too_small;
  if (const Status s = make_room(l, view, scratch.left(), ctx.workers()); s != Status::ok) return s;
  for (index_t h = 0; h < shape_.kv_heads; ++h) sums[h] = l.heads[h].lane[where.lane].data();
  Context<B> left = ctx.with_workspace(rest.rest());
  const Status s = attend_to(left, layer, queries, out, measure, {{nullptr, l.offset.data(), shape_.kv_heads, sums}, where.scale});
  if (s != Status::ok) return l.trim(), s;
  l.counted = rows;
  return Status::ok;
}

}  // namespace kvcondense
