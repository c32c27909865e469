#pragma once

#include <algorithm>
#include <cstdint>

#include <kvcondense/core/backend.hpp>
#include <kvcondense/core/random.hpp>
#include <kvcondense/core/shape.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/core/step_view.hpp>
#include <kvcondense/core/view.hpp>
#include <kvcondense/core/workspace.hpp>
#include <kvcondense/evict/pipeline.hpp>
#include <kvcondense/prim/attend_columns.hpp>
#include <kvcondense/prim/slot_numbers.hpp>

namespace kvcondense::evict {

/// Source: attention with noise on its logits and a temperature, of every query row so far, summed in one
/// float32 lane. The temperature is `start` in a prompt and rises in equal steps to `end` over the first
/// `generation` tokens that are generated.
///
/// Needs    the queries of every step.
struct NoisyMass {
  float start = 1.0f;
  float end = 2.0f;
  index_t generation = 128;
  std::uint64_t seed = 1;  ///< 0: no noise

  constexpr AttentionNeed attention() const { return {}; }
  constexpr AttentionNeed queries() const { return {AttentionNeed::Rows::all, 0}; }
  constexpr index_t lanes() const { return 1; }
  constexpr bool one_set() const { return false; }
  std::size_t workspace_bytes(const CacheShape&, index_t) const { return 0; }

  float temperature(index_t generated) const {
    const index_t m = std::clamp<index_t>(generated, 0, generation);
    return start + (end - start) * (static_cast<float>(m) / static_cast<float>(generation));
  }

  template <Backend B>
  Status observe(Context<B>& ctx, const StepView<B>& view, LaneViews lane) const {
    if (view.columns == nullptr) return Status::missing_input;
    prim::ColumnRequest request;
    request.rows = std::min(view.appended, view.columns->rows());  // earlier ones may be kept for others
    request.add = true;
    request.temperature = temperature(view.generated > 0 ? view.generated - request.rows + 1 : 0);
    if (request.rows > 1)
      request.warming = (temperature(view.generated) - request.temperature) / static_cast<float>(request.rows - 1);
    // Layers draw from streams of their own; the last bit keeps a stream from being none.
    if (seed != 0) request.seed = random_bits(seed, static_cast<std::uint64_t>(view.layer)) | 1;
    request.out = lane[0];
    return view.columns->run(ctx, request);
  }
  template <Backend B>
  Status score(Context<B>& ctx, const StepView<B>&, LaneViews lane, RaggedView<float> out, Scratch&) const {
    return prim::SlotNumbers<B>::mix(ctx, lane[0], 1.0f, 0.0f, out);
  }
};

}  // namespace kvcondense::evict
