#pragma once

#include <cstdint>

#include <kvcondense/core/backend.hpp>
#include <kvcondense/core/config.hpp>

namespace kvcondense::prim {

/// What the rows of a head are compared with.
enum class Anchor : std::uint8_t {
  mean_direction,  ///< the mean of the rows, each brought to length one
  mean_row,        ///< the mean of the rows as they are: long rows count more
};

/// How far stored rows point where all of them point: out[h][j] = factor * cosine(row j, anchor of h).
///
///   run(ctx, const SlotRows<B>& rows, Anchor, float factor, RaggedView<float> out) -> Status
///
/// Shapes   every slot of a head is read and has its place in `out`; the anchor is made of the same rows.
/// Numbers  float32; sums over slots in float64. A row with NaN or Inf (or longer than about 1e19) takes
///          no part in the anchor and gets NaN; a row of zeros gets 0. Where rows cancel out (the sum is
///          shorter than 1e-6 of the lengths summed) there is no direction, and every row gets 0.
/// Cost     two reads of the rows in their stored form, a tile at a time; no workspace.
template <Backend B>
struct RowDirection {
  static_assert(detail::always_false<B>,
                "kvcondense: include kvcondense/cpu.hpp or kvcondense/cuda.cuh first.");
};

}  // namespace kvcondense::prim
