#pragma once

#include <numeric>
#include <span>

#include <kvcondense/backend/cuda/open_slots.cuh>
#include <kvcondense/cache/cuda_cache.cuh>

// Tokens of a cache on CUDA that join the newest slot of their head before they are attended.

namespace kvcondense {

/// What lets tokens join, before there are layers.
template <class R>
Status Cache<Cuda, R>::make_joining() {
  const prim::JoinGate& gate = fold_.gate;
  if (!may_join || !gate.active) return Status::ok;
  join_.gate = gate, join_.turned = gate.rotated, join_.raw = may_turn;
  prim::RopeConfig rope = fold_.rope;
  if constexpr (may_turn) rope = recipe_.position.rope, join_.turned = recipe_.position.rotated_input;
  if (join_.turned) {
    const auto angles = prim::rope_angles(rope, shape().head_dim);
    if (!angles) return angles.status();
    join_.angles = *angles;
  }
  join_.control = prim::ControlComponent::of(gate, join_.turned ? &join_.angles : nullptr, shape().head_dim);
  join_.control.turns = may_turn;
  plan_.joins = true, plan_.join_window = gate.window;
  return Status::ok;
}

template <class R>
Status Cache<Cuda, R>::check_join(index_t tokens, TensorView<const float, 3> queries) const {
  if (!plan_.joins) return Status::ok;
  if (queries.data == nullptr) return Status::missing_input;
  const bool fits = queries.extent[0] == shape().q_heads && queries.extent[1] == tokens && queries.extent[2] == shape().head_dim;
  return fits ? Status::ok : Status::shape_mismatch;
}

/// Scratch of `append`, and of queries.
template <class R>
std::size_t Cache<Cuda, R>::joined_bytes(index_t tokens) const {
  const index_t rows = shape().kv_heads * tokens;
  return plan_.joins ? Scratch::align + Scratch::bytes_for<float>(rows * shape().head_dim) + Scratch::bytes_for<float>(rows * shape().values()) : 0;
}
template <class R>
std::size_t Cache<Cuda, R>::cleared_bytes(index_t tokens) const {
  return plan_.joins ? Scratch::align + Scratch::bytes_for<float>(shape().q_heads * tokens * shape().head_dim) : 0;
}

/// Of every token what its slot is with it; the slot as it was before leaves in the next step. Behind room and slots for all.
template <class R>
template <class T>
Status Cache<Cuda, R>::join_rows(Context<Cuda>& ctx, Layer& l, TensorView<const T, 3> keys, TensorView<const T, 3> values, TensorView<const float, 3> queries,
                                 std::span<const index_t> positions, TensorView<float, 3> key_means, TensorView<float, 3> value_means) {
  Buffer<index_t> own(heap_memory());
  if (positions.empty()) {
    if (const Status s = own.resize(keys.extent[1]); s != Status::ok) return s;
    std::iota(own.begin(), own.end(), l.next_position());
    positions = own.span();
  }
  return prim::OpenSlots::add<T>(ctx, l.open.view(), join_, l.counters.pending, positions, keys, values, queries, std::as_const(l.ids).view(), l.device_slots(),
                                 l.open.token(), shape().dtype, key_means, value_means, counts_.data());
}

/// Queries of tokens at `positions` without the component that gates read.
template <class R>
Status Cache<Cuda, R>::clear_queries(Context<Cuda>& ctx, std::span<const index_t> positions, TensorView<const float, 3>& queries, Scratch& scratch) const {
  if constexpr (may_join) {
    if (!plan_.joins || queries.extent[1] == 0) return Status::ok;
    const TensorView<float, 3> out = dense_view(scratch.take<float>(shape().q_heads * queries.extent[1] * shape().head_dim), shape().q_heads, queries.extent[1], shape().head_dim);
    if (out.data == nullptr) return Status::workspace_too_small;
    const Status s = prim::OpenSlots::clear(ctx, join_.control, positions, queries, out);
    queries = out;
    return s;
  }
  return Status::ok;
}

}  // namespace kvcondense
