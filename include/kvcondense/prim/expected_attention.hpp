#pragma once

#include <kvcondense/core/backend.hpp>
#include <kvcondense/core/config.hpp>
#include <kvcondense/core/view.hpp>
#include <kvcondense/prim/rope_config.hpp>

namespace kvcondense::prim {

/// Queries that are yet to come, as a Gaussian, and the keys they may look at.
struct ExpectedQueries {
  TensorView<const float, 2> mean{};        ///< [q_heads, head_dim] before rotation
  TensorView<const float, 3> covariance{};  ///< [q_heads, head_dim, head_dim]
  RopeConfig rope{};
  index_t position = 0;  ///< of the first one
  index_t horizon = 1;   ///< how many of them
  index_t skip = 0;      ///< first slots that take no part, and get 0
  bool spread = true;    ///< false: the mean alone
  float scale = 1.0f;    ///< of logits
};

/// The attention that keys may expect of queries with a Gaussian distribution.
///
///   run(ctx, ExpectedQueries, const SlotRows<B>& keys, RaggedView<float> out, Scratch&) -> Status
///
/// Shapes   out: one number per (kv head, slot), the mean over the head's query group of softmax over the
///          slots from `skip` on of  scale k.m + scale^2 / 2 k.(S k),  m and S being mean and covariance
///          turned by the mean rotation of positions [position, position + horizon).
/// Needs    keys as attention compares them: rotated.
/// Cost     head_dim^2 multiplications per (query head, slot); keys are read once per query head.
/// Numbers  float32; mean rotations in double. A logit that is no number makes its slot NaN and takes no
///          part in the softmax.
/// Errors   workspace_too_small; what rope_angles says of the rope.
template <Backend B>
struct ExpectedAttention {
  static_assert(detail::always_false<B>, "kvcondense: include kvcondense/cpu.hpp or kvcondense/cuda.cuh first.");
};

}  // namespace kvcondense::prim
