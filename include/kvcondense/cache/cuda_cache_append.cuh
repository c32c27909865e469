#pragma once

#include <algorithm>
#include <numeric>
#include <span>

#include <kvcondense/cache/cuda_cache.cuh>

// How tokens come into a cache on CUDA; and keys that are stored without rotation, which turn by slot order as they are read.

namespace kvcondense {

/// The table of a cache of raw keys.
template <class R>
Status Cache<Cuda, R>::make_rotation() {
  if (!may_turn) return Status::ok;
  rotation_ = cache::CudaRotation(*memory_);
  return rotation_.make(recipe_.position.rope, shape().head_dim);
}

/// Keys as they were before the engine rotated them.
template <class R>
template <class T>
Status Cache<Cuda, R>::turn_back(Context<Cuda>& ctx, TensorView<const T, 3> keys, std::span<const index_t> positions, index_t next, TensorView<float, 3> out) const {
  Buffer<index_t> own(heap_memory());
  if (positions.empty()) {
    if (const Status s = own.resize(keys.extent[1]); s != Status::ok) return s;
    std::iota(own.begin(), own.end(), next);
    positions = own.span();
  }
  return prim::TurnRows::back<T>(ctx, rotation_.angles(), keys, positions, out);
}

template <class R>
cache::QueryTurn Cache<Cuda, R>::query_turn(const Layer& l, index_t n, const index_t& last) const {
  if (!may_turn) return {};
  if (!decltype(R::position)::rotated_input) return {&rotation_, {}, reach()};
  const auto count = static_cast<std::size_t>(n);
  return {&rotation_, l.counters.pending >= n ? l.pending_positions.span().last(count) : std::span(&last, count), reach()};
}

/// The queries of a call become those that stand at the slots of their tokens, in front of the workspace.
template <class R>
Status Cache<Cuda, R>::stand(Context<Cuda>& ctx, const Layer& l, prim::AttendRequest& request, prim::KeyTurn& keys) const {
  const index_t n = request.queries.extent[1];
  keys = rotation_.view();
  if (l.counters.seen == 0) return Status::ok;  // there is no slot to stand at
  Scratch scratch(ctx.workspace());
  const TensorView<float, 3> out = dense_view(scratch.take<float>(shape().q_heads * n * shape().head_dim), shape().q_heads, n, shape().head_dim);
  if (out.data == nullptr) return Status::workspace_too_small;
  const index_t last = l.next_position() - 1;
  const cache::QueryTurn turn = query_turn(l, n, last);
  if (turn.reach > 0) {
    const TensorView<float, 3> far = dense_view(scratch.take<float>(shape().q_heads * n * shape().head_dim), shape().q_heads, n, shape().head_dim);
    if (far.data == nullptr) return Status::workspace_too_small;
    if (const Status s = prim::TurnRows::to_place(ctx, rotation_.angles(), request.queries, turn.positions, turn.reach, far); s != Status::ok) return s;
    keys.far = far, keys.reach = turn.reach;
  }
  const Status s = prim::TurnRows::to_slots(ctx, rotation_.angles(), request.queries, turn.positions, l.tokens(), l.device_slots(), shape().kv_heads, out);
  request.queries = out;
  ctx = ctx.with_workspace(scratch.rest());
  return s;
}

template <class R>
template <class K, class V>
  requires StoredNumbers<K, V>
Status Cache<Cuda, R>::append(Context<Cuda>& ctx, index_t layer, TensorView<K, 3> keys, TensorView<V, 3> values, std::span<const index_t> positions,
                              TensorView<const float, 3> queries) {
  using T = std::remove_const_t<K>;
  if (layer < 0 || layer >= shape().layers) return Status::out_of_range;
  Layer& l = layers_[layer];
  if (l.torn) return Status::device_error;
  const index_t n = keys.extent[1];
  if (keys.extent[0] != shape().kv_heads || values.extent[0] != shape().kv_heads || values.extent[1] != n ||
      keys.extent[2] != shape().head_dim || values.extent[2] != shape().values())
    return Status::shape_mismatch;
  if (!positions.empty() && static_cast<index_t>(positions.size()) != n) return Status::shape_mismatch;
  for (const index_t p : positions)
    if (p < 0 || p > max_position) return Status::invalid_argument;
  if (l.counters.seen + n > max_position || (positions.empty() && l.next_position() + n - 1 > max_position)) return Status::out_of_range;
  if (n == 0) return Status::ok;
  if (const Status s = check_join(n, queries); s != Status::ok) return s;
  const index_t next = l.next_position();
  Status s = reserve_rotation(ctx, l.longest() + n);
  if (s != Status::ok) return s;
  TensorView<float, 3> raw{}, means{};  // keys that came rotated or join others, as they are stored; values that do
  if (may_turn && decltype(R::position)::rotated_input && !plan_.joins) {  // what joins is turned back where it is summed
    Scratch scratch(ctx.workspace());
    raw = dense_view(scratch.take<float>(shape().kv_heads * n * shape().head_dim), shape().kv_heads, n, shape().head_dim);
    if (raw.data == nullptr) return Status::workspace_too_small;
    if (s = turn_back<T>(ctx, keys, positions, next, raw); s != Status::ok) return s;
  }
  if (plan_.joins) {
    Scratch scratch(ctx.workspace());
    raw = dense_view(scratch.take<float>(shape().kv_heads * n * shape().head_dim), shape().kv_heads, n, shape().head_dim);
    means = dense_view(scratch.take<float>(shape().kv_heads * n * shape().values()), shape().kv_heads, n, shape().values());
    if (means.data == nullptr) return Status::workspace_too_small;
  }
  if (s = l.reserve(ctx, n); s != Status::ok) return s;
  const index_t first = l.sinks_due(n);
  s = l.add_slots(ctx, n, first);
  if constexpr (may_join)
    if (s == Status::ok && plan_.joins) s = join_rows<T>(ctx, l, keys, values, queries, positions, raw, means);
  const TensorView<const float, 3> stored = raw, summed = means;
  if (s == Status::ok && raw.data != nullptr) s = l.keys.template append<float>(ctx, first, l.device_slots(), stored, counts_.data());
  else if (s == Status::ok) s = l.keys.template append<T>(ctx, first, l.device_slots(), keys, counts_.data());
  if (s == Status::ok && means.data != nullptr) s = l.values.template append<float>(ctx, first, l.device_slots(), summed, counts_.data());
  else if (s == Status::ok) s = l.values.template append<T>(ctx, first, l.device_slots(), values, counts_.data());
  if (s != Status::ok) return static_cast<void>(l.add_slots(ctx, -n, -first)), s;
  for (index_t i = 0; i < n; ++i) l.pending_positions.append_reserved(positions.empty() ? next + i : positions[static_cast<std::size_t>(i)]);
  l.counters.seen += n, l.counters.pending += n;
  return Status::ok;
}

template <class R>
template <class K, class V>
  requires StoredNumbers<K, V>
Status Cache<Cuda, R>::forward(Context<Cuda>& ctx, index_t layer, TensorView<const float, 3> queries, TensorView<K, 3> keys, TensorView<V, 3> values,
                               TensorView<float, 3> out, std::span<const index_t> positions, Phase phase, StepInputs inputs, prim::AttendMath math) {
  if (const Status s = append(ctx, layer, keys, values, positions, queries); s != Status::ok) return s;
  const index_t n = queries.extent[1], added = keys.extent[1];
  AttendOutputs measure;
  Scratch all(ctx.workspace());
  Status s = Status::ok;
  if (wants_mass(layer, phase)) {
    measure.mass = ragged(layer, all.take<float>(total_slots(layer)));
    if (measure.mass.data == nullptr) s = Status::workspace_too_small;
  }
  Context<Cuda> rest = ctx.with_workspace(all.rest());
  if (s == Status::ok) s = attend(rest, layer, queries, out, measure, math);
  inputs.attention = {measure.mass, mass_rows(n)}, inputs.queries = queries;
  if (s == Status::ok) s = run_step(rest, layer, inputs, phase);
  Layer& l = layers_[layer];
  if (s != Status::ok && !l.torn && l.counters.pending >= added && added > 0) {  // the tokens are taken back
    l.counters.seen -= added, l.counters.pending -= added;
    static_cast<void>(l.add_slots(ctx, -added, -l.sinks_due(added)));
    l.pending_positions.shrink(l.counters.pending);
  }
  return s;
}

}  // namespace kvcondense
