#pragma once

#include <algorithm>

#include <kvcondense/core/backend.hpp>
#include <kvcondense/core/shape.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/core/step_view.hpp>
#include <kvcondense/core/view.hpp>
#include <kvcondense/core/workspace.hpp>
#include <kvcondense/evict/pipeline.hpp>

namespace kvcondense::evict {

/// Pool: `base`, then `next` on what it leaves.
template <class A, class C>
struct Then {
  A base{};
  C next{};

  /// The same second block behind another first one.
  template <class Other>
  constexpr Then<Other, C> over(Other other) const {
    return {other, next};
  }

  constexpr bool keeps_shares() const { return evict::keeps_shares(base) && evict::keeps_shares(next); }
  /// Neither needs what the other wrote but the scores.
  std::size_t workspace_bytes(const CacheShape& shape, index_t slots) const {
    return std::max(base.workspace_bytes(shape, slots), next.workspace_bytes(shape, slots));
  }

  template <Backend B>
  Status run(Context<B>& ctx, const StepView<B>& view, const Protected* shield, RaggedView<float> scores,
             Scratch& scratch) const {
    Scratch same = scratch;
    const Status s = base.run(ctx, view, shield, scores, same);
    return s == Status::ok ? next.run(ctx, view, shield, scores, scratch) : s;
  }
};

template <class A, class C>
Then(A, C) -> Then<A, C>;

}  // namespace kvcondense::evict
