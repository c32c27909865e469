#pragma once

#include <kvcondense/core/backend.hpp>
#include <kvcondense/core/config.hpp>

namespace kvcondense::prim {

/// How far stored rows reach along a direction of their head: out[h][j] = factor * (row j of head h) . directions[h].
///
///   run(ctx, const SlotRows<B>& rows, index_t newest, const float* directions, float factor, RaggedView<float> out) -> Status
///
/// Shapes   directions [heads, dim]; only the last `newest` slots of every head are read and written.
/// Numbers  float32. A row with NaN gets NaN, one with Inf an infinity or NaN.
/// Cost     one read of those rows in their stored form, a tile at a time; no workspace.
template <Backend B>
struct RowProduct {
  static_assert(detail::always_false<B>,
                "kvcondense: include kvcondense/cpu.hpp or kvcondense/cuda.cuh first.");
};

}  // namespace kvcondense::prim
