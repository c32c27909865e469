#pragma once

#include <algorithm>
#include <cmath>

#include <kvcondense/backend/cpu/row_kernels.hpp>
#include <kvcondense/core/config.hpp>

// A matrix as a product of two thin ones, x ~ a^t b: x [n][dim], a [rank][n], b [rank][dim].

namespace kvcondense::prim::cpu {

inline double length_of(const float* x, index_t n) {
  double sum = 0.0;
  for (index_t i = 0; i < n; ++i) sum += static_cast<double>(x[i]) * static_cast<double>(x[i]);
  return std::sqrt(sum);
}

/// Makes `rank` rows of `n` numbers orthonormal, one after the other; one that depends on earlier ones becomes 0.
inline void orthonormalize(float* rows, index_t rank, index_t n, const RowOps& ops) {
  for (index_t j = 0; j < rank; ++j) {
    float* x = rows + j * n;
    const double before = length_of(x, n);
    for (int again = 0; again < 2; ++again)  // what cancels leaves rounding along earlier rows: once more
      for (index_t i = 0; i < j; ++i) {
        const float* y = rows + i * n;
        float along;
        ops.dot_rows(DType::f32, y, 1, n, {x, 1, n}, {&along, 1, 1}, nullptr);
        for (index_t k = 0; k < n; ++k) x[k] -= along * y[k];
      }
    const double after = length_of(x, n);
    const auto scale = static_cast<float>(after > before * 1e-6 ? 1.0 / after : 0.0);
    for (index_t k = 0; k < n; ++k) x[k] *= scale;
  }
}

/// Where power iteration begins: the same numbers for every matrix.
inline void low_rank_start(float* b, index_t rank, index_t dim) {
  for (index_t j = 0; j < rank; ++j)
    for (index_t i = 0; i < dim; ++i)
      b[j * dim + i] = static_cast<float>((3 * i + 5 * j + (j / 7) * (i / 7)) % 7 + 1) / 8.0f;
}

/// b from the start that it holds, and a orthonormal: `loops` times b <- orthonormal, a <- x b, a <- orthonormal, b <- x^t a.
///
/// Numbers  float32, for |x| up to about 1. Orthonormal columns in every loop, not only in the last, span the same space
///          and so give the same product; without them small directions drown in rounding. Instruction sets add in orders
///          of their own; the order of the portable one is that of the CUDA backend too.
inline void power_iteration(const float* x, index_t n, index_t dim, index_t rank, index_t loops, float* a, float* b, const RowOps& ops = row_ops()) {
  for (index_t loop = 0; loop < loops; ++loop) {
    orthonormalize(b, rank, dim, ops);
    ops.dot_rows(DType::f32, x, n, dim, {b, rank, dim}, {a, rank, n}, nullptr);
    orthonormalize(a, rank, n, ops);
    std::fill_n(b, rank * dim, 0.0f);
    ops.add_rows(DType::f32, x, n, dim, {a, rank, n}, {b, rank, dim}, nullptr);
  }
}

inline float largest_size(const float* x, index_t n) {
  float most = 0.0f;
  for (index_t i = 0; i < n; ++i) most = std::max(most, std::fabs(x[i]));
  return most;
}

/// The factors of finite numbers of any size. `x` is used up: scaled by a power of two. Each pair of factors is made about
/// equally large by a power of two, so that 16-bit floats hold both.
inline void fit_low_rank(float* x, index_t n, index_t dim, index_t rank, index_t loops, float* a, float* b, const RowOps& ops = row_ops()) {
  const float most = largest_size(x, n * dim);
  if (!(most > 0x1p-80f)) {
    std::fill_n(a, rank * n, 0.0f), std::fill_n(b, rank * dim, 0.0f);
    return;
  }
  const int size = std::min(std::ilogb(most), 126);
  const float unit = std::ldexp(1.0f, -size);
  for (index_t i = 0; i < n * dim; ++i) x[i] *= unit;
  low_rank_start(b, rank, dim);
  power_iteration(x, n, dim, rank, loops, a, b, ops);
  for (index_t j = 0; j < rank; ++j) {
    const float of_a = largest_size(a + j * n, n), of_b = largest_size(b + j * dim, dim);
    if (!(of_a > 0.0f) || !(of_b > 0x1p-60f)) {
      std::fill_n(a + j * n, n, 0.0f), std::fill_n(b + j * dim, dim, 0.0f);
      continue;
    }
    const int up = (std::ilogb(of_b) + size - std::ilogb(of_a)) / 2;
    const float for_a = std::ldexp(1.0f, up), for_b = std::ldexp(1.0f, size - up);
    for (index_t i = 0; i < n; ++i) a[j * n + i] *= for_a;
    for (index_t i = 0; i < dim; ++i) b[j * dim + i] *= for_b;
  }
}

}  // namespace kvcondense::prim::cpu
