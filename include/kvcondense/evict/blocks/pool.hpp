#pragma once

#include <kvcondense/core/backend.hpp>
#include <kvcondense/core/shape.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/core/step_view.hpp>
#include <kvcondense/core/view.hpp>
#include <kvcondense/core/workspace.hpp>
#include <kvcondense/evict/pipeline.hpp>
#include <kvcondense/prim/column_pool.hpp>
#include <kvcondense/prim/slot_numbers.hpp>

namespace kvcondense::evict {

/// Pool: scores as they are.
struct NoPool {
  constexpr bool leaves_scores() const { return true; }
  std::size_t workspace_bytes(const CacheShape&, index_t) const { return 0; }

  template <Backend B>
  Status run(Context<B>&, const StepView<B>&, const Protected*, RaggedView<float>, Scratch&) const {
    return Status::ok;
  }
};

/// Pool: the other way round, for scores that count against a slot.
struct Negated {
  constexpr bool keeps_shares() const { return false; }
  std::size_t workspace_bytes(const CacheShape&, index_t) const { return 0; }

  template <Backend B>
  Status run(Context<B>& ctx, const StepView<B>&, const Protected*, RaggedView<float> scores, Scratch&) const {
    return prim::SlotNumbers<B>::mix(ctx, scores, -1.0f, 0.0f, scores);
  }
};

/// Pool: average or maximum over neighbouring candidates, in slot order. An even kernel is refused.
struct Pooled {
  prim::Pool pool = prim::Pool::maximum;
  index_t kernel = 7;

  std::size_t workspace_bytes(const CacheShape&, index_t slots) const {
    return Scratch::bytes_for<float>(slots);
  }

  template <Backend B>
  Status run(Context<B>& ctx, const StepView<B>& view, const Protected* shield,
             RaggedView<float> scores, Scratch& scratch) const {
    const RaggedView<float> raw{scratch.take<float>(view.total()), scores.offset, scores.heads};
    if (raw.data == nullptr) return Status::workspace_too_small;
    const Status copied = prim::SlotNumbers<B>::mix(ctx, scores, 1.0f, 0.0f, raw);
    if (copied != Status::ok) return copied;
    return prim::ColumnPool<B>::run(ctx, raw, shield, pool, kernel, scores);
  }
};

}  // namespace kvcondense::evict
