#pragma once

#include <cstdint>

#include <kvcondense/core/backend.hpp>
#include <kvcondense/core/config.hpp>
#include <kvcondense/prim/ends.hpp>

namespace kvcondense::prim {

/// Keeps the best places of every block of places that compete (`OpenBlocks`).
///
///   run(ctx, RaggedView<const float> scores, const Ends* always, index_t block, const index_t* total,
///       RaggedView<int32> slots, index_t* count, index_t* nan) -> Status
///
/// Shapes   as for `TopK`.
/// Rows     total[h] >= length: every place. Otherwise the ends `always[h]` and all places with +inf
///          stay; what is left of total[h] is dealt to the blocks in turn, one place each, the first
///          block first, until it is used up. A last block that is shorter takes what it has.
///          Never fewer than what stays.
/// Numbers  inside a block as `TopK`: larger score first, ties keep the smaller place, NaN below -inf.
/// Cost     four passes over the scores; no workspace.
template <Backend B>
struct BlockTopK {
  static_assert(detail::always_false<B>,
                "kvcondense: include kvcondense/cpu.hpp or kvcondense/cuda.cuh first.");
};

}  // namespace kvcondense::prim
