#pragma once

#include <bit>
#include <cstdint>

#include <kvcondense/core/config.hpp>
#include <kvcondense/core/shape.hpp>
#include <kvcondense/prim/row_transform.hpp>

namespace kvcondense::prim {

/// Rows as coordinates in a basis that is known beforehand: z = (x - mean) E. Attention stays among the coordinates:
/// q . x ~ (q D) . z + q . mean, and sums of values are brought back once, by D.
///
/// Source   plain algebra; for caches Eigen Attention, arXiv:2408.05646, and others.
/// Shapes   encode and decode [dim][columns], row by row, of which the first `rank` columns count; mean [dim] or null.
///          Borrowed. Orthonormal columns: decode is encode. No arrays: rows stay as they are.
/// Cost     dim * rank multiplications per new row, per query row and call, and per row of sums.
/// Numbers  float32.
struct Projection {
  const float* encode = nullptr;
  const float* decode = nullptr;
  const float* mean = nullptr;
  std::int32_t rank = 0;
  std::int32_t columns = 0;
  std::int32_t rows = 0;  ///< dim of the arrays

  constexpr bool identity() const { return encode == nullptr; }
  constexpr index_t stored_dim(index_t dim) const { return identity() ? dim : rank; }
  constexpr bool centred() const { return mean != nullptr; }
  constexpr bool valid(index_t dim) const {
    if (identity()) return true;
    return decode != nullptr && dim == rows && dim <= max_head_dim && rank >= 1 && rank <= columns && rank <= dim;
  }
  /// Of all numbers that count, so that rows are never read with another basis.
  std::int64_t fingerprint() const {
    if (identity()) return 0;
    std::uint64_t sum = 0xcbf29ce484222325u ^ static_cast<std::uint64_t>(rank);
    const auto add = [&](const float* x, index_t n) {
      for (index_t i = 0; i < n; ++i) sum = (sum ^ std::bit_cast<std::uint32_t>(x[i])) * 0x100000001b3u;
    };
    for (index_t i = 0; i < rows; ++i) {
      add(encode + i * columns, rank);
      if (decode != encode) add(decode + i * columns, rank);
    }
    if (mean != nullptr) add(mean, rows);
    return static_cast<std::int64_t>(sum);
  }
};

static_assert(TransformDescription<Projection>);

}  // namespace kvcondense::prim
