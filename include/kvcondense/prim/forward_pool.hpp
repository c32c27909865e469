#pragma once

#include <kvcondense/core/backend.hpp>
#include <kvcondense/core/config.hpp>

namespace kvcondense::prim {

/// Adds up all rows, and gives each place the largest sum among itself and the places behind it.
///
///   add(ctx, RaggedView<const float> x, index_t width, RaggedView<float> out) -> Status
///       out[h][j] += max over i < width of (sum over rows r of x[r][j + i]), the same for every row h
///
/// Shapes   x and out share offsets; all rows have one length. Taps beyond the row are none.
/// Numbers  float32, rows added in ascending order. A sum that is NaN stays in its own place and is no
///          tap of any other.
/// Cost     rows + width operations per number; no workspace.
/// Errors   invalid_argument unless 1 <= width <= 64; not_supported when rows differ in length.
template <Backend B>
struct ForwardPool {
  static_assert(detail::always_false<B>,
                "kvcondense: include kvcondense/cpu.hpp or kvcondense/cuda.cuh first.");
};

/// The widest window of `ForwardPool`.
inline constexpr index_t most_forward_pool = 64;

}  // namespace kvcondense::prim
