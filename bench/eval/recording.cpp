#include <eval/recording.hpp>

#include <eval/error.hpp>
#include <kvcondense/backend/cpu/rope.hpp>

namespace eval {
namespace {

TensorView<const float, 3> by_head(const std::vector<float>& rows, index_t heads, index_t dim,
                                   index_t first, index_t count) {
  return {rows.data() + first * heads * dim, {heads, count, dim}, {dim, heads * dim, 1}};
}

void append_rows(std::vector<float>& to, const TensorView<const float, 3>& rows) {
  for (index_t t = 0; t < rows.extent[1]; ++t)
    for (index_t h = 0; h < rows.extent[0]; ++h) {
      const float* row = &rows(h, t, 0);
      to.insert(to.end(), row, row + rows.extent[2]);
    }
}

/// Turns rows [tokens, heads, dim] at positions 0, 1, ... in place.
void turn(std::vector<float>& rows, const kvcondense::prim::RopeAngles& angles, index_t heads,
          index_t dim, kvcondense::prim::RopeTurn how) {
  const index_t tokens = static_cast<index_t>(rows.size()) / (heads * dim);
  std::vector<index_t> positions(static_cast<std::size_t>(tokens));
  for (index_t t = 0; t < tokens; ++t) positions[static_cast<std::size_t>(t)] = t;
  const TensorView<float, 3> view{rows.data(), {heads, tokens, dim}, {dim, heads * dim, 1}};
  kvcondense::Context<kvcondense::Cpu> context;
  require(kvcondense::prim::Rope<kvcondense::Cpu>::rotate(
              context, angles, view,
              kvcondense::dense_view<const index_t>(positions.data(), 1, tokens), view, how),
          "rotation");
}

}  // namespace

engine::LayerChunk Recording::chunk(index_t layer, index_t first, index_t count,
                                    std::span<const index_t> positions,
                                    kvcondense::Phase phase) const {
  const Layer& l = layers[static_cast<std::size_t>(layer)];
  return {layer,
          by_head(l.q, shape.q_heads, shape.head_dim, first, count),
          by_head(l.k, shape.kv_heads, shape.head_dim, first, count),
          by_head(l.v, shape.kv_heads, shape.values(), first, count),
          positions,
          phase};
}

void Recording::append(const engine::LayerChunk& chunk) {
  Layer& l = layers[static_cast<std::size_t>(chunk.layer)];
  append_rows(l.q, chunk.q);
  append_rows(l.k, chunk.k);
  append_rows(l.v, chunk.v);
  tokens = static_cast<index_t>(l.v.size()) / (shape.kv_heads * shape.values());
}

void rotate(Recording& raw) {
  const auto angles = kvcondense::prim::rope_angles(*raw.rope, raw.shape.head_dim);
  require(angles.status(), "rotary embedding");
  for (Recording::Layer& l : raw.layers) {
    turn(l.q, *angles, raw.shape.q_heads, raw.shape.head_dim, {.scale = angles->attention_factor});
    turn(l.k, *angles, raw.shape.kv_heads, raw.shape.head_dim, {.scale = angles->attention_factor});
  }
}

Recording before_rotation(const Recording& rotated) {
  if (!rotated.rope)
    throw Error(
        "these keys are rotated, and nothing says how: the dump needs rope_theta or rope.inv_freq");
  const auto angles = kvcondense::prim::rope_angles(*rotated.rope, rotated.shape.head_dim);
  require(angles.status(), "rotary embedding");
  Recording raw(rotated.shape);
  raw.tokens = rotated.tokens;
  raw.layers = rotated.layers;
  raw.frequencies = rotated.frequencies;
  raw.rope = rotated.rope;
  const kvcondense::prim::RopeTurn back{.back = true, .scale = 1.0f / angles->attention_factor};
  for (Recording::Layer& l : raw.layers) {
    turn(l.q, *angles, raw.shape.q_heads, raw.shape.head_dim, back);
    turn(l.k, *angles, raw.shape.kv_heads, raw.shape.head_dim, back);
  }
  return raw;
}

}  // namespace eval
