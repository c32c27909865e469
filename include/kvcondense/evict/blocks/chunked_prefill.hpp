#pragma once

#include <algorithm>

#include <kvcondense/core/backend.hpp>
#include <kvcondense/core/shape.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/core/step_view.hpp>
#include <kvcondense/core/view.hpp>
#include <kvcondense/core/workspace.hpp>
#include <kvcondense/evict/pipeline.hpp>

namespace kvcondense::evict {

/// Trigger: every step of a prompt. Generated tokens are appended and stay.
struct EveryPrefillStep {
  template <Backend B>
  bool fires(const StepView<B>& view) const {
    return view.phase == Phase::prefill_chunk || view.phase == Phase::prefill_end;
  }
};

/// Protect: while chunks come, the newest `stable` slots, so that the next chunk sees what is just
/// before it; when the prompt ends, its newest `local`.
struct ChunkTail {
  index_t stable = 2500;
  index_t local = 100;

  constexpr index_t most() const { return std::max(stable, local); }

  template <Backend B>
  Protected of(const StepView<B>& view, index_t) const {
    return {0, view.phase == Phase::prefill_chunk ? stable : local};
  }
};

/// Allocate: `tokens`, and when the prompt ends its newest `local` beside them.
struct ChunkBudget {
  index_t tokens = 6000;
  index_t local = 100;

  constexpr bool uses_scores() const { return false; }
  std::size_t workspace_bytes(const CacheShape&, index_t) const { return 0; }

  template <Backend B>
  Status run(Context<B>&, const StepView<B>& view, RaggedView<const float>, const Protected*, index_t* budget,
             Scratch&) const {
    std::fill_n(budget, view.heads(), view.phase == Phase::prefill_chunk ? tokens : tokens + local);
    return Status::ok;
  }
};

}  // namespace kvcondense::evict
