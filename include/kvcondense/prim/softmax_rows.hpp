#pragma once

#include <kvcondense/core/backend.hpp>
#include <kvcondense/core/config.hpp>

namespace kvcondense::prim {

/// Turns every row into its softmax, in place.
///
///   run(ctx, float scale, RaggedView<float> rows) -> Status
///
/// Numbers  exp(scale * (x - largest)) over their sum, summed in double in the order of places. NaN stays NaN and
///          takes no part; a row of -inf becomes zeros.
template <Backend B>
struct SoftmaxRows {
  static_assert(detail::always_false<B>, "kvcondense: include kvcondense/cpu.hpp or kvcondense/cuda.cuh first.");
};

/// Makes one row per group of rows of equal length, or one per row.
///
///   run(ctx, RaggedView<const float> rows, index_t group, Fold, RaggedView<float> out) -> Status
///
/// Numbers  the largest, the sum or the mean of the `group` rows of a row of `out`, in their order; float32. The
///          largest leaves NaN out where another row has a number.
enum class RowFold { largest, sum, mean };
template <Backend B>
struct FoldRows {
  static_assert(detail::always_false<B>, "kvcondense: include kvcondense/cpu.hpp or kvcondense/cuda.cuh first.");
};

}  // namespace kvcondense::prim
