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

namespace kvcondense::evict {

/// Allocate: no limit.
struct Unlimited {
  constexpr bool uses_scores() const { return false; }
  constexpr bool asks_for_room_alone() const { return true; }
  std::size_t workspace_bytes(const CacheShape&, index_t) const { return 0; }

  template <Backend B>
  index_t expects(const StepView<B>& view, index_t head, Protected) const {
    return view.slots(head);
  }
  template <Backend B>
  Status run(Context<B>&, const StepView<B>& view, RaggedView<const float>, const Protected*,
             index_t* budget, Scratch&) const {
    for (index_t h = 0; h < view.heads(); ++h) budget[h] = view.slots(h);
    return Status::ok;
  }
};

/// Allocate: the same number of slots for every head of every layer.
struct Absolute {
  index_t tokens = 1024;

  constexpr bool uses_scores() const { return false; }
  constexpr bool asks_for_room_alone() const { return true; }
  std::size_t workspace_bytes(const CacheShape&, index_t) const { return 0; }

  template <Backend B>
  index_t expects(const StepView<B>&, index_t, Protected) const {
    return tokens;
  }
  template <Backend B>
  Status run(Context<B>&, const StepView<B>& view, RaggedView<const float>, const Protected*,
             index_t* budget, Scratch&) const {
    std::fill_n(budget, view.heads(), tokens);
    return Status::ok;
  }
};

/// Allocate: a part of the tokens seen so far, so that firing again changes nothing.
struct Ratio {
  double keep = 0.5;
  index_t min_keep = 1;

  constexpr bool uses_scores() const { return false; }
  constexpr bool asks_for_room_alone() const { return true; }
  std::size_t workspace_bytes(const CacheShape&, index_t) const { return 0; }

  /// floor, but a product that lands just below an integer counts as that integer.
  index_t of(index_t tokens) const {
    const double exact = std::floor(static_cast<double>(tokens) * keep + 1e-6);
    return std::clamp(static_cast<index_t>(exact), std::min(min_keep, tokens), tokens);
  }

  template <Backend B>
  index_t expects(const StepView<B>& view, index_t, Protected) const {
    return of(view.seen);
  }
  template <Backend B>
  Status run(Context<B>&, const StepView<B>& view, RaggedView<const float>, const Protected*,
             index_t* budget, Scratch&) const {
    std::fill_n(budget, view.heads(), of(view.seen));
    return Status::ok;
  }
};

}  // namespace kvcondense::evict
