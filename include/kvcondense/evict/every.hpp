#pragma once

#include <kvcondense/core/backend.hpp>
#include <kvcondense/core/policy.hpp>
#include <kvcondense/core/shape.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/evict/blocks/trigger.hpp>
#include <kvcondense/evict/pipeline.hpp>
#include <kvcondense/evict/policy.hpp>

namespace kvcondense::evict {

/// Condenses again whenever so many tokens were generated, and not in between.
///
/// Idea     what condensed a prompt condenses the answer too; doing it seldom makes it cheap.
/// Source   kvpress's decoding wrapper.
/// Needs    what the policy needs.
/// Shapes   none.
/// Cost     the policy's, every `tokens` steps; a head holds up to `tokens` - 1 slots more than its budget.
/// Numbers  counts tokens since the end of the last prompt, not calls, so that a rollback does not disturb it. In
///          prompts the policy acts as it does alone. A policy that looks at the step's attention (snapkv) sees
///          that of the step in which it acts: one row, where tokens come one by one.
/// Errors   invalid_argument when tokens is not positive; incompatible over a policy that judges a token once, in
///          the step in which it leaves a window (dms, exit_threshold).
template <class P>
struct Every {
  static constexpr Descriptor about{"every", Stage::evict, "kvpress"};
  static constexpr Inputs needs = P::needs;

  P policy{};
  index_t tokens = 512;

  constexpr auto pipeline() const {
    const auto p = policy.pipeline();
    return p.with_trigger(EveryGenerated{p.trigger, tokens});
  }
  Status validate(const CacheShape& shape) const {
    if (tokens < 1) return Status::invalid_argument;
    return judges_once(policy.pipeline().protect) ? Status::incompatible : policy.validate(shape);
  }
};

template <class P, class... Fields>
Every(P, Fields...) -> Every<P>;

}  // namespace kvcondense::evict
