#pragma once

#include <kvcondense/core/backend.hpp>
#include <kvcondense/core/config.hpp>
#include <kvcondense/prim/ends.hpp>

namespace kvcondense::prim {

/// How much stored rows weigh behind a projection: out[h][j] = the mean over the query heads of h of
/// sum |row j times the head's columns of the matrix|.
///
///   run(ctx, const SlotRows<B>& rows, const Ends* skip, const CacheShape& shape, const float* matrix,
///       index_t outputs, RaggedView<float> out) -> Status
///
///   weigh(ctx, const SlotRows<B>& rows, const CacheShape& shape, const float* matrix, index_t outputs, RaggedView<const float> shares,
///         RaggedView<float> out) -> Status
///       out[h][j] = the largest over the query heads q of h of shares[q][j] * |row j times the columns of q|, Euclidean
///
/// Shapes   matrix [outputs, q_heads * value_dim], row-major, in which query head q has columns
///          [q * value_dim, (q + 1) * value_dim): an output projection as models store it. The ends `skip[h]`
///          (null: none) are neither read nor written. Shares of head h begin at offset[h] * group, those of a query head behind those
///          of the one before, as AttendColumns writes them with GroupReduce::none; `out` has their offsets. A slot whose first
///          share is 0 gets 0, one of which it is more gets more than 0.
/// Numbers  float32 products, their absolute values, or squares, added in float64. A bias is no part of it.
/// Cost     slots * outputs * value_dim multiplications per query head; the projection is made in tiles of slots
///          and outputs, summed at once and never stored; `weigh` passes over tiles of which no slot has a share. No workspace.
template <Backend B>
struct ProjectedNorm {
  static_assert(detail::always_false<B>,
                "kvcondense: include kvcondense/cpu.hpp or kvcondense/cuda.cuh first.");
};

}  // namespace kvcondense::prim
