#pragma once

#include <kvcondense/cache/cuda_cache.cuh>

namespace kvcondense {

template <class R>
Status Cache<Cuda, R>::attend(Context<Cuda>& ctx, index_t layer, TensorView<const float, 3> queries, TensorView<float, 3> out, const AttendOutputs& measure,
                             prim::AttendMath math) const {
  if (layer < 0 || layer >= shape().layers) return Status::out_of_range;
  const Layer& l = layers_[layer];
  if (l.torn) return Status::device_error;
  const index_t n = queries.extent[1];
  if (queries.extent[0] != shape().q_heads || queries.extent[2] != shape().head_dim || out.extent[1] != n || out.extent[2] != shape().values())
    return Status::shape_mismatch;
  if (measure.mass.data != nullptr && !of_layer(l, measure.mass)) return Status::shape_mismatch;
  if (measure.pages != nullptr) return Status::not_supported;
  if (measure.runs.data != nullptr && measure.runs.room < 1 && l.longest() > 0) return Status::out_of_range;
  if (n > std::max<index_t>(1, l.counters.pending)) return Status::order_violation;
  prim::AttendRequest r = request(queries, out);
  r.lse = measure.lse, r.mass = measure.mass, r.mass_rows = mass_rows(n);
  if (measure.reads != nullptr) *measure.reads = {};
  Scratch scratch(ctx.workspace());
  const index_t last = l.next_position() - 1;  // of a query that came without its token
  const std::span<const index_t> positions = l.counters.pending >= n ? l.pending_positions.span().last(static_cast<std::size_t>(n)) : std::span(&last, 1);
  if (const Status s = clear_queries(ctx, positions, r.queries, scratch); s != Status::ok) return s;
  Context<Cuda> own = ctx.with_workspace(scratch.rest());
  if constexpr (retrieves)
    if (bool all = false; retrieval_.chooses(layer, n)) {
      if (const Status s = retrieval_.attend(own, layer, l, plan_, r, query_turn(l, n, last), measure, math, all); s != Status::ok || !all) return s;
    }
  prim::KeyTurn keys{};
  if constexpr (may_turn)
    if (const Status s = stand(own, l, r, keys); s != Status::ok) return s;
  const Status s = prim::Attend<Cuda>::run(own, r, l.heads(keys), l.longest(), math);
  return s == Status::ok && (measure.reads != nullptr || measure.runs.data != nullptr) ? cache::tell_all_read(ctx, l, shape(), measure) : s;
}

/// Behind a step: units are chosen that later calls go on reading, from rows as they are then.
template <class R>
Status Cache<Cuda, R>::hold(Context<Cuda>& ctx, index_t layer, cache::NewestQueries& newest, bool prompt) {
  if constexpr (retrieves) {
    Layer& l = layers_[layer];
    Scratch scratch(ctx.workspace(), retrieval_.held_steering(layer));
    const std::span<const index_t> positions = newest.positions.span();
    Status s = clear_queries(ctx, positions, newest.queries, scratch);
    cache::QueryTurn turn;
    if constexpr (may_turn) turn = {&rotation_, decltype(R::position)::rotated_input ? positions : std::span<const index_t>(), reach()};
    if (s == Status::ok) s = retrieval_.hold(ctx, layer, l, shape(), newest.queries, turn, prompt, scratch);
    const Status behind = l.fence.record(ctx);  // the next step writes what this one reads
    l.torn = s != Status::ok || behind != Status::ok;
    return s == Status::ok ? behind : s;
  }
  return Status::ok;
}

}  // namespace kvcondense
