#pragma once

#include <kvcondense/core/config.hpp>

namespace kvcondense::prim::cpu {

/// The inner loops over numbers of slots, and over rows whose sums decide what leaves, for one instruction set;
/// `number_ops.inl` is their text.
///
/// Numbers  every sum has one order, and every product and sum is rounded by itself: the same bits of every instruction set,
///          where that is compiled without fused products, so that all choose the same slots.
struct NumberOps {
  /// out[j] += rows[0][j] * factors[0], then rows[1][j] * factors[1], and so on; no row may be out.
  void (*add_scaled)(const float* const* rows, const float* factors, index_t count, index_t n, float* out);

  /// out[j] = keep * out[j] + scale * x[j]; with keep = 0 out is not read. out may be x.
  void (*mix)(const float* x, index_t n, float scale, float keep, float* out);

  /// out[j] = x[j] > y[j] ? x[j] : y[j]. out may be x or y, or begin in front of them.
  void (*larger)(const float* x, const float* y, index_t n, float* out);

  /// How many numbers are at least this large; NaN is not.
  index_t (*count_from)(const float* x, index_t n, float least);

  /// sum[d] += weights[i] * rows[i][d], row after row.
  void (*add_weighted)(const float* const* rows, const double* weights, index_t count, index_t dim, double* sum);

  /// out[i] = |centre - row i|^2 of `count` rows of `dim` numbers, one behind the other: sixteen sums of every sixteenth number,
  /// which then are halved until one is left.
  void (*square_distances)(const float* centre, const float* rows, index_t count, index_t dim, float* out);
};

}  // namespace kvcondense::prim::cpu
