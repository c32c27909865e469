#pragma once

#include <span>
#include <vector>

#include <engine/config.hpp>
#include <kvcondense/prim/rope_config.hpp>

namespace engine {

/// The rotary embedding in kvcondense's words, which recipes that rotate keys themselves take too.
/// `context` is the length that dynamic frequencies are for; other scalings ignore it.
kvcondense::prim::RopeConfig library_rope(const RopeConfig& rope, index_t context);

/// Cosines and sines of one chunk: [tokens, rotary_dim / 2] each, the attention factor included.
struct RopeTable {
  std::vector<float> cos;
  std::vector<float> sin;

  /// For tokens at ascending positions. Dynamic frequencies are those of the chunk's end.
  void fill(const RopeConfig& rope, std::span<const index_t> positions);
};

/// Rotates rows [tokens, heads, head_dim] in place. Channel t pairs with t + rotary_dim / 2.
void rotate(const RopeConfig& rope, const RopeTable& table, index_t tokens, index_t heads,
            index_t head_dim, float* rows);

}  // namespace engine
