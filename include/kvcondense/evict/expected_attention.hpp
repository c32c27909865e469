#pragma once

#include <kvcondense/core/backend.hpp>
#include <kvcondense/core/policy.hpp>
#include <kvcondense/core/shape.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/evict/blocks/allocate.hpp>
#include <kvcondense/evict/blocks/expected_mass.hpp>
#include <kvcondense/evict/blocks/protect.hpp>
#include <kvcondense/evict/blocks/select.hpp>
#include <kvcondense/evict/blocks/trigger.hpp>
#include <kvcondense/evict/pipeline.hpp>
#include <kvcondense/evict/policy.hpp>

namespace kvcondense::evict {

/// Condenses a prompt once, to the tokens that queries to come are expected to look at.
///
/// Idea     queries of a head are nearly Gaussian before rotation; turned by the mean rotation of the
///          positions ahead, their attention to any key has a closed form.
/// Source   Expected Attention, arXiv:2510.00636, as in kvpress.
/// Needs    mean and covariance of queries before rotation (prim::QueryMoments keeps them; those of the
///          prompt without its sinks, or of a model once and for all), rotated keys, values, and the
///          model's rope.
/// Shapes   query_mean [q_heads, head_dim], query_covariance [q_heads, head_dim, head_dim].
/// Cost     head_dim^2 per (query head, slot) once, when a prompt ends; workspace slots * 8 bytes and
///          kv_heads * head_dim^2 * 4.
/// Numbers  softmax over all but the sinks, mean over the query group, plus epsilon, times the length of
///          the value; float32. Sinks stay. Ties keep the smaller slot; NaN leaves first. Generated
///          tokens stay.
/// Errors   incompatible with a position stage that stores raw keys; invalid_argument when keep or epsilon
///          is out of range, sinks < 0, horizon < 1, or the rope cannot be.
struct ExpectedAttention {
  static constexpr Descriptor about{"expected_attention", Stage::evict, "arXiv:2510.00636"};
  static constexpr Inputs needs = Input::moments;

  double keep = 0.5;
  index_t sinks = 4;
  index_t horizon = 512;
  float epsilon = 0.0f;
  bool covariance = true;
  bool value_norm = true;
  prim::RopeConfig rope{};

  constexpr auto pipeline() const {
    return Pipeline{ExpectedMass{rope, horizon, sinks, covariance},
                    TimesValueNorm{epsilon, value_norm},
                    Sinks{sinks},
                    Ratio{keep},
                    TopK{},
                    PrefillOnce{}};
  }
  Status validate(const CacheShape& shape) const {
    const bool good = keep > 0.0 && keep <= 1.0 && sinks >= 0 && horizon >= 1 && epsilon >= 0.0f && epsilon <= 1e6f;
    return good ? prim::rope_angles(rope, shape.head_dim).status() : Status::invalid_argument;
  }
};

static_assert(check_eviction_policy<ExpectedAttention, Cpu>());

}  // namespace kvcondense::evict
