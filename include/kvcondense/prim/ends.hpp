#pragma once

#include <kvcondense/core/config.hpp>

namespace kvcondense::prim {

/// The first `prefix` and the last `suffix` places of a row.
struct Ends {
  index_t prefix = 0;
  index_t suffix = 0;

  KVCONDENSE_HD constexpr index_t size() const { return prefix + suffix; }

  /// The same ends in a row of `n` places, without overlap.
  KVCONDENSE_HD constexpr Ends within(index_t n) const {
    const index_t first = prefix < 0 ? 0 : prefix < n ? prefix : n;
    const index_t last = suffix < 0 ? 0 : suffix < n - first ? suffix : n - first;
    return {first, last};
  }
};

}  // namespace kvcondense::prim
