#pragma once

#include <kvcondense/core/backend.hpp>
#include <kvcondense/core/shape.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/core/step_view.hpp>
#include <kvcondense/core/view.hpp>
#include <kvcondense/core/workspace.hpp>
#include <kvcondense/evict/pipeline.hpp>
#include <kvcondense/prim/ends_sum.hpp>

namespace kvcondense::evict {

/// Allocate: exactly what is protected where that scores more than `threshold`, everything in all other layers. A layer is
/// judged as a whole, by the mean over its heads.
struct LayerBinary {
  double threshold = 0.9;

  constexpr bool uses_scores() const { return true; }
  constexpr bool asks_for_room_alone() const { return true; }
  std::size_t workspace_bytes(const CacheShape& shape, index_t) const { return Scratch::bytes_for<float>(shape.kv_heads); }

  template <Backend B>
  Status run(Context<B>& ctx, const StepView<B>& view, RaggedView<const float> scores, const Protected* shield,
             index_t* budget, Scratch& scratch) const {
    auto* sum = scratch.take_steering<float>(view.heads());
    if (sum == nullptr) return Status::workspace_too_small;
    Status s = prim::EndsSum<B>::run(ctx, scores, shield, sum);
    if (s == Status::ok) s = ctx.wait();
    double all = 0.0;
    for (index_t h = 0; h < view.heads(); ++h) all += static_cast<double>(sum[h]);
    const bool enough = all > threshold * static_cast<double>(view.heads());
    for (index_t h = 0; h < view.heads(); ++h) budget[h] = enough ? shield[h].size() : view.slots(h);
    return s;
  }
};

}  // namespace kvcondense::evict
