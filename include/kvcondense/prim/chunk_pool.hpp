#pragma once

#include <cstdint>

#include <kvcondense/core/backend.hpp>
#include <kvcondense/core/config.hpp>
#include <kvcondense/prim/ends.hpp>

namespace kvcondense::prim {

/// What the scores of a chunk become.
enum class ChunkReduce : std::uint8_t {
  sum,   ///< a last chunk that is not full has fewer terms
  mean,  ///< of the slots that there are
};

/// Gives every score of a chunk of `chunk` neighbours the number of its chunk, in place.
///
///   run(ctx, const Ends* skip, ChunkReduce, index_t chunk, RaggedView<float> scores) -> Status
///
/// Shapes   chunks are cut from the first slot behind the ends `skip[h]` (null: none); the ends are
///          neither read nor written. The last chunk may be shorter.
/// Numbers  float32, added in ascending order. A NaN stays in its own place and is no part of its chunk.
/// Errors   invalid_argument when chunk is not positive.
template <Backend B>
struct ChunkPool {
  static_assert(detail::always_false<B>,
                "kvcondense: include kvcondense/cpu.hpp or kvcondense/cuda.cuh first.");
};

}  // namespace kvcondense::prim
