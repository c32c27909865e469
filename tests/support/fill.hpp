#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <numbers>

#include <kvcondense/core/random.hpp>
#include <kvcondense/core/view.hpp>

namespace kvcondense::test {

/// Unit normal numbers; the same seed gives the same numbers everywhere.
inline void fill_normal(float* out, std::size_t n, std::uint64_t seed) {
  for (std::size_t i = 0; i < n; i += 2) {
    const double radius = std::sqrt(-2.0 * std::log(1.0 - static_cast<double>(random_uniform(seed, i))));
    const double angle = 2.0 * std::numbers::pi * static_cast<double>(random_uniform(seed, i + 1));
    out[i] = static_cast<float>(radius * std::cos(angle));
    if (i + 1 < n) out[i + 1] = static_cast<float>(radius * std::sin(angle));
  }
}

/// Uniform numbers in [0, 1).
inline void fill_uniform(float* out, std::size_t n, std::uint64_t seed) {
  for (std::size_t i = 0; i < n; ++i) out[i] = random_uniform(seed, i);
}

template <class T>
TensorView<T, 2> view2(T* data, index_t rows, index_t columns) {
  return {data, {rows, columns}, {columns, 1}};
}

}  // namespace kvcondense::test
