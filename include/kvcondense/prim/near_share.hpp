#pragma once

#include <algorithm>
#include <cmath>

#include <kvcondense/core/config.hpp>

namespace kvcondense::prim {

/// How many tokens are near: half of a part of some tokens, halves to even, but never none.
struct NearShare {
  double ratio = 0.2;

  index_t of(index_t tokens) const {
    return std::max<index_t>(1, static_cast<index_t>(std::nearbyint(static_cast<double>(tokens) * ratio / 2.0)));
  }
};

}  // namespace kvcondense::prim
