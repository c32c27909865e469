#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numbers>

#include <kvcondense/backend/cpu/merge_sets.hpp>
#include <kvcondense/core/backend.hpp>
#include <kvcondense/prim/shared_direction.hpp>

namespace kvcondense::prim {

template <>
struct SharedDirection<Cpu> {
  static float distance(const float* a, const float* b, index_t n, double* lengths) {
    lengths[0] = length(a, n), lengths[1] = length(b, n);
    return static_cast<float>(angle(a, b, n, lengths[0], lengths[1]) / std::numbers::pi);
  }

  static index_t apart(const DirectionRule& rule, const float* distance, index_t n, std::uint8_t* kept) {
    std::fill_n(kept, n, std::uint8_t{0});
    if (rule.apart == Apart::fraction) {
      const auto count = static_cast<index_t>(std::ceil(static_cast<double>(rule.part) * static_cast<double>(n) - 1e-5));
      cpu::for_best(0, n, distance, std::min(count, n), [&](index_t i) { kept[i] = 1; });
    } else {
      float least = 1.0f, most = 0.0f;
      for (index_t i = 0; i < n; ++i)
        if (distance[i] <= 1.0f) least = std::min(least, distance[i]), most = std::max(most, distance[i]);
      const float limit = most - rule.part * (most - least);
      for (index_t i = 0; i < n; ++i) kept[i] = distance[i] > limit;
    }
    index_t count = 0;
    for (index_t i = 0; i < n; ++i) {
      if (distance[i] > opposite_distance) kept[i] = 1;
      count += kept[i];
    }
    return count;
  }

  static void between(float weight, const float* a, const float* b, index_t n, float* out) {
    const double la = length(a, n), lb = length(b, n), omega = angle(a, b, n, la, lb);
    double of_a = 1.0 - static_cast<double>(weight), of_b = static_cast<double>(weight);
    if (la == 0.0 || lb == 0.0) of_a = la > 0.0, of_b = lb > 0.0;
    else if (omega > std::numbers::pi - least_angle) of_a = 1.0, of_b = 0.0;
    else if (omega >= least_angle) of_a = std::sin(of_a * omega), of_b = std::sin(of_b * omega);
    if (la > 0.0) of_a /= la;
    if (lb > 0.0) of_b /= lb;
    double sum = 0.0;
    for (index_t d = 0; d < n; ++d) {
      const double x = of_a * static_cast<double>(a[d]) + of_b * static_cast<double>(b[d]);
      sum += x * x;
    }
    const double norm = sum > 0.0 ? 1.0 / std::sqrt(sum) : 0.0;
    for (index_t d = 0; d < n; ++d) out[d] = static_cast<float>((of_a * static_cast<double>(a[d]) + of_b * static_cast<double>(b[d])) * norm);
  }

 private:
  static double length(const float* x, index_t n) {
    double sum = 0.0;
    for (index_t d = 0; d < n; ++d) sum += static_cast<double>(x[d]) * static_cast<double>(x[d]);
    return std::sqrt(sum);
  }
  static double angle(const float* a, const float* b, index_t n, double la, double lb) {
    if (la == 0.0 || lb == 0.0) return 0.0;
    double less = 0.0, more = 0.0;
    for (index_t d = 0; d < n; ++d) {
      const double u = static_cast<double>(a[d]) / la, v = static_cast<double>(b[d]) / lb;
      less += (u - v) * (u - v);
      more += (u + v) * (u + v);
    }
    return 2.0 * std::atan2(std::sqrt(less), std::sqrt(more));
  }
};

}  // namespace kvcondense::prim
