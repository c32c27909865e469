#pragma once

#include <algorithm>

#include <kvcondense/core/backend.hpp>
#include <kvcondense/core/step_view.hpp>
#include <kvcondense/evict/pipeline.hpp>

namespace kvcondense::evict {

/// Protect: nothing.
struct NoProtect {
  constexpr index_t most() const { return 0; }

  template <Backend B>
  Protected of(const StepView<B>&, index_t) const {
    return {};
  }
};

/// Protect: the first tokens, which absorb attention that has nowhere else to go.
struct Sinks {
  index_t tokens = 4;

  constexpr index_t most() const { return tokens; }

  template <Backend B>
  Protected of(const StepView<B>&, index_t) const {
    return {tokens, 0};
  }
};

/// Protect: the newest tokens, the one of this step included. Zero means none.
struct Recent {
  index_t tokens = 1;

  constexpr index_t most() const { return tokens; }

  template <Backend B>
  Protected of(const StepView<B>&, index_t) const {
    return {0, tokens};
  }
};

/// Protect: the newest tokens of the prompt, whose queries scored the others.
using Window = Recent;

/// Protect: what any of two blocks protects.
template <class A, class C>
struct Both {
  A first{};
  C second{};

  constexpr index_t most() const { return first.most() + second.most(); }

  template <Backend B>
  Protected of(const StepView<B>& view, index_t head) const {
    const Protected a = first.of(view, head), b = second.of(view, head);
    return {std::max(a.prefix, b.prefix), std::max(a.suffix, b.suffix)};
  }
};

template <class A, class C>
Both(A, C) -> Both<A, C>;

}  // namespace kvcondense::evict
