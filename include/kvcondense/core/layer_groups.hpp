#pragma once

#include <algorithm>
#include <cstdint>

#include <kvcondense/core/config.hpp>

namespace kvcondense {

inline constexpr index_t max_layer_group = 16;

/// Neighbouring layers that store rows together; one: it stores its own.
struct LayerGroup {
  index_t first = 0;
  index_t count = 1;
};

/// Groups of `size` layers, the first of them from the layer `first` on; the last may have fewer.
struct LayerGroups {
  index_t first = 0;
  index_t size = 1;

  constexpr LayerGroup of(index_t layers, index_t layer) const {
    if (size <= 1 || layer < first) return {layer, 1};
    const index_t from = first + (layer - first) / size * size;
    return {from, std::min(size, layers - from)};
  }
};

/// How a column stores what leaves its exact window.
enum class Together : std::uint8_t {
  alone,
  directions,  ///< a direction for two layers, in each a length
  sums,        ///< one row for all layers of a group: the sum of what each maps its own to
};

}  // namespace kvcondense
