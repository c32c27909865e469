#pragma once

#include <cstdint>

#include <kvcondense/core/policy.hpp>
#include <kvcondense/core/shape.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/evict/blocks/representatives.hpp>
#include <kvcondense/evict/pipeline.hpp>
#include <kvcondense/evict/policy.hpp>

namespace kvcondense::evict {

/// Spends a part of the budget on tokens that represent those a policy lets go, instead of on the next best ones.
///
/// Idea     which heads would keep a token is a cheap signature of it; tokens at equal steps of the order by signature
///          cover what leaves.
/// Source   KVCrush, arXiv:2503.00022; with `block` the form of OpenVINO GenAI.
/// Needs    what the wrapped policy needs.
/// Shapes   scores [kv_heads, slots].
/// Cost     4 bytes per slot of workspace; a few passes over the scores when something leaves.
/// Numbers  bit h of a token: whether it is among the best of head h that the budget has room for; with `block` bit i of a
///          block: whether its token i is in the better half of the head. Distance: bits that differ from one anchor.
///          Representatives are at ranks 0, n / k, 2 n / k, ... of n by distance, the smaller slot first where equal.
/// Differs  no vectors are merged: it is a selection, listed by its paper as a merger's cheapest clustering. A budget of 0
///          is no error. Without `block` signatures compare slots of all heads by their place: meant for prompts, before
///          heads part; with `block` heads are their own.
/// Errors   incompatible over a policy that does not keep single slots by score; invalid_argument when share is not in
///          [0, 1], block or seed < 0; those of the wrapped policy. A step is not_supported where heads hold different numbers
///          of slots and block is 0.
template <class P>
struct KVCrush {
  static constexpr Descriptor about{"kvcrush", Stage::evict, "arXiv:2503.00022"};
  static constexpr Inputs needs = P::needs;

  P policy{};
  double share = 0.25;
  index_t block = 0;
  prim::SignatureAnchor anchor = prim::SignatureAnchor::random;
  index_t seed = 0;

  constexpr auto pipeline() const {
    const auto p = policy.pipeline();
    return p.with_select(WithRepresentatives{p.select, prim::SignatureRequest{anchor, static_cast<std::uint64_t>(seed), block}, share});
  }
  Status validate(const CacheShape& shape) const {
    if (!(share >= 0.0 && share <= 1.0) || block < 0 || seed < 0) return Status::invalid_argument;
    if (!takes_best(policy.pipeline().select)) return Status::incompatible;
    return policy.validate(shape);
  }
};

template <class P, class... Fields>
KVCrush(P, Fields...) -> KVCrush<P>;

}  // namespace kvcondense::evict
