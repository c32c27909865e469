#pragma once

#include <algorithm>

#include <kvcondense/core/backend.hpp>
#include <kvcondense/core/step_view.hpp>
#include <kvcondense/evict/pipeline.hpp>

namespace kvcondense::evict {

/// Trigger: no step.
struct Never {
  template <Backend B>
  bool fires(const StepView<B>&) const {
    return false;
  }
};

/// Trigger: every step, chunks of a prefill included.
struct EveryStep {
  template <Backend B>
  bool fires(const StepView<B>& view) const {
    return view.phase != Phase::turn;
  }
};

/// Trigger: when a prefill ends. Generated tokens are appended and stay.
struct PrefillOnce {
  template <Backend B>
  bool fires(const StepView<B>& view) const {
    return view.phase == Phase::prefill_end;
  }
};

/// Trigger: when a prefill ends and at every decode step; chunks before the end only count.
struct PrefillOnceAndEveryStep {
  template <Backend B>
  bool fires(const StepView<B>& view) const {
    return view.phase == Phase::prefill_end || view.phase == Phase::decode;
  }
};

/// Trigger: whenever the tokens seen after the first `after` pass a multiple of `every`. Counts tokens,
/// not calls, so that a rollback does not disturb it.
struct EveryM {
  index_t every = 128;
  index_t after = 0;

  template <Backend B>
  bool fires(const StepView<B>& view) const {
    return periods(view.seen) > periods(view.seen - view.appended);
  }

 private:
  index_t periods(index_t seen) const { return std::max<index_t>(0, seen - after) / every; }
};

/// Trigger: in a prompt as `base`; while text is generated whenever its tokens pass a multiple of `every`.
template <class Base>
struct EveryGenerated {
  Base base{};
  index_t every = 512;

  /// The same steps over another trigger.
  template <class Other>
  constexpr EveryGenerated<Other> over(Other other) const {
    return {other, every};
  }

  template <Backend B>
  bool fires(const StepView<B>& view, LayerBudget<B> budget) const {
    if (view.phase != Phase::decode) return trigger_fires(base, view, budget);
    return view.generated / every > (view.generated - view.appended) / every;
  }
};

template <class Base, class... Fields>
EveryGenerated(Base, Fields...) -> EveryGenerated<Base>;

/// Trigger: as `base`, but while a prompt comes in chunks whenever its tokens pass a multiple of `block`.
template <class Base>
struct EveryPrefillBlock {
  Base base{};
  index_t block = 128;

  /// The same blocks over another trigger.
  template <class Other>
  constexpr EveryPrefillBlock<Other> over(Other other) const {
    return {other, block};
  }

  template <Backend B>
  bool fires(const StepView<B>& view, LayerBudget<B> budget) const {
    if (view.phase != Phase::prefill_chunk) return trigger_fires(base, view, budget);
    return EveryM{block}.fires(view);
  }
};

template <class Base, class... Fields>
EveryPrefillBlock(Base, Fields...) -> EveryPrefillBlock<Base>;

/// Trigger: when a layer's heads hold `slack` slots more than their budget, in the mean. The budget is that
/// of the pipeline, whatever wrappers made of it; where only a run tells it, it counts as none.
struct Slack {
  index_t slack = 128;

  template <Backend B>
  bool fires(const StepView<B>& view, LayerBudget<B> budget) const {
    return view.phase != Phase::turn && view.total() >= budget.slots(view) + slack * view.heads();
  }
};

}  // namespace kvcondense::evict
