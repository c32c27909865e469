#pragma once

#include <algorithm>

#include <kvcondense/core/config.hpp>

namespace kvcondense::retrieve {

/// Calls take(i) for the `count` largest of `n` magnitudes, largest first; of equal ones the first, NaN last. The magnitudes are used up.
template <class T, class Take>
void take_largest(T* size, index_t n, index_t count, Take&& take) {
  constexpr T none = -1, taken = -2;
  for (index_t i = 0; i < n; ++i)
    if (!(size[i] >= 0)) size[i] = none;  // a total order: every one is taken once
  for (index_t k = 0; k < std::min(count, n); ++k) {
    const index_t best = std::max_element(size, size + n) - size;
    size[best] = taken;
    take(best);
  }
}

}  // namespace kvcondense::retrieve
