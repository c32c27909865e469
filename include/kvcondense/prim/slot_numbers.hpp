#pragma once

#include <kvcondense/core/backend.hpp>
#include <kvcondense/core/config.hpp>

namespace kvcondense::prim {

/// Arithmetic on one number per (kv head, slot), slot by slot.
///
///   fill(ctx, float x, RaggedView<float> out)                          out[h][j] = x
///   index(ctx, RaggedView<float> out)                                  out[h][j] = j
///   mix(ctx, RaggedView<const float> x, float scale, float keep, RaggedView<float> out)
///       out[h][j] = keep * out[h][j] + scale * x[h][j]
///   larger(ctx, RaggedView<const float> x, RaggedView<float> out)
///       out[h][j] = max(out[h][j], x[h][j]); a NaN in x is passed over
///   larger_brought(ctx, RaggedView<const float> x, RaggedView<float> out)
///       the same with x[h] multiplied by what brings its mean to that of out[h]; a mean of 0 leaves out as it is
///   times(ctx, RaggedView<const float> x, float add, RaggedView<float> out)
///       out[h][j] = (out[h][j] + add) * x[h][j]
///   sum_heads(ctx, RaggedView<const float> x, float scale, float keep, RaggedView<float> out)
///       out[h][j] = keep * out[h][j] + scale * (x[0][j] + x[1][j] + ...)
///
/// Numbers  float32, no contraction. keep == 0 never reads `out`.
/// Errors   sum_heads: not_supported when heads hold different numbers of slots.
template <Backend B>
struct SlotNumbers {
  static_assert(detail::always_false<B>,
                "kvcondense: include kvcondense/cpu.hpp or kvcondense/cuda.cuh first.");
};

}  // namespace kvcondense::prim
