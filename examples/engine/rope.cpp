#include <engine/rope.hpp>

#include <algorithm>
#include <cassert>

#include <kvcondense/prim/rope.hpp>

namespace engine {

namespace prim = kvcondense::prim;

prim::RopeConfig library_rope(const RopeConfig& rope, index_t context) {
  using S = prim::RopeScaling;
  constexpr S scalings[] = {S::none, S::linear, S::dynamic_ntk, S::llama3, S::yarn};
  prim::RopeConfig c;
  c.rotary_dim = rope.rotary_dim;
  c.base = rope.theta;
  c.scaling = scalings[static_cast<int>(rope.scaling)];
  c.factor = rope.factor;
  c.original_length = rope.original_length;
  c.length = context;
  c.low_frequency = rope.low_freq_factor;
  c.high_frequency = rope.high_freq_factor;
  c.beta_fast = rope.beta_fast;
  c.beta_slow = rope.beta_slow;
  c.attention_factor = rope.attention_factor;
  return c;
}

void RopeTable::fill(const RopeConfig& rope, std::span<const index_t> positions) {
  const auto tokens = static_cast<index_t>(positions.size());
  const index_t end = positions.empty() ? 0 : positions.back() + 1;
  const auto angles = prim::rope_angles(library_rope(rope, end), rope.rotary_dim);
  assert(angles && "parse_config lets no other configuration through");
  cos.resize(static_cast<std::size_t>(tokens * angles->pairs));
  sin.resize(cos.size());
  for (index_t t = 0; t < tokens; ++t)
    prim::rope_cos_sin(*angles, positions[static_cast<std::size_t>(t)], cos.data() + t * angles->pairs,
                       sin.data() + t * angles->pairs);
  for (auto* table : {&cos, &sin})
    for (float& x : *table) x *= angles->attention_factor;
}

void rotate(const RopeConfig& rope, const RopeTable& table, index_t tokens, index_t heads,
            index_t head_dim, float* rows) {
  const index_t pairs = rope.rotary_dim / 2;
  for (index_t t = 0; t < tokens; ++t) {
    for (index_t h = 0; h < heads; ++h) {
      float* row = rows + (t * heads + h) * head_dim;
      prim::rotate_row(row, row, table.cos.data() + t * pairs, table.sin.data() + t * pairs, pairs,
                       prim::RopePairing::half_split);
    }
  }
}

}  // namespace engine
