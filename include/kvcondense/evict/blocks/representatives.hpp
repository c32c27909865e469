#pragma once

#include <algorithm>
#include <cmath>

#include <kvcondense/core/backend.hpp>
#include <kvcondense/core/shape.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/core/step_view.hpp>
#include <kvcondense/core/view.hpp>
#include <kvcondense/core/workspace.hpp>
#include <kvcondense/evict/pipeline.hpp>
#include <kvcondense/prim/representatives.hpp>

namespace kvcondense::evict {

/// Select: what `base` keeps of a part of the budget, and for the rest representatives of what it lets go.
template <class Base>
struct WithRepresentatives {
  Base base{};
  prim::SignatureRequest signature{};
  double share = 0.25;  ///< part of the budget, without protected slots, that representatives fill

  /// The same representatives beside another choice.
  template <class Other>
  constexpr WithRepresentatives<Other> over(Other other) const {
    return {other, signature, share};
  }

  std::size_t workspace_bytes(const CacheShape& shape, index_t slots) const {
    return Scratch::bytes_for<float>(slots) + Scratch::bytes_for<prim::Ends>(shape.kv_heads) +
           3 * Scratch::bytes_for<index_t>(shape.kv_heads) + base.workspace_bytes(shape, slots);
  }

  template <Backend B>
  Status run(Context<B>& ctx, const StepView<B>& view, RaggedView<const float> scores, const Protected* shield,
             const KeepSet& keep, Scratch& scratch) const {
    const RaggedView<float> distance{scratch.take<float>(view.total()), scores.offset, scores.heads};
    auto* skip = scratch.take_steering<prim::Ends>(view.heads());
    auto* top = scratch.take_steering<index_t>(view.heads());
    auto* count = scratch.take_steering<index_t>(view.heads());
    KeepSet best = keep.with_lists();  // with a budget of its own: the word may read it later
    best.budget = scratch.take_steering<index_t>(view.heads());
    if (distance.data == nullptr || skip == nullptr || top == nullptr || count == nullptr || best.budget == nullptr) return Status::workspace_too_small;
    bool any = false;
    for (index_t h = 0; h < view.heads(); ++h) {
      const bool cut = keep.budget[h] < view.slots(h);
      skip[h] = cut ? shield[h] : prim::Ends{view.slots(h), 0};
      top[h] = cut ? std::max<index_t>(0, keep.budget[h] - shield[h].size()) : 0;
      count[h] = static_cast<index_t>(std::floor(share * static_cast<double>(top[h]) + 1e-6));
      if (signature.block > 0) count[h] -= count[h] % signature.block;
      any = any || count[h] > 0;
      best.budget[h] = keep.budget[h] - count[h];
    }
    Status s = base.run(ctx, view, scores, shield, best, scratch);
    using Word = prim::Representatives<B>;
    if (any && s == Status::ok) s = Word::distances(ctx, signature, scores, skip, top, distance);
    if (any && s == Status::ok) s = Word::pick(ctx, signature.block, distance, skip, count, keep.slots, keep.count);
    return s;
  }
};

template <class Base, class... Fields>
WithRepresentatives(Base, Fields...) -> WithRepresentatives<Base>;

}  // namespace kvcondense::evict
