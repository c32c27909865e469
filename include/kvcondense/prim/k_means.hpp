#pragma once

#include <cstdint>

#include <kvcondense/core/backend.hpp>
#include <kvcondense/core/config.hpp>
#include <kvcondense/prim/page_codec.hpp>

namespace kvcondense::prim {

/// How centroids are found.
struct KMeansPlan {
  index_t clusters = 1;
  index_t iterations = 10;
  std::uint64_t seed = 0;
};

/// Centroids of rows that are read piece by piece, and the centroid nearest to a row.
///
///   nearest(RowBlock<const float> rows, dim, const float* centroids, clusters, std::int32_t* labels)
///   fit(read, count, dim, KMeansPlan, float* centroids, Scratch&)    read(first, RowBlock<float> out): rows [first, first + n)
///   fit_bytes(count, dim, clusters) -> size_t
///
/// Numbers  squared Euclidean distance, float32; equal distances go to the centroid in front. `fit` begins with k-means++:
///          the first centroid is row seed % count, each next one a row drawn with a chance proportional to its squared
///          distance from those chosen (counter-based bits of the seed: the same on every machine); then up to `iterations`
///          rounds of Lloyd, sums in double, until no centroid moves. A cluster without rows keeps its centroid. With no more
///          rows than clusters the rows are the centroids, repeated from the first.
/// Cost     iterations + clusters passes over the rows.
template <Backend B>
struct KMeans {
  static_assert(detail::always_false<B>, "kvcondense: include kvcondense/cpu.hpp or kvcondense/cuda.cuh first.");
};

/// Lengths of rows by a metric.
///
///   squared(const float* row, dim, const float* l) -> float     |row l|^2, l [dim, dim] row-major; null: |row|^2
template <Backend B>
struct MetricLength {
  static_assert(detail::always_false<B>, "kvcondense: include kvcondense/cpu.hpp or kvcondense/cuda.cuh first.");
};

/// Scores of rows that are stored as codes, by tables.
///
///   scores(const std::byte* codes, index_t bytes, index_t parts, index_t entries, index_t first, index_t count,
///          RowBlock<const float> tables, RowBlock<float> out)
///       out[r][i] = sum over parts p of tables[r][p * entries + code p of row first + i]
///
///   matches(codes, bytes, parts, first, count, RowBlock<const float> wanted, RowBlock<float> out)
///       out[r][i] = number of parts p whose code in row first + i is wanted[r][p]
///
/// Shapes   a row is `parts` little-endian codes of `bytes` (1 or 2) bytes each.
/// Numbers  float32, parts in order.
template <Backend B>
struct CodeScores {
  static_assert(detail::always_false<B>, "kvcondense: include kvcondense/cpu.hpp or kvcondense/cuda.cuh first.");
};

}  // namespace kvcondense::prim
