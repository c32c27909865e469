#pragma once

#include <algorithm>
#include <cstdint>

#include <kvcondense/core/flush.hpp>
#include <kvcondense/core/row_groups.hpp>
#include <kvcondense/core/policy.hpp>
#include <kvcondense/core/shape.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/core/step_inputs.hpp>
#include <kvcondense/prim/found_basis.hpp>

namespace kvcondense::lowrank {

/// Stores the rows of a token in several layers as one row of coordinates, in directions found from the prompt.
///
/// Idea     rows of one token in neighbouring layers, side by side, lie near a subspace that is much smaller than the sum of the
///          layers' own: their coordinates are stored once for all layers, and each layer reads them through its own part of
///          the directions.
/// Source   xKV, arXiv:2503.18893.
/// Needs    keys and values only. Rotated or raw keys (the paper's): what the cache stores is decomposed.
/// Shapes   per group of `layers` layers and `heads` KV heads of each, `rank` directions of layers * heads * head_dim numbers, rank =
///          floor(keep * those), at most head_dim, down to a multiple of `tile`; coordinates [slots, rank], a page of `page_slots`
///          slots at a time. The last groups may have fewer members; a head that is left alone is stored as online_pca stores it.
/// Cost     with n = layers * heads * head_dim, n^2 / 2 multiplications per slot of the prompt and about 10 n^3, once per group, at
///          the end of its last layer; rank * head_dim numbers of float32 per head, side and layer; then as pca.
/// Numbers  as online_pca, not centred. Rows stay exact until all members of a group have them, the newest `window` slots and what
///          fills no page for ever. The directions never change.
/// Differs  a group has at most head_dim coordinates, so that all heads of four layers at once, as in the paper, can keep less than
///          the paper does; by default one head of each. Later tokens are stored in the same directions, where the paper keeps them
///          exact. Heads that an eviction stage left other tokens keep their rows exact.
/// Errors   invalid_argument unless 2 <= layers * heads <= 16, 0 < keep, value_keep <= 1 / (layers * heads) and the others are not
///          negative;
///          incompatible with minicache, mikv, and a quantizer that finds factors from the same rows.
struct XKv {
  static constexpr Descriptor about{"xkv", Stage::lowrank, "arXiv:2503.18893"};
  static constexpr Inputs needs{};

  double keep = 0.125;         ///< of the numbers of all keys of a group
  double value_keep = 0.1875;  ///< of values, likewise
  index_t layers = 4;          ///< of a group
  index_t heads = 1;           ///< of each of them
  index_t tile = 8;            ///< ranks are multiples of it
  index_t window = 32;         ///< newest slots that stay exact
  index_t least = 64;          ///< slots that directions are found from, at least
  index_t sinks = 0;
  bool keys = true;
  bool values = true;

  prim::FoundBasis key_transform(const CacheShape& shape, HeadIndex at) const { return basis(keys, keep, shape.head_dim, shape, at); }
  prim::FoundBasis value_transform(const CacheShape& shape, HeadIndex at) const {
    return basis(values, value_keep, shape.values(), shape, at);
  }
  constexpr Flush key_flush() const { return keys ? Flush{1, window, least} : Flush{0, 0}; }
  constexpr Flush value_flush() const { return values ? Flush{1, window, least} : Flush{0, 0}; }
  constexpr bool differs_per_head() const { return true; }  // the last group may be smaller
  constexpr RowGroups row_groups(const CacheShape&) const { return {0, layers, heads}; }

  Status validate(const CacheShape&) const {
    const auto part = [&](double x) { return x > 0.0 && x * static_cast<double>(layers * heads) <= 1.0; };
    const bool some = layers >= 1 && heads >= 1 && layers <= max_row_group && heads <= max_row_group;
    const bool good = some && layers * heads >= 2 && layers * heads <= max_row_group && part(keep) && part(value_keep) && tile >= 1 && window >= 0 &&
                      least >= 0 && sinks >= 0;
    return good && (keys || values) ? Status::ok : Status::invalid_argument;
  }

 private:
  prim::FoundBasis basis(bool on, double part, index_t dim, const CacheShape& shape, HeadIndex at) const {
    if (!on) return {};
    const RowGroups g = row_groups(shape);
    const auto all = static_cast<double>(g.layers_of(shape.layers, at.layer).count * g.heads_of(shape.kv_heads, at.head).count * dim);
    const auto r = static_cast<index_t>(part * all + 1e-9) / tile * tile;
    return {static_cast<std::int32_t>(std::clamp(r, std::min(tile, dim), dim)), false};
  }
};

}  // namespace kvcondense::lowrank
