#pragma once

#include <algorithm>
#include <cmath>
#include <functional>
#include <vector>

#include <kvcondense/core/config.hpp>

namespace kvcondense::test {

/// Singular values of x [n][dim], largest first: rows are turned against each other until all are orthogonal (one-sided
/// Jacobi, in double).
inline std::vector<double> singular_values(const std::vector<float>& x, index_t n, index_t dim) {
  std::vector<std::vector<double>> rows;
  for (index_t i = 0; i < n; ++i) rows.emplace_back(x.begin() + i * dim, x.begin() + (i + 1) * dim);
  const auto dot = [](const auto& a, const auto& b) {
    double sum = 0;
    for (std::size_t c = 0; c < a.size(); ++c) sum += a[c] * b[c];
    return sum;
  };
  for (bool turned = true; turned;) {
    turned = false;
    for (std::size_t i = 0; i < rows.size(); ++i)
      for (std::size_t j = i + 1; j < rows.size(); ++j) {
        const double aa = dot(rows[i], rows[i]), bb = dot(rows[j], rows[j]), ab = dot(rows[i], rows[j]);
        if (std::abs(ab) <= 1e-12 * std::sqrt(aa * bb) || std::abs(ab) < 1e-300) continue;
        turned = true;
        const double angle = 0.5 * std::atan2(2 * ab, aa - bb), c = std::cos(angle), s = std::sin(angle);
        for (std::size_t k = 0; k < rows[i].size(); ++k) {
          const double a = rows[i][k], b = rows[j][k];
          rows[i][k] = c * a + s * b, rows[j][k] = c * b - s * a;
        }
      }
  }
  std::vector<double> values;
  for (const auto& r : rows) values.push_back(std::sqrt(dot(r, r)));
  std::sort(values.begin(), values.end(), std::greater<>());
  return values;
}

/// The smallest distance of x from a matrix of this rank.
inline double rank_error(const std::vector<float>& x, index_t n, index_t dim, index_t rank) {
  const auto values = singular_values(x, n, dim);
  double sum = 0;
  for (std::size_t i = static_cast<std::size_t>(rank); i < values.size(); ++i) sum += values[i] * values[i];
  return std::sqrt(sum);
}

}  // namespace kvcondense::test
