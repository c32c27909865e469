#pragma once

#include <algorithm>
#include <cmath>

#include <kvcondense/core/backend.hpp>
#include <kvcondense/core/model_arrays.hpp>
#include <kvcondense/core/shape.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/core/step_view.hpp>
#include <kvcondense/core/view.hpp>
#include <kvcondense/core/workspace.hpp>
#include <kvcondense/evict/pipeline.hpp>
#include <kvcondense/prim/ends.hpp>
#include <kvcondense/prim/top_k.hpp>

namespace kvcondense::evict {

/// Allocate: each layer gives up its own part of the tokens seen so far: halves to even when a prompt
/// ends, later only what is a whole token too much.
struct LayerParts {
  LayerTable evicted{};

  constexpr bool uses_scores() const { return false; }
  std::size_t workspace_bytes(const CacheShape&, index_t) const { return 0; }

  index_t of(index_t layer, index_t seen, bool decode) const {
    const double part = static_cast<double>(evicted(layer)), all = static_cast<double>(seen);
    const double kept = decode ? std::ceil(all * (1.0 - part) - 1e-6 * all) : all - std::nearbyint(part * all);
    return static_cast<index_t>(kept);
  }

  template <Backend B>
  index_t expects(const StepView<B>& view, index_t, Protected) const {
    return of(view.layer, view.seen, view.phase == Phase::decode);
  }
  template <Backend B>
  Status run(Context<B>&, const StepView<B>& view, RaggedView<const float>, const Protected*,
             index_t* budget, Scratch&) const {
    std::fill_n(budget, view.heads(), of(view.layer, view.seen, view.phase == Phase::decode));
    return Status::ok;
  }
};

/// Select: the best of a prompt; behind it no score counts: for each new token that is too much one
/// leaves `distance` slots before the end of what may stay, from the middle where that is no slot.
struct DropBehind {
  index_t distance = 25;

  constexpr index_t kept(index_t n, index_t budget, Protected shield) const { return filled_budget(n, budget, shield); }
  std::size_t workspace_bytes(const CacheShape& shape, index_t) const {
    return Scratch::bytes_for<prim::Ends>(shape.kv_heads);
  }

  template <Backend B>
  Status run(Context<B>& ctx, const StepView<B>& view, RaggedView<const float> scores,
             const Protected* shield, const KeepSet& keep, Scratch& scratch) const {
    auto* ends = keep.ends != nullptr ? keep.ends : scratch.take_steering<prim::Ends>(view.heads());
    if (ends == nullptr) return Status::workspace_too_small;
    if (view.phase != Phase::decode)
      return prim::TopK<B>::run(ctx, scores, shield, keep.budget, keep.slots, keep.count, keep.nan, prim::Ties::first, keep.ends);
    for (index_t h = 0; h < view.heads(); ++h) {
      const index_t n = view.slots(h), kept = keep.budget[h], free = n - shield[h].size();
      const index_t gone = std::min({n - kept, view.appended, free});
      index_t at = kept - distance;
      if (at < 1) at = kept / 2;
      at = std::clamp(at, shield[h].prefix, n - shield[h].suffix - gone);
      ends[h] = {at, n - at - gone};
      keep.count[h] = n - gone;
    }
    return keep.ends != nullptr ? Status::ok : prim::KeepEnds<B>::run(ctx, ends, keep.slots, keep.count);
  }
};

}  // namespace kvcondense::evict
