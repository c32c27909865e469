#pragma once

#include <kvcondense/core/backend.hpp>
#include <kvcondense/core/shape.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/core/step_view.hpp>
#include <kvcondense/core/view.hpp>
#include <kvcondense/core/workspace.hpp>
#include <kvcondense/evict/pipeline.hpp>
#include <kvcondense/prim/row_redundancy.hpp>
#include <kvcondense/prim/slot_numbers.hpp>

namespace kvcondense::evict {

/// Pool: lambda * score - (1 - lambda) * how much the keys of the other slots repeat the slot's own.
struct Redundancy {
  float lambda = 0.1f;
  float threshold = 0.5f;  ///< a cosine above it makes a key the repetition of another

  constexpr bool keeps_shares() const { return false; }
  std::size_t workspace_bytes(const CacheShape& shape, index_t slots) const {
    return 2 * Scratch::bytes_for<float>(slots) + prim::row_redundancy_bytes(slots, shape.kv_heads, shape.head_dim);
  }

  /// Protected slots take part as what is repeated; what becomes of their scores nobody reads.
  template <Backend B>
  Status run(Context<B>& ctx, const StepView<B>& view, const Protected*, RaggedView<float> scores,
             Scratch& scratch) const {
    if (view.keys == nullptr) return Status::missing_input;
    const RaggedView<float> inverse{scratch.take<float>(view.total()), scores.offset, scores.heads};
    const RaggedView<float> repeats{scratch.take<float>(view.total()), scores.offset, scores.heads};
    if (inverse.data == nullptr || repeats.data == nullptr) return Status::workspace_too_small;
    const Status s = prim::RowRedundancy<B>::run(ctx, *view.keys, threshold, inverse, repeats, scratch);
    return s == Status::ok ? prim::SlotNumbers<B>::mix(ctx, repeats, lambda - 1.0f, lambda, scores) : s;
  }
};

}  // namespace kvcondense::evict
