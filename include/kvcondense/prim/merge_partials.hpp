#pragma once

#include <cstdint>

#include <kvcondense/core/backend.hpp>
#include <kvcondense/core/view.hpp>

namespace kvcondense::prim {

/// What logarithm an lse is: engines that fold log2(e) into the softmax scale have it to base 2.
enum class LogBase : std::uint8_t { natural, two };

/// Attention over one part of the slots: its output and the logarithm of its sum of exponentials.
///
/// Shapes   out [q_heads, tokens, value_dim], lse [q_heads, tokens]. A query that sees no slot of the part has zeros
///          and lse = -inf.
struct PartialAttention {
  TensorView<const float, 3> out;
  TensorView<const float, 2> lse;
};

/// Joins attention over disjoint parts of the slots to attention over all of them.
///
///   run(ctx, parts, out, lse, base) -> Status
///
/// Source   the split of FlashAttention's softmax (arXiv:2205.14135), as Flash-Decoding and DistAttention
///          (arXiv:2401.02669) use it between blocks and between machines.
/// Shapes   parts: any number, none too; out and lse as in a part, and they may be those of one; lse may be empty.
/// Cost     one read of every part, one write.
/// Numbers  float32: m = max lse, w = exp(lse - m), out = sum w o / sum w, lse = m + log sum w. Parts without slots
///          count nothing; where all are, zeros and -inf. Order matters to rounding only. A NaN in a part's lse is
///          passed on, never dropped.
/// Errors   shape_mismatch.
template <Backend B>
struct MergePartials {
  static_assert(detail::always_false<B>, "kvcondense: include kvcondense/cpu.hpp or kvcondense/cuda.cuh first.");
};

}  // namespace kvcondense::prim
