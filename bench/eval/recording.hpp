#pragma once

#include <optional>
#include <string>
#include <vector>

#include <engine/decoder.hpp>
#include <kvcondense/core/shape.hpp>
#include <kvcondense/prim/rope_config.hpp>

namespace eval {

using kvcondense::CacheShape;
using kvcondense::index_t;
using kvcondense::TensorView;

/// Queries, keys and values of one sequence, as attention wants them (rotated), all layers.
struct Recording {
  struct Layer {
    std::vector<float> q;  ///< [tokens, q_heads, head_dim]
    std::vector<float> k;  ///< [tokens, kv_heads, head_dim]
    std::vector<float> v;  ///< [tokens, kv_heads, head_dim]
  };

  CacheShape shape{};
  index_t tokens = 0;
  std::vector<Layer> layers;
  /// How q and k were rotated, where that is known. Its tables lie in `frequencies`.
  std::optional<kvcondense::prim::RopeConfig> rope;
  std::vector<float> frequencies;

  Recording() = default;
  Recording(Recording&& o) noexcept =
      default;  // moved vectors keep their buffers, so tables stay valid
  Recording& operator=(Recording&& o) noexcept = default;

  /// An empty one for a model of this shape.
  explicit Recording(const CacheShape& s) : shape(s), layers(static_cast<std::size_t>(s.layers)) {}

  /// Tokens [first, first + count) of a layer as a decoder would hand them over. `positions` has
  /// `count` numbers.
  engine::LayerChunk chunk(index_t layer, index_t first, index_t count,
                           std::span<const index_t> positions,
                           kvcondense::Phase phase = kvcondense::Phase::automatic) const;

  /// Adds what a decoder hands to its cache.
  void append(const engine::LayerChunk& chunk);
};

/// Rotates q and k that were not rotated yet, as `rope` says.
void rotate(Recording& raw);

/// The same sequence before rotation. Throws Error when `rope` is not known.
Recording before_rotation(const Recording& rotated);

/// Reads a dump (docs/evaluation.md says what is in one). Throws Error.
Recording read_qkv(const std::string& path);
/// A file that read_qkv reads. Throws Error.
std::string qkv_bytes(const Recording& recording);

}  // namespace eval
