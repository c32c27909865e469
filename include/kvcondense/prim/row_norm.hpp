#pragma once

#include <kvcondense/core/backend.hpp>
#include <kvcondense/core/config.hpp>

namespace kvcondense::prim {

/// Lengths of stored rows: out[h][j] = factor * |row j of head h|.
///
///   run(ctx, const SlotRows<B>& rows, index_t newest, float factor, RaggedView<float> out) -> Status
///
/// Shapes   only the last `newest` slots of every head are read and written.
/// Numbers  float32. A row with NaN or Inf (or longer than about 1e19) has length +inf, so that a
///          negative factor ranks it last.
/// Cost     one read of those rows in their stored form, a tile at a time; no workspace.
template <Backend B>
struct RowNorm {
  static_assert(detail::always_false<B>,
                "kvcondense: include kvcondense/cpu.hpp or kvcondense/cuda.cuh first.");
};

}  // namespace kvcondense::prim
