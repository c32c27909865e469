#pragma once

#include <algorithm>
#include <cmath>
#include <limits>

#include <kvcondense/core/backend.hpp>
#include <kvcondense/core/shape.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/core/step_view.hpp>
#include <kvcondense/core/view.hpp>
#include <kvcondense/core/workspace.hpp>
#include <kvcondense/evict/pipeline.hpp>
#include <kvcondense/prim/count_above.hpp>

namespace kvcondense::evict {

/// Protect: all slots but those that leave the window of the newest `window` slots in this step. Each
/// slot is up for decision once.
struct NotLeaving {
  index_t window = 512;

  constexpr index_t most() const { return window; }
  constexpr bool judges_once() const { return true; }

  template <Backend B>
  Protected of(const StepView<B>& view, index_t head) const {
    return {std::max<index_t>(0, view.slots(head) - window - view.appended), window};
  }
};

/// The threshold that every positive score reaches.
inline constexpr float above_zero = std::numeric_limits<float>::denorm_min();

/// Allocate: the protected slots and those that score at least `least`, however many they are. With
/// `TopK` a threshold decides.
struct Above {
  float least = 0.0f;

  constexpr bool uses_scores() const { return true; }
  constexpr bool asks_for_room_alone() const { return true; }
  std::size_t workspace_bytes(const CacheShape&, index_t) const { return 0; }

  template <Backend B>
  Status run(Context<B>& ctx, const StepView<B>& view, RaggedView<const float> scores, const Protected* shield,
             index_t* budget, Scratch&) const {
    Status s = prim::CountAbove<B>::run(ctx, scores, shield, least, budget);
    if (s == Status::ok) s = ctx.wait();
    for (index_t h = 0; h < view.heads(); ++h) budget[h] += shield[h].size();
    return s;
  }
};

/// Allocate: a part of the slots that are up for choice; those with a score of +inf are not, and stay.
struct OpenShare {
  double keep = 0.5;

  constexpr bool uses_scores() const { return true; }
  std::size_t workspace_bytes(const CacheShape&, index_t) const { return 0; }

  /// floor, but a product that lands just below an integer counts as that integer.
  index_t of(index_t open) const { return static_cast<index_t>(std::floor(static_cast<double>(open) * keep + 1e-6)); }

  template <Backend B>
  Status run(Context<B>& ctx, const StepView<B>& view, RaggedView<const float> scores, const Protected* shield,
             index_t* budget, Scratch&) const {
    Status s = prim::CountAbove<B>::run(ctx, scores, shield, std::numeric_limits<float>::infinity(), budget);
    if (s == Status::ok) s = ctx.wait();
    for (index_t h = 0; h < view.heads(); ++h) {
      const index_t stay = budget[h] + shield[h].size();
      budget[h] = stay + of(view.slots(h) - stay);
    }
    return s;
  }
};

}  // namespace kvcondense::evict
