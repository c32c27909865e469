#pragma once

#include <algorithm>
#include <cstring>
#include <limits>

#include <kvcondense/backend/cpu/row_kernels.hpp>
#include <kvcondense/core/random.hpp>
#include <kvcondense/core/workspace.hpp>
#include <kvcondense/prim/k_means.hpp>

namespace kvcondense::prim {

template <>
struct KMeans<Cpu> {
  static constexpr index_t tile = 16;

  static float distance(const float* a, const float* b, index_t dim) {
    float sum = 0.0f;
    for (index_t d = 0; d < dim; ++d) sum += (a[d] - b[d]) * (a[d] - b[d]);
    return sum;
  }

  static void nearest(RowBlock<const float> rows, index_t dim, const float* centroids, index_t clusters, std::int32_t* labels) {
    for (index_t i = 0; i < rows.rows; ++i) {
      float best = std::numeric_limits<float>::infinity();
      labels[i] = 0;
      for (index_t c = 0; c < clusters; ++c)
        if (const float d = distance(rows.data + i * rows.step, centroids + c * dim, dim); d < best)
          best = d, labels[i] = static_cast<std::int32_t>(c);
    }
  }

  static std::size_t fit_bytes(index_t count, index_t dim, index_t clusters) {
    return Scratch::bytes_for<float>(count) + Scratch::bytes_for<double>(clusters * dim) + Scratch::bytes_for<index_t>(clusters) +
           Scratch::bytes_for<float>(tile * dim);
  }

  template <class Read>
  static void fit(Read&& read, index_t count, index_t dim, const KMeansPlan& plan, float* centroids, Scratch& scratch) {
    float* far = scratch.take<float>(count);
    double* sums = scratch.take<double>(plan.clusters * dim);
    index_t* members = scratch.take<index_t>(plan.clusters);
    float* rows = scratch.take<float>(tile * dim);
    if (count <= 0 || far == nullptr || sums == nullptr || members == nullptr || rows == nullptr) return;
    const auto each_tile = [&](auto&& use) {
      for (index_t i = 0; i < count; i += tile) {
        const index_t n = std::min(tile, count - i);
        read(i, RowBlock<float>{rows, n, dim});
        use(i, n);
      }
    };
    begin(read, each_tile, count, dim, plan, centroids, far, rows);
    if (count <= plan.clusters) return;
    std::int32_t labels[tile];
    for (index_t round = 0; round < plan.iterations; ++round) {
      std::fill_n(sums, plan.clusters * dim, 0.0);
      std::fill_n(members, plan.clusters, index_t{0});
      each_tile([&](index_t, index_t n) {
        nearest({rows, n, dim}, dim, centroids, plan.clusters, labels);
        for (index_t i = 0; i < n; ++i) {
          ++members[labels[i]];
          for (index_t d = 0; d < dim; ++d) sums[labels[i] * dim + d] += static_cast<double>(rows[i * dim + d]);
        }
      });
      bool moved = false;
      for (index_t c = 0; c < plan.clusters; ++c)
        for (index_t d = 0; members[c] > 0 && d < dim; ++d) {
          const auto mean = static_cast<float>(sums[c * dim + d] / static_cast<double>(members[c]));
          moved = moved || mean != centroids[c * dim + d];
          centroids[c * dim + d] = mean;
        }
      if (!moved) return;
    }
  }

 private:
  template <class Read, class Each>
  static void begin(Read&& read, Each&& each_tile, index_t count, index_t dim, const KMeansPlan& plan, float* centroids, float* far,
                    float* rows) {
    std::fill_n(far, count, std::numeric_limits<float>::infinity());
    index_t chosen = static_cast<index_t>(plan.seed % static_cast<std::uint64_t>(count));
    for (index_t c = 0; c < plan.clusters; ++c) {
      if (count <= plan.clusters) chosen = c % count;
      read(chosen, RowBlock<float>{centroids + c * dim, 1, dim});
      if (count <= plan.clusters || c + 1 == plan.clusters) continue;
      double sum = 0.0;
      each_tile([&](index_t first, index_t n) {
        for (index_t i = 0; i < n; ++i) {
          far[first + i] = std::min(far[first + i], distance(rows + i * dim, centroids + c * dim, dim));
          sum += static_cast<double>(far[first + i]);
        }
      });
      double left = sum * static_cast<double>(random_uniform(plan.seed, static_cast<std::uint64_t>(c)));
      chosen = 0;
      for (index_t i = 0; i < count; ++i) {
        if (far[i] > 0.0f) chosen = i;
        left -= static_cast<double>(far[i]);
        if (left < 0.0 && far[i] > 0.0f) break;
      }
    }
  }
};

template <>
struct MetricLength<Cpu> {
  static float squared(const float* row, index_t dim, const float* l) {
    float sum = 0.0f;
    if (l == nullptr) {
      for (index_t d = 0; d < dim; ++d) sum += row[d] * row[d];
      return sum;
    }
    for (index_t c = 0; c < dim; ++c) {
      float x = 0.0f;
      for (index_t d = 0; d < dim; ++d) x += row[d] * l[d * dim + c];
      sum += x * x;
    }
    return sum;
  }
};

template <>
struct CodeScores<Cpu> {
  static void scores(const std::byte* codes, index_t bytes, index_t parts, index_t entries, index_t first, index_t count,
                     RowBlock<const float> tables, RowBlock<float> out) {
    const std::byte* at = codes + first * parts * bytes;
    for (index_t i = 0; i < count; ++i)
      for (index_t p = 0; p < parts; ++p, at += bytes) {
        const float* entry = tables.data + p * entries + code(at, bytes);
        for (index_t r = 0; r < tables.rows; ++r) {
          float& x = out.data[r * out.step + i];
          x = p == 0 ? entry[r * tables.step] : x + entry[r * tables.step];
        }
      }
  }
  static void matches(const std::byte* codes, index_t bytes, index_t parts, index_t first, index_t count, RowBlock<const float> wanted,
                      RowBlock<float> out) {
    const std::byte* at = codes + first * parts * bytes;
    for (index_t i = 0; i < count; ++i, at += parts * bytes)
      for (index_t r = 0; r < wanted.rows; ++r) {
        const float* want = wanted.data + r * wanted.step;
        index_t n = 0;
        for (index_t p = 0; p < parts; ++p) n += static_cast<float>(code(at + p * bytes, bytes)) == want[p];
        out.data[r * out.step + i] = static_cast<float>(n);
      }
  }

 private:
  static index_t code(const std::byte* at, index_t bytes) {
    return bytes == 1 ? std::to_integer<index_t>(at[0]) : std::to_integer<index_t>(at[0]) | std::to_integer<index_t>(at[1]) << 8;
  }
};

}  // namespace kvcondense::prim
