#pragma once

#include <cmath>

#include <kvcondense/core/backend.hpp>
#include <kvcondense/core/config.hpp>
#include <kvcondense/core/shape.hpp>
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

/// A mean of rotations: each pair turns and shrinks.
struct MeanTurn {
  float cos[max_head_dim / 2], sin[max_head_dim / 2];
  index_t pairs = 0;
  bool interleaved = false;

  /// Pair t of a row whose numbers lie `step` apart.
  KVCONDENSE_HD void pair(float* x, index_t step, index_t t) const {
    float& a = x[(interleaved ? 2 * t : t) * step];
    float& b = x[(interleaved ? 2 * t + 1 : t + pairs) * step];
    const float turned = a * cos[t] - b * sin[t];
    b = a * sin[t] + b * cos[t];
    a = turned;
  }
  void row(float* x, index_t step) const {
    for (index_t t = 0; t < pairs; ++t) pair(x, step, t);
  }
};

/// The mean of the rotations of positions [first, first + count), summed in double.
inline MeanTurn mean_turn(const RopeAngles& angles, index_t first, index_t count) {
  MeanTurn turn;
  turn.pairs = angles.pairs;
  turn.interleaved = angles.pairing == RopePairing::interleaved;
  const double each = static_cast<double>(angles.attention_factor) / static_cast<double>(count);
  for (index_t t = 0; t < angles.pairs; ++t) {
    double c = 0.0, s = 0.0;
    for (index_t f = 0; f < count; ++f) {
      const double angle = static_cast<double>(first + f) * static_cast<double>(angles.frequency[t]);
      c += std::cos(angle), s += std::sin(angle);
    }
    turn.cos[t] = static_cast<float>(c * each), turn.sin[t] = static_cast<float>(s * each);
  }
  return turn;
}

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
