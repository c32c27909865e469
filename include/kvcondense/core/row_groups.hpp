#pragma once

#include <algorithm>
#include <cstdint>

#include <kvcondense/core/config.hpp>

namespace kvcondense {

inline constexpr index_t max_row_group = 16;

/// Neighbours: layers, or KV heads.
struct Span {
  index_t first = 0;
  index_t count = 1;
};

/// Neighbouring layers that store rows together, and of each of them neighbouring KV heads: groups of `layers` layers, from the
/// layer `first` on, and of `heads` heads; the last ones may have fewer.
struct RowGroups {
  index_t first = 0;
  index_t layers = 1;
  index_t heads = 1;

  constexpr index_t most() const { return layers * heads; }
  constexpr Span layers_of(index_t all, index_t layer) const {
    if (layer < first) return {layer, 1};
    const index_t from = first + (layer - first) / layers * layers;
    return {from, std::min(layers, all - from)};
  }
  constexpr Span heads_of(index_t all, index_t head) const {
    const index_t from = head / heads * heads;
    return {from, std::min(heads, all - from)};
  }
};

/// How a column stores what leaves its exact window.
enum class Together : std::uint8_t {
  alone,
  directions,  ///< a direction for two layers, in each a length
  sums,        ///< one row for all of a group: the sum of what each maps its own to
};

}  // namespace kvcondense
