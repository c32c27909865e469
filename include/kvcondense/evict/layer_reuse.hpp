#pragma once

#include <cstddef>
#include <cstdint>

#include <kvcondense/core/backend.hpp>
#include <kvcondense/core/shape.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/core/step_view.hpp>
#include <kvcondense/core/workspace.hpp>
#include <kvcondense/prim/keep_tokens.hpp>

namespace kvcondense::evict {

// Layers that take over what another one chose.

/// Of every `layers` neighbouring layers the first chooses; the others, head by head, keep the tokens that it kept. They
/// observe nothing and score nothing, and read neither attention nor any other input: what a choice costs is theirs no more.
///
/// A layer that follows acts in the steps in which its own trigger fires, and then keeps what the first layer holds now. A
/// head whose own budget has room for all of its slots keeps them all; apart from that, budgets of its own mean nothing.
/// Nothing is looked up but slots: forks, files and rollbacks need no more than the layers themselves.
///
/// order_violation   the first layer has not made this step yet, or one more.
/// incompatible      a head lacks a token that the first layer's kept: what both hold would be less than anybody chose.
/// Both leave the layer as it was. It does not choose for itself then: nobody has measured the attention for that.
struct LayerReuse {
  index_t layers = 1;

  constexpr bool active() const { return layers > 1; }
  constexpr index_t first(index_t layer) const { return active() ? layer - layer % layers : layer; }
  constexpr bool follows(index_t layer) const { return first(layer) != layer; }
  /// Lists of the tokens of both layers and their lengths, which whoever holds the slots makes.
  std::size_t workspace_bytes(const CacheShape& shape, index_t slots) const {
    return active() ? 2 * Scratch::bytes_for<std::int32_t>(slots) + Scratch::bytes_for<index_t>(2 * shape.kv_heads + 1) : 0;
  }
};

/// What a layer that follows keeps, by the budgets of its heads. Waits for the counts.
template <Backend B>
Status follow(Context<B>& ctx, const StepView<B>& view, const index_t* budget, RaggedView<std::int32_t> slots, index_t* count) {
  const FollowedTokens& tokens = view.followed;
  Status s = prim::KeepTokens<B>::run(ctx, tokens.own, tokens.first, budget, slots, count);
  if (s == Status::ok) s = ctx.wait();
  if (s != Status::ok) return s;
  for (index_t h = 0; h < view.heads(); ++h)
    if (budget[h] < view.slots(h) && count[h] < tokens.first_slots[h]) return Status::incompatible;
  return Status::ok;
}

}  // namespace kvcondense::evict
