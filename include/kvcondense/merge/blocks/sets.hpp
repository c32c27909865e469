#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>

#include <kvcondense/core/backend.hpp>
#include <kvcondense/core/shape.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/core/step_view.hpp>
#include <kvcondense/core/workspace.hpp>
#include <kvcondense/merge/pipeline.hpp>
#include <kvcondense/prim/merge_sets.hpp>
#include <kvcondense/prim/row_similarity.hpp>

namespace kvcondense::merge {

/// Finder: runs of neighbours that are alike, in what no run was sought in before. In a prompt when it ends, but not
/// in its newest part; while text is generated whenever `window` tokens came to the `window` newest.
///
/// What an eviction stage lets go leaves for good, and ends a run.
struct Runs {
  float least = 0.75f;
  double keep = 0.0;    ///< 0: as `least` says; else this part of the slots that are looked at stays
  double heavy = 0.12;  ///< part of them that stays alone, by score
  double recent = 0.17; ///< part of a prompt that is not looked at yet
  index_t window = 64;
  index_t sinks = 4;

  constexpr bool reads_scores() const { return true; }
  constexpr index_t state_floats() const { return 1; }  // the token at which the next search begins, as bits
  /// In what comes where tokens were taken back no run was sought.
  void truncate(index_t tokens, float* state) const {
    *state = std::bit_cast<float>(std::min(static_cast<std::int32_t>(tokens), std::bit_cast<std::int32_t>(*state)));
  }
  std::size_t workspace_bytes(const CacheShape& shape, index_t) const {
    return Scratch::bytes_for<prim::TokenSpan>(shape.kv_heads) + Scratch::bytes_for<prim::SlotRange>(shape.kv_heads) +
           Scratch::bytes_for<index_t>(shape.kv_heads);
  }

  /// The tokens among which runs are sought in this step, by the number of a head; none where it is not time.
  template <Backend B>
  prim::TokenSpan sought(const StepView<B>& view, float found) const {
    const bool prompt = view.phase == Phase::prefill_end;
    index_t newest = window;
    if (prompt) newest = std::max(newest, static_cast<index_t>(std::floor(recent * static_cast<double>(view.seen) + 1e-6)));
    const index_t begun = std::bit_cast<std::int32_t>(found);
    const prim::TokenSpan span{std::max(sinks, begun), view.seen - newest};
    if (!fires(view) || span.last <= span.first || (!prompt && span.last - begun < window)) return {};
    return span;
  }
  template <Backend B>
  bool seeks(const StepView<B>& view, float found) const {
    const prim::TokenSpan span = sought(view, found);
    return span.first < span.last;
  }

  template <Backend B>
  bool fires(const StepView<B>& view) const {
    return view.phase == Phase::prefill_end || view.phase == Phase::decode;
  }

  template <Backend B>
  Status run(Context<B>& ctx, Scene<B>& scene, Scratch& scratch) const {
    if (const Status s = prim::MergeSets<B>::drop(ctx, scene.links); s != Status::ok || !fires(*scene.view)) return s;
    const StepView<B>& view = *scene.view;
    auto* spans = scratch.take_steering<prim::TokenSpan>(view.heads());
    auto* region = scratch.take<prim::SlotRange>(view.heads());
    auto* sets = scratch.take<index_t>(view.heads());
    if (spans == nullptr || region == nullptr || sets == nullptr) return Status::workspace_too_small;
    bool any = false;
    for (index_t h = 0; h < view.heads(); ++h) {
      spans[h] = sought(view, scene.found(h, 0));
      if (spans[h].first >= spans[h].last) continue;
      scene.found(h, 0) = std::bit_cast<float>(static_cast<std::int32_t>(spans[h].last));
      any = true;
    }
    if (!any) return Status::ok;
    if (const Status s = prim::MergeSets<B>::spans(ctx, scene.tokens, spans, scene.targets, keep, region, sets); s != Status::ok) return s;
    if (const Status s = prim::RowSimilarity<B>::adjacent(ctx, *view.keys, scene.links.likeness); s != Status::ok) return s;
    const prim::RunRequest request{region, least, keep > 0.0 ? sets : nullptr, heavy};
    return prim::MergeSets<B>::runs(ctx, request, scene.scores, scene.links);
  }
};

/// Finder: every second slot to the most alike of the others, the most alike pairs first, until a head has no more than
/// `tokens`, in every step that finds `slack` too many. At most half of what is looked at folds in one step.
///
/// What an eviction stage lets go leaves for good.
struct Pairs {
  index_t tokens = 1024;
  index_t slack = 32;
  index_t sinks = 4;
  index_t recent = 32;
  index_t chunk = 0;  ///< pairs lie in the same chunk of this many slots; 0: anywhere

  std::size_t workspace_bytes(const CacheShape& shape, index_t) const {
    return Scratch::bytes_for<prim::SlotRange>(shape.kv_heads) + Scratch::bytes_for<index_t>(shape.kv_heads);
  }

  template <Backend B>
  bool fires(const StepView<B>& view) const {
    if (view.phase == Phase::turn || view.phase == Phase::probe) return false;
    const index_t more = view.phase == Phase::decode ? slack : 0;
    for (index_t h = 0; h < view.heads(); ++h)
      if (view.slots(h) - tokens > more) return true;
    return false;
  }

  template <Backend B>
  Status run(Context<B>& ctx, Scene<B>& scene, Scratch& scratch) const {
    if (const Status s = prim::MergeSets<B>::drop(ctx, scene.links); s != Status::ok || !fires(*scene.view)) return s;
    const StepView<B>& view = *scene.view;
    auto* region = scratch.take_steering<prim::SlotRange>(view.heads());
    auto* most = scratch.take_steering<index_t>(view.heads());
    if (region == nullptr || most == nullptr) return Status::workspace_too_small;
    for (index_t h = 0; h < view.heads(); ++h) {
      const index_t n = view.slots(h);
      region[h] = {0, std::max(std::min(sinks, n), scene.targets[h].begin), std::min(n - recent, scene.targets[h].end)};
      region[h].end = std::max(region[h].begin, region[h].end);
      most[h] = std::max<index_t>(0, scene.stay[h] - tokens);
      if (chunk > 0) {
        const index_t span = region[h].end - region[h].begin, chunks = span / chunk + (span % chunk != 0);
        if (chunks > 0) most[h] = (most[h] + chunks - 1) / chunks;
      }
    }
    using Sets = prim::MergeSets<B>;
    if (const Status s = Sets::alternate(ctx, region, scene.links); s != Status::ok) return s;
    if (const Status s = prim::RowSimilarity<B>::nearest(ctx, *view.keys, nullptr, region, chunk, scene.links); s != Status::ok)
      return s;
    return Sets::strongest(ctx, region, chunk, most, scene.links);
  }
};

}  // namespace kvcondense::merge
