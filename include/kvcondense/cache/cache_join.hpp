#pragma once

#include <algorithm>
#include <cmath>

#include <kvcondense/cache/cache.hpp>
#include <kvcondense/cache/dense_row.hpp>
#include <kvcondense/cache/folding.hpp>

namespace kvcondense {

/// What a token counts in its slot, as the queries of the head's group say it.
template <Backend B, class R>
float Cache<B, R>::joining_query(index_t head, index_t token, TensorView<const float, 3> queries, index_t position) const {
  const index_t group = shape_.group();
  float sum = 0.0f, row[max_head_dim];
  for (index_t g = 0; g < group; ++g)
    sum += control_.read(cache::row_of(queries, head * group + g, token, row), position);
  return sum / static_cast<float>(group);
}

template <Backend B, class R>
Status Cache<B, R>::check_join(const Layer& l, index_t tokens, TensorView<const float, 3> queries,
                               std::span<const index_t> positions) const {
  if (queries.data == nullptr) return Status::missing_input;
  if (queries.extent[0] != shape_.q_heads || queries.extent[1] != tokens || queries.extent[2] != shape_.head_dim)
    return Status::shape_mismatch;
  for (index_t h = 0; h < shape_.kv_heads; ++h)
    for (index_t t = 0; t < tokens; ++t) {
      const index_t at = positions.empty() ? l.next_position() + t : positions[static_cast<std::size_t>(t)];
      if (!std::isfinite(joining_query(h, t, queries, at))) return Status::invalid_argument;
    }
  return Status::ok;
}

/// Appends to a head, for every token, what its slot is with it; the slot as it was before leaves in the next step. After
/// room for all was reserved.
template <Backend B, class R>
template <class T>
void Cache<B, R>::join_rows(Layer& l, index_t h, TensorView<const T, 3> keys, TensorView<const T, 3> values,
                            TensorView<const float, 3> queries, std::span<const index_t> positions, index_t sinks) const {
  const index_t dim = shape_.head_dim, next = l.next_position();
  const prim::RopeAngles& angles = fold_angles_;
  const bool raw = recipe_.position.raw_keys, turned = raw ? recipe_.position.rotated_input : fold_.gate.rotated;
  auto& head = l.heads[h];
  float k[max_head_dim], v[max_head_dim], cos[max_head_dim / 2], sin[max_head_dim / 2];
  for (index_t t = 0; t < keys.extent[1]; ++t) {
    const index_t at = positions.empty() ? next + t : positions[static_cast<std::size_t>(t)];
    cache::copy_row(keys, h, t, k), cache::copy_row(values, h, t, v);
    const bool joins = fold_.gate.joins(control_.read(k, at));
    if (turned) {
      prim::rope_cos_sin(angles, at, cos, sin);
      prim::rotate_row(k, k, cos, sin, angles.pairs, angles.pairing, true);
    }
    k[control_.at] = 0.0f;
    if (turned) cache::bring_into_range(k, dim, DType::f32, head.repaired);  // a pair that turned may be longer than its numbers were
    head.open.add(k, v, fold_.gate.weight(joining_query(h, t, queries, at)), joins, fold_.gate.window);
    if (turned && !raw) {
      prim::rotate_row(k, k, cos, sin, angles.pairs, angles.pairing);
      k[control_.at] = 0.0f;
    }
    cache::bring_into_range(k, dim, shape_.dtype, head.repaired);
    cache::bring_into_range(v, shape_.values(), shape_.dtype, head.repaired);
    head.keys.append({k, 1, dim}, t < sinks);
    head.values.append({v, 1, shape_.values()}, t < sinks);
  }
}

}  // namespace kvcondense
