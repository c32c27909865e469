#pragma once

#include <kvcondense/core/backend.hpp>
#include <kvcondense/core/config.hpp>

namespace kvcondense::prim {

/// Blocks of slots that wait for one decision each. A head's slots are settled ones first (their number
/// is 1), then blocks of `block` slots; a block is open when a whole block follows it. Scores say the
/// rest: a slot that does not compete has +inf, and the slots that do lie together.
///
///   mark(ctx, RaggedView<const float> settled, index_t first, index_t block, RaggedView<float> scores)
///       scores[h][j] = 0 in open blocks, +inf elsewhere; the first `first` slots are never in a block
///   settle(ctx, RaggedView<const float> scores, RaggedView<float> settled)
///       settled[h][j] = 1 for the slots that compete and all before them
///   count(ctx, RaggedView<const float> scores, const Ends* skip, index_t* count)
///       slots from the first to the last one that competes, without the ends `skip[h]` (null: none)
///
/// Numbers  any number of at least 1 counts as settled. A NaN competes.
template <Backend B>
struct OpenBlocks {
  static_assert(detail::always_false<B>,
                "kvcondense: include kvcondense/cpu.hpp or kvcondense/cuda.cuh first.");
};

}  // namespace kvcondense::prim
