#pragma once

#include <kvcondense/core/backend.hpp>
#include <kvcondense/core/policy.hpp>
#include <kvcondense/core/shape.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/evict/blocks/trigger.hpp>
#include <kvcondense/evict/pipeline.hpp>
#include <kvcondense/evict/policy.hpp>

namespace kvcondense::evict {

/// Condenses a prompt already while its chunks come.
///
/// Idea     a prompt longer than memory: each block is attended to with what is left of those before it, scored,
///          and cut to the budget.
/// Source   KeyDiff, arXiv:2504.15364, and kvpress's block wrapper.
/// Needs    what the policy needs; a prefill in chunks (Phase::prefill_chunk) of about `block` tokens.
/// Shapes   none.
/// Cost     the policy's, for every block; a head holds up to a block and a chunk more than its budget.
/// Numbers  acts in a chunk when the tokens seen pass a multiple of `block`, in all other steps as the policy does
///          alone. A prompt that comes in one chunk is one block.
/// Errors   invalid_argument when block is not positive; incompatible over a policy that judges a token once, in
///          the step in which it leaves a window (dms, exit_threshold).
template <class P>
struct BlockPrefill {
  static constexpr Descriptor about{"block_prefill", Stage::evict, "arXiv:2504.15364"};
  static constexpr Inputs needs = P::needs;

  P policy{};
  index_t block = 128;

  constexpr auto pipeline() const {
    const auto p = policy.pipeline();
    return p.with_trigger(EveryPrefillBlock{p.trigger, block});
  }
  Status validate(const CacheShape& shape) const {
    if (block < 1) return Status::invalid_argument;
    return judges_once(policy.pipeline().protect) ? Status::incompatible : policy.validate(shape);
  }
};

template <class P, class... Fields>
BlockPrefill(P, Fields...) -> BlockPrefill<P>;

}  // namespace kvcondense::evict
