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
      if (t.seed != 0) signs(t.seed, dim, x);
      mix(t.size(dim), x, t.overlap ? t.size(dim) : dim);
      if (!again(t, dim)) continue;
      signs(between(t), dim, x);
      mix(t.size(dim), x + dim - t.size(dim), t.size(dim));
    }
  }
  static void backward(const Hadamard& t, index_t dim, RowBlock<float> rows) {
    for (index_t r = 0; r < rows.rows; ++r) {
      float* x = rows.data + r * rows.step;
      if (again(t, dim)) {
        mix(t.size(dim), x + dim - t.size(dim), t.size(dim));
        signs(between(t), dim, x);
      }
      mix(t.size(dim), x, t.overlap ? t.size(dim) : dim);
      if (t.seed != 0) signs(t.seed, dim, x);
    }
  }
  /// Orthonormal: a query is mapped as a key is.
  static void query(const Hadamard& t, index_t dim, RowBlock<float> rows) { forward(t, dim, rows); }

 private:
  /// A second block at the other end?
  static bool again(const Hadamard& t, index_t dim) { return t.overlap && t.size(dim) < dim; }

  /// Without new signs the second block would undo most of what the first one did.
  static std::uint64_t between(const Hadamard& t) { return ~t.seed; }

  static void signs(std::uint64_t seed, index_t dim, float* x) {
    for (index_t c = 0; c < dim; ++c)
      if ((random_bits(seed, static_cast<std::uint64_t>(c)) & 1u) != 0) x[c] = -x[c];
  }
  /// The transform of every block of `n` numbers, which is its own inverse.
  static void mix(index_t block, float* x, index_t n) {
    const float factor = 1.0f / std::sqrt(static_cast<float>(block));
    for (index_t i = 0; i < n; ++i) x[i] *= factor;
    for (index_t half = 1; half < block; half *= 2)
      for (index_t i = 0; i < n; i += 2 * half)
        for (index_t j = i; j < i + half; ++j) {
          const float a = x[j], b = x[j + half];
          x[j] = a + b, x[j + half] = a - b;
        }
  }
};

}  // namespace kvcondense::prim
