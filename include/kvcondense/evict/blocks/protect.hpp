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

/// Protect: what `base` protects, and the rest of pages that it only begins. What lies between is whole pages,
/// counted from the first slot.
template <class Base>
struct WholePages {
  Base base{};
  index_t page = 128;

  /// The same pages around other protected slots.
  template <class Other>
  constexpr WholePages<Other> over(Other other) const {
    return {other, page};
  }

  constexpr index_t most() const { return base.most() + 2 * (page - 1); }
  constexpr bool judges_once() const { return evict::judges_once(base); }

  template <Backend B>
  Protected of(const StepView<B>& view, index_t head) const {
    const index_t n = view.slots(head);
    const Protected own = base.of(view, head).within(n);
    const index_t begin = std::min(n, (own.prefix + page - 1) / page * page);
    const index_t end = std::max(begin, (n - own.suffix) / page * page);
    return {begin, n - end};
  }
};

template <class Base, class... Fields>
WholePages(Base, Fields...) -> WholePages<Base>;

}  // namespace kvcondense::evict
