#pragma once

#include <algorithm>

#include <kvcondense/core/backend.hpp>
#include <kvcondense/prim/ends.hpp>
#include <kvcondense/prim/near_share.hpp>
#include <kvcondense/retrieve/blocks/view.hpp>

namespace kvcondense::retrieve {

/// Keep: the first slots and the newest. What they begin of a unit is kept whole.
struct KeepEnds {
  index_t sinks = 0;
  index_t recent = 0;

  template <Backend B>
  constexpr prim::Ends of(const ReadView<B>&, index_t) const {
    return {sinks, recent};
  }
};

/// Keep: the first slots, and as many of the newest as a part of those behind them is.
struct KeepShare {
  index_t sinks = 0;
  double recent = 0.0;

  template <Backend B>
  constexpr prim::Ends of(const ReadView<B>& view, index_t head) const {
    const index_t n = std::max<index_t>(0, view.slots[head] - sinks);
    return {sinks, static_cast<index_t>(static_cast<double>(n) * recent + 1e-9)};
  }
};

/// Keep: of the slots that steps have seen the newest, those that are near.
struct KeepNear {
  prim::NearShare near{};

  template <Backend B>
  constexpr prim::Ends of(const ReadView<B>& view, index_t head) const {
    return {0, near.of(view.known[head]) + view.slots[head] - view.known[head]};
  }
};

/// Keep: the first slots, the newest of the prompt, and all that came behind it.
struct KeepGenerated {
  index_t sinks = 0;
  index_t recent = 0;  ///< of the prompt

  template <Backend B>
  constexpr prim::Ends of(const ReadView<B>& view, index_t head) const {
    return {sinks, recent + view.slots[head] - std::min(view.prompt[head], view.slots[head])};
  }
};

}  // namespace kvcondense::retrieve
