#pragma once

#include <cmath>

#include <kvcondense/core/backend.hpp>
#include <kvcondense/core/random.hpp>
#include <kvcondense/prim/hadamard.hpp>
#include <kvcondense/prim/row_transform.hpp>

namespace kvcondense::prim {

template <>
struct RowTransform<Cpu, NoTransform> {
  static void forward(const NoTransform&, index_t, RowBlock<float>) {}
  static void backward(const NoTransform&, index_t, RowBlock<float>) {}
  static void query(const NoTransform&, index_t, RowBlock<float>) {}
};

template <>
struct RowTransform<Cpu, Hadamard> {
  static void forward(const Hadamard& t, index_t dim, RowBlock<float> rows) {
    for (index_t r = 0; r < rows.rows; ++r) {
      float* x = rows.data + r * rows.step;
      scale(t, dim, x);
      butterflies(t.size(dim), dim, x);
    }
  }
  static void backward(const Hadamard& t, index_t dim, RowBlock<float> rows) {
    for (index_t r = 0; r < rows.rows; ++r) {
      float* x = rows.data + r * rows.step;
      butterflies(t.size(dim), dim, x);
      scale(t, dim, x);
    }
  }
  /// Orthonormal: a query is mapped as a key is.
  static void query(const Hadamard& t, index_t dim, RowBlock<float> rows) { forward(t, dim, rows); }

 private:
  static void scale(const Hadamard& t, index_t dim, float* x) {
    const float factor = 1.0f / std::sqrt(static_cast<float>(t.size(dim)));
    for (index_t c = 0; c < dim; ++c) {
      const bool minus = t.seed != 0 && (random_bits(t.seed, static_cast<std::uint64_t>(c)) & 1u) != 0;
      x[c] *= minus ? -factor : factor;
    }
  }
  static void butterflies(index_t block, index_t dim, float* x) {
    for (index_t half = 1; half < block; half *= 2)
      for (index_t i = 0; i < dim; i += 2 * half)
        for (index_t j = i; j < i + half; ++j) {
          const float a = x[j], b = x[j + half];
          x[j] = a + b, x[j + half] = a - b;
        }
  }
};

}  // namespace kvcondense::prim
