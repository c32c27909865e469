#pragma once

#include <cstddef>
#include <cstdint>

#include <kvcondense/core/backend.hpp>
#include <kvcondense/core/config.hpp>
#include <kvcondense/core/workspace.hpp>

namespace kvcondense::prim {

/// Scratch that `RowRedundancy` asks for beside `inverse`. `slots`: of all heads; on CUDA the longest head's, times heads.
constexpr std::size_t row_redundancy_bytes(index_t slots, index_t heads, index_t dim) {
  return 3 * Scratch::bytes_for<std::int32_t>(slots) + Scratch::bytes_for<float>(slots) + Scratch::bytes_for<double>(heads * dim);
}

/// How much of a stored row the other rows of its head repeat: the softmax over the head's slots of the mean
/// cosine of each row to all others. Of all cosines of a row above `threshold` that to the last slot is left
/// out (of a row without one, that to slot 0), so that what is repeated keeps its newest copy.
///
///   run(ctx, const SlotRows<B>& rows, float threshold, RaggedView<float> inverse, RaggedView<float> out, Scratch&) -> Status
///
/// Shapes   every slot of a head is read and has its place in `inverse` (scratch) and `out`.
/// Numbers  float32, sums over slots in float64; 1e-8 is added to lengths. A row with NaN or Inf (or longer
///          than about 1e19) repeats nothing and gets NaN; out sums to one over the others.
/// Cost     never the matrix of cosines: their sums need one sum of directions, and each row looks back only
///          for its last repetition, a tile of keys at a time. Slots * dim where all find one soon, slots^2 / 2 * dim
///          where none does: the CPU multiplies a pair of rows once. `row_redundancy_bytes` of scratch.
/// Errors   workspace_too_small, nothing written.
template <Backend B>
struct RowRedundancy {
  static_assert(detail::always_false<B>,
                "kvcondense: include kvcondense/cpu.hpp or kvcondense/cuda.cuh first.");
};

}  // namespace kvcondense::prim
