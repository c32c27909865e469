#pragma once

#include <cstdint>

#include <kvcondense/core/backend.hpp>
#include <kvcondense/core/config.hpp>
#include <kvcondense/core/view.hpp>

namespace kvcondense::prim {

enum class Activation : std::uint8_t { silu, gelu_tanh, relu };

/// A trained two-layer network that says how much a token will be missed.
///
/// Shapes   inputs are all query heads, then all key heads, then all value heads of a token, before
///          rotation: q_heads * head_dim + kv_heads * (head_dim + value_dim) numbers. weights_in
///          [inputs, hidden], weights_out [hidden, kv_heads], row-major; no bias.
struct RetainingWeights {
  const float* weights_in = nullptr;
  const float* weights_out = nullptr;
  index_t inputs = 0;
  index_t hidden = 0;
};

///   write(ctx, weights, Activation, TensorView<const float, 3> queries, keys, values, RaggedView<float> out) -> Status
///
/// Shapes   queries [q_heads, tokens, head_dim], keys and values [kv_heads, tokens, .]; the last
///          token's slot is the last one of every head. out[h][slot] = act(x W_in) W_out[., h].
/// Numbers  float32, sums in ascending order of inputs, then of hidden units.
/// Cost     tokens * hidden * (inputs + kv_heads) multiplications; no workspace.
/// Errors   shape_mismatch when the weights do not fit.
template <Backend B>
struct RetainingHead {
  static_assert(detail::always_false<B>, "kvcondense: include kvcondense/cpu.hpp or kvcondense/cuda.cuh first.");
};

}  // namespace kvcondense::prim
