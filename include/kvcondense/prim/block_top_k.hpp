#pragma once

#include <cstdint>

#include <kvcondense/core/backend.hpp>
#include <kvcondense/core/config.hpp>
#include <kvcondense/prim/ends.hpp>

namespace kvcondense::prim {

/// Places dealt in turn to blocks of `block` slots of which there are `size`, one each, until they are used up; a last block that
/// is shorter takes what it has.
struct BlockShares {
  index_t size, block, places;

  KVCONDENSE_HD constexpr index_t of(index_t b) const { return before(b + 1) - before(b); }
  /// Of all blocks before b.
  KVCONDENSE_HD constexpr index_t before(index_t b) const {
    const index_t full = size / block, rest = size % block, all = (size + block - 1) / block;
    if (b == 0 || all == 0) return 0;
    const bool short_is_full = places / all >= rest;
    const index_t dealt = short_is_full ? places - rest : places, among = short_is_full ? full : all;
    if (among == 0 || b > among) return places;
    const index_t extra = dealt % among;
    return b * (dealt / among) + (b < extra ? b : extra);
  }
};

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
