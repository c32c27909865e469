#pragma once

#include <algorithm>
#include <cmath>
#include <limits>

#include <kvcondense/core/config.hpp>

namespace kvcondense::prim {

/// Eigenvalues and eigenvectors of a symmetric matrix a [n][n], in place: afterwards row i of `a` is the i-th
/// eigenvector, largest value first, its entry of largest size positive. `value` and `side`: n numbers each.
///
/// Numbers  Householder reduction and implicit QL, float32 with float64 in sums; orthonormal to about 1e-6. A zero matrix
///          gives the axes.
inline void symmetric_eigen(float* a, index_t n, float* value, float* side) {
  const auto at = [&](index_t i, index_t j) -> float& { return a[i * n + j]; };
  // To tridiagonal form, the reflections gathered in a.
  for (index_t i = n - 1; i > 0; --i) {
    double scale = 0.0, h = 0.0;
    for (index_t k = 0; k < i; ++k) scale += std::fabs(static_cast<double>(at(i, k)));
    // Of rows that span little, what is left is rounding of rounding: its inverse would be no float.
    if (i == 1 || !(scale > 1e-36)) {
      side[i] = at(i, i - 1), value[i] = 0.0f;
      continue;
    }
    const auto down = static_cast<float>(1.0 / scale);
    for (index_t k = 0; k < i; ++k) at(i, k) *= down, h += static_cast<double>(at(i, k)) * static_cast<double>(at(i, k));
    const double f = static_cast<double>(at(i, i - 1)), g = f >= 0.0 ? -std::sqrt(h) : std::sqrt(h);
    side[i] = static_cast<float>(scale * g);
    h -= f * g;
    at(i, i - 1) = static_cast<float>(f - g);
    double along = 0.0;
    for (index_t j = 0; j < i; ++j) {
      at(j, i) = static_cast<float>(static_cast<double>(at(i, j)) / h);
      double sum = 0.0;
      for (index_t k = 0; k <= j; ++k) sum += static_cast<double>(at(j, k)) * static_cast<double>(at(i, k));
      for (index_t k = j + 1; k < i; ++k) sum += static_cast<double>(at(k, j)) * static_cast<double>(at(i, k));
      side[j] = static_cast<float>(sum / h);
      along += static_cast<double>(side[j]) * static_cast<double>(at(i, j));
    }
    const double hh = along / (h + h);
    for (index_t j = 0; j < i; ++j) {
      const float u = at(i, j);
      const float w = side[j] = static_cast<float>(static_cast<double>(side[j]) - hh * static_cast<double>(u));
      for (index_t k = 0; k <= j; ++k) at(j, k) -= u * side[k] + w * at(i, k);
    }
    value[i] = static_cast<float>(h);
  }
  value[0] = side[0] = 0.0f;
  for (index_t i = 0; i < n; ++i) {
    if (value[i] != 0.0f)
      for (index_t j = 0; j < i; ++j) {
        double sum = 0.0;
        for (index_t k = 0; k < i; ++k) sum += static_cast<double>(at(i, k)) * static_cast<double>(at(k, j));
        const auto s = static_cast<float>(sum);
        for (index_t k = 0; k < i; ++k) at(k, j) -= s * at(k, i);
      }
    value[i] = at(i, i);
    at(i, i) = 1.0f;
    for (index_t j = 0; j < i; ++j) at(j, i) = at(i, j) = 0.0f;
  }
  // From here on rows are eigenvectors: turning two of them reads memory in order.
  for (index_t i = 0; i < n; ++i)
    for (index_t j = 0; j < i; ++j) std::swap(at(i, j), at(j, i));
  // Implicit QL.
  for (index_t i = 1; i < n; ++i) side[i - 1] = side[i];
  side[n - 1] = 0.0f;
  constexpr double tiny = std::numeric_limits<float>::epsilon();
  double largest = 0.0;
  for (index_t i = 0; i < n; ++i)
    largest = std::max(largest, std::fabs(static_cast<double>(value[i])) + std::fabs(static_cast<double>(side[i])));
  for (index_t l = 0; l < n; ++l) {
    for (int turn = 0; turn < 60; ++turn) {
      index_t m = l;
      for (; m < n - 1; ++m) {
        const double size = std::fabs(static_cast<double>(value[m])) + std::fabs(static_cast<double>(value[m + 1]));
        if (std::fabs(static_cast<double>(side[m])) <= std::max(tiny * size, 1e-3 * tiny * largest)) break;
      }
      if (m == l) break;
      double g = (static_cast<double>(value[l + 1]) - static_cast<double>(value[l])) / (2.0 * static_cast<double>(side[l]));
      double r = std::hypot(g, 1.0);
      g = static_cast<double>(value[m]) - static_cast<double>(value[l]) + static_cast<double>(side[l]) / (g + std::copysign(r, g));
      double s = 1.0, c = 1.0, p = 0.0;
      index_t i = m - 1;
      for (; i >= l; --i) {
        const double f = s * static_cast<double>(side[i]), b = c * static_cast<double>(side[i]);
        r = std::hypot(f, g);
        side[i + 1] = static_cast<float>(r);
        if (r == 0.0) {
          value[i + 1] -= static_cast<float>(p);
          side[m] = 0.0f;
          break;
        }
        s = f / r, c = g / r;
        g = static_cast<double>(value[i + 1]) - p;
        r = (static_cast<double>(value[i]) - g) * s + 2.0 * c * b;
        p = s * r;
        value[i + 1] = static_cast<float>(g + p);
        g = c * r - b;
        const auto sf = static_cast<float>(s), cf = static_cast<float>(c);
        float* x = a + i * n;
        float* y = x + n;
        for (index_t k = 0; k < n; ++k) {
          const float u = x[k], v = y[k];
          y[k] = sf * u + cf * v;
          x[k] = cf * u - sf * v;
        }
      }
      if (r == 0.0 && i >= l) continue;
      value[l] -= static_cast<float>(p);
      side[l] = static_cast<float>(g);
      side[m] = 0.0f;
    }
  }
  for (index_t i = 0; i < n; ++i) {
    const index_t best = std::max_element(value + i, value + n) - value;
    if (best != i) {
      std::swap(value[i], value[best]);
      std::swap_ranges(a + i * n, a + (i + 1) * n, a + best * n);
    }
    float* x = a + i * n;
    index_t most = 0;
    for (index_t k = 1; k < n; ++k)
      if (std::fabs(x[k]) > std::fabs(x[most])) most = k;
    if (x[most] < 0.0f)
      for (index_t k = 0; k < n; ++k) x[k] = -x[k];
  }
}

}  // namespace kvcondense::prim
