#pragma once

#include <algorithm>

#include <kvcondense/core/backend.hpp>
#include <kvcondense/core/shape.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/core/step_view.hpp>
#include <kvcondense/core/view.hpp>
#include <kvcondense/core/workspace.hpp>
#include <kvcondense/evict/pipeline.hpp>
#include <kvcondense/prim/output_error.hpp>
#include <kvcondense/prim/slot_numbers.hpp>

namespace kvcondense::evict {

/// Pool: how far the head's output would move without the slot, where scores are shares of attention.
struct OutputError {
  prim::HeadOutput of{};
  bool shared = false;  ///< the mean over heads, for methods that keep one set per layer
  bool off = false;     ///< scores as they are

  constexpr bool keeps_shares() const { return false; }
  std::size_t workspace_bytes(const CacheShape&, index_t slots) const {
    return shared ? Scratch::bytes_for<float>(slots) : 0;
  }

  template <Backend B>
  Status run(Context<B>& ctx, const StepView<B>& view, const Protected* shield, RaggedView<float> scores,
             Scratch& scratch) const {
    if (off) return Status::ok;
    if (view.values == nullptr) return Status::missing_input;
    Status s = prim::OutputError<B>::run(ctx, *view.values, shield, of, scores);
    if (s != Status::ok || !shared) return s;
    const RaggedView<float> own{scratch.take<float>(view.total()), scores.offset, scores.heads};
    if (own.data == nullptr) return Status::workspace_too_small;
    s = prim::SlotNumbers<B>::mix(ctx, scores, 1.0f, 0.0f, own);
    const float each = 1.0f / static_cast<float>(view.heads());
    return s == Status::ok ? prim::SlotNumbers<B>::sum_heads(ctx, own, each, 0.0f, scores) : s;
  }
};

/// Select: one slot after the other leaves, each time the one without which the head's output moves least,
/// until the budget is met. `off` leaves the choice to `base`.
template <class Base>
struct DropLeastError {
  Base base{};
  prim::HeadOutput of{};
  bool off = false;

  /// The same choice instead of another one.
  template <class Other>
  constexpr DropLeastError<Other> over(Other other) const {
    return {other, of, off};
  }

  constexpr bool takes_best() const { return off && evict::takes_best(base); }
  constexpr index_t kept(index_t n, index_t budget, Protected shield) const {
    return off ? kept_slots(base, n, budget, shield) : filled_budget(n, budget, shield);
  }
  std::size_t workspace_bytes(const CacheShape& shape, index_t slots) const {
    return off ? base.workspace_bytes(shape, slots) : Scratch::bytes_for<float>(slots);
  }

  template <Backend B>
  Status run(Context<B>& ctx, const StepView<B>& view, RaggedView<const float> scores, const Protected* shield,
             const KeepSet& keep, Scratch& scratch) const {
    if (off) return base.run(ctx, view, scores, shield, keep, scratch);
    if (view.values == nullptr) return Status::missing_input;
    const RaggedView<float> left{scratch.take<float>(view.total()), scores.offset, scores.heads};
    if (left.data == nullptr) return Status::workspace_too_small;
    return prim::OutputError<B>::drop(ctx, *view.values, scores, shield, of, keep.budget, left, keep.slots,
                                      keep.count, keep.nan);
  }
};

template <class Base, class... Fields>
DropLeastError(Base, Fields...) -> DropLeastError<Base>;

}  // namespace kvcondense::evict
