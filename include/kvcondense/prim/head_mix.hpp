#pragma once

#include <kvcondense/core/backend.hpp>
#include <kvcondense/core/config.hpp>

namespace kvcondense::prim {

/// A matrix per group of neighbouring heads, [share * dim, stride] row-major, of which the first `columns` are used; rows
/// [i dim, (i + 1) dim) are the slice of member i.
struct HeadMix {
  const float* data = nullptr;  ///< of the first group; the others follow
  index_t share = 1;            ///< heads of a group
  index_t dim = 0;              ///< numbers of a member's row
  index_t stride = 0;           ///< columns that are there
  index_t columns = 0;          ///< columns that are used

  KVCONDENSE_HD const float* slice(index_t group, index_t member) const { return data + (group * share + member) * dim * stride; }
};

/// Rows of several heads as rows of one, and back.
///
///   join(ctx, TensorView<const float, 3> rows, HeadMix, TensorView<float, 3> out)
///       out[g, t, :] = sum over members i of rows[g share + i, t, :] * slice(g, i)
///   map(ctx, TensorView<const float, 3> rows, HeadMix, index_t groups, TensorView<float, 3> out)
///       out[h, t, :] = rows[h, t, :] * the slice of the member that h belongs to; all members have equally many heads
///   back(ctx, TensorView<const float, 3> rows, HeadMix, index_t groups, TensorView<float, 3> out)
///       the same with the slice's transpose
///
/// Shapes   join: rows [groups share, tokens, dim], out [groups, tokens, columns]. map: rows [heads, tokens, dim], out [heads,
///          tokens, columns]; back: the other way round. `out` is not `rows`.
/// Numbers  float32, in the order of a row's numbers.
/// Cost     share * dim * columns multiplications per row of `out` (join), dim * columns (map, back).
/// Errors   shape_mismatch.
template <Backend B>
struct HeadMixing {
  static_assert(detail::always_false<B>, "kvcondense: include kvcondense/cpu.hpp or kvcondense/cuda.cuh first.");
};

}  // namespace kvcondense::prim
