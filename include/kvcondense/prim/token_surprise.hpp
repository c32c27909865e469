#pragma once

#include <cstdint>

#include <kvcondense/core/backend.hpp>
#include <kvcondense/core/config.hpp>

namespace kvcondense::prim {

/// What the logits before a token are asked for.
enum class SurpriseOf : std::uint8_t {
  this_token,  ///< -log p(x_t | x_<t)
  repeated,    ///< the published code of SirLLM: -log p(x_{t-1} | x_<t), as if the token before came again
};

/// How surprising tokens were, -log p, from the logits of a model.
///
///   run(ctx, TensorView<const float, 2> logits, std::span<const int32> tokens, SurpriseOf, std::span<float> out) -> Status
///
/// Shapes   logits [tokens, vocabulary]: row i comes after token i. out[i] is read off row i - 1 and out[0]
///          is NaN: give the last row of the step before as row 0 and its token as token 0, and drop
///          out[0].
/// Numbers  float32 with the largest logit subtracted; temperature does not belong in here.
/// Errors   shape_mismatch; out_of_range for a token that the vocabulary does not have.
template <Backend B>
struct TokenSurprise {
  static_assert(detail::always_false<B>, "kvcondense: include kvcondense/cpu.hpp or kvcondense/cuda.cuh first.");
};

}  // namespace kvcondense::prim
