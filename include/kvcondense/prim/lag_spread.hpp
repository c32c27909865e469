#pragma once

#include <kvcondense/core/backend.hpp>
#include <kvcondense/core/config.hpp>

namespace kvcondense::prim {

/// How much the channels of a row vary, on the scale of the block of rows after its own.
///
///   add(ctx, const SlotRows<B>& rows, index_t block, float weight, RaggedView<float> spread,
///       RaggedView<float> scores) -> Status
///
/// Shapes   the slots of a head that compete (`OpenBlocks`) are whole blocks, and a whole block follows.
///          scores[h][j] += weight * softmax over its block of spread[h][j]; the others are not touched.
///          `spread` is scratch of the same offsets: the standard deviation (n - 1) over channels c of
///          (x[j][c] - lowest[c]) / (highest[c] - lowest[c]), the extremes those of the next block.
/// Numbers  float32. A range below 1e-6 counts as 1e-6; a channel whose range is not finite counts as 0;
///          NaN is no extreme. A row whose deviation is not finite gets NaN and takes no part in the
///          softmax. Rows of one channel do not vary.
/// Cost     two reads of the rows in their stored form, a tile at a time.
template <Backend B>
struct LagSpread {
  static_assert(detail::always_false<B>,
                "kvcondense: include kvcondense/cpu.hpp or kvcondense/cuda.cuh first.");
};

}  // namespace kvcondense::prim
