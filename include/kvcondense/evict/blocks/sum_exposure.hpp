#pragma once

#include <kvcondense/core/backend.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/core/step_view.hpp>
#include <kvcondense/core/view.hpp>
#include <kvcondense/evict/pipeline.hpp>
#include <kvcondense/prim/slot_exposure.hpp>
#include <kvcondense/prim/slot_numbers.hpp>

namespace kvcondense::evict {

/// Accumulate block: attention of all steps so far in a float32 lane, and in another a mark that says how many query rows could
/// have given some; scores are what a row gave in the mean. A slot's lanes start when it comes, so rows before it are never counted.
struct SumExposure {
  constexpr index_t lanes() const { return 2; }
  constexpr index_t counted_lane() const { return 0; }
  constexpr Touches touches() const { return Touches::whole; }

  template <Backend B, class Group>
  Status observe(Context<B>& ctx, const StepView<B>& view, const Group& group, float scale,
                 LaneViews lane) const {
    const Status s = group.add(ctx, view, scale, 1.0f, lane[0]);
    return s == Status::ok ? prim::SlotExposure<B>::count(ctx, view.stepped, view.appended, view.inputs.attention.rows, lane[1]) : s;
  }
  template <Backend B>
  Status observe_counted(Context<B>& ctx, const StepView<B>& view, LaneViews lane) const {
    return prim::SlotExposure<B>::count(ctx, view.stepped, view.appended, view.counted, lane[1]);
  }
  template <Backend B, class Group>
  Status score(Context<B>& ctx, const StepView<B>& view, const Group&, float, LaneViews lane,
               RaggedView<float> out) const {
    return prim::SlotExposure<B>::mean(ctx, lane[0], lane[1], view.stepped, out);
  }
};

}  // namespace kvcondense::evict
