#pragma once

#include <cstdint>

#include <kvcondense/core/backend.hpp>
#include <kvcondense/core/config.hpp>
#include <kvcondense/prim/ends.hpp>

namespace kvcondense::prim {

/// Keeps the best chunks of `chunk` neighbouring places, whole.
///
///   run(ctx, RaggedView<const float> scores, const Ends* always, index_t chunk, const index_t* total,
///       RaggedView<int32> slots, index_t* count, index_t* nan) -> Status
///
/// Shapes   as for `TopK`; chunks are cut from the first place behind the ends, the last may be shorter.
/// Rows     total[h] >= length: every place. Otherwise the ends `always[h]`, and of the chunks between
///          them the best floor((total[h] - ends) / chunk). A last chunk that is shorter counts as one:
///          with it fewer places than total[h] are taken, as with any total that is no multiple.
/// Numbers  a chunk's score is the best of its places; larger first, equal scores keep the chunk in front,
///          a chunk of NaN ranks below -inf.
/// Cost     four passes over the scores; no workspace.
/// Errors   invalid_argument when chunk is not positive.
template <Backend B>
struct ChunkTopK {
  static_assert(detail::always_false<B>,
                "kvcondense: include kvcondense/cpu.hpp or kvcondense/cuda.cuh first.");
};

}  // namespace kvcondense::prim
