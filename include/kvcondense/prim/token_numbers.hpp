#pragma once

#include <cstdint>

#include <kvcondense/core/backend.hpp>
#include <kvcondense/core/config.hpp>
#include <kvcondense/core/step_inputs.hpp>

namespace kvcondense::prim {

/// What a NaN among the numbers of tokens becomes.
enum class MissingNumber : std::uint8_t {
  stays,    ///< NaN
  largest,  ///< the largest number of the same tokens; 0 when all are NaN
};

/// Writes numbers that come with tokens into a number per (kv head, slot).
///
///   write(ctx, TensorView<const float, 2> numbers, float scale, index_t back, MissingNumber, RaggedView<float> out) -> Status
///       scale times the number
///   write(ctx, span<const TokenClass> classes, RaggedView<float> out) -> Status
///       the number of each token's class, for all heads alike
///   extend(ctx, index_t tokens, RaggedView<float> out) -> Status
///       the slots of the last `tokens` tokens get the number of the slot before them; where there is none
///       nothing is written
///
/// Shapes   numbers [kv_heads, tokens], or [1, tokens] for all heads alike. The last token's slot is
///          the last one of its head, `back` places before it the one that its number goes to.
///          Numbers whose slot would lie before the first one are dropped.
/// Errors   shape_mismatch.
template <Backend B>
struct TokenNumbers {
  static_assert(detail::always_false<B>, "kvcondense: include kvcondense/cpu.hpp or kvcondense/cuda.cuh first.");
};

}  // namespace kvcondense::prim
