#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include <kvcondense/core/backend.hpp>
#include <kvcondense/core/random.hpp>
#include <kvcondense/core/shape.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/core/step_view.hpp>
#include <kvcondense/core/view.hpp>
#include <kvcondense/core/workspace.hpp>
#include <kvcondense/evict/pipeline.hpp>
#include <kvcondense/prim/draw_ranks.hpp>
#include <kvcondense/prim/lift_top.hpp>
#include <kvcondense/prim/slot_numbers.hpp>
#include <kvcondense/prim/top_k.hpp>

namespace kvcondense::evict {

/// Select: the protected slots; a part of the free places goes to the best of the others, the rest is drawn by chance without
/// replacement, a slot next with a chance in proportion to exp(score / temperature).
struct TopThenDrawn {
  double drawn = 0.3;  ///< part of the free places
  float temperature = 1.0f;
  std::uint64_t seed = 1;

  constexpr bool asks_for_room_alone() const { return true; }
  constexpr index_t kept(index_t n, index_t budget, Protected shield) const { return filled_budget(n, budget, shield); }
  std::size_t workspace_bytes(const CacheShape& shape, index_t slots) const {
    return Scratch::bytes_for<float>(slots) + Scratch::bytes_for<index_t>(shape.kv_heads);
  }

  /// Of `places` free ones those that go to the best: the drawn ones are floor, but a product just below an integer is that integer.
  index_t best_of(index_t places) const { return places - static_cast<index_t>(std::floor(static_cast<double>(places) * drawn + 1e-6)); }

  template <Backend B>
  Status run(Context<B>& ctx, const StepView<B>& view, RaggedView<const float> scores, const Protected* shield,
             const KeepSet& keep, Scratch& scratch) const {
    const RaggedView<float> rank{scratch.take<float>(view.total()), scores.offset, scores.heads};
    auto* best = scratch.take_steering<index_t>(view.heads());
    if (rank.data == nullptr || best == nullptr) return Status::workspace_too_small;
    for (index_t h = 0; h < view.heads(); ++h) best[h] = best_of(std::max<index_t>(0, keep.budget[h] - shield[h].size()));
    // The best are lifted above all others, whose scores stay what they are.
    Status s = prim::SlotNumbers<B>::fill(ctx, 1.0f, rank);
    if (s == Status::ok) s = prim::LiftTop<B>::run(ctx, scores, rank, shield, best, 0.0f, rank);
    // Layers draw from streams of their own.
    if (s == Status::ok) s = prim::DrawRanks<B>::run(ctx, 1.0f / temperature, random_bits(seed, static_cast<std::uint64_t>(view.layer)), rank);
    return s == Status::ok ? prim::TopK<B>::run(ctx, rank, shield, keep.budget, keep.slots, keep.count, keep.nan, prim::Ties::first, keep.ends) : s;
  }
};

}  // namespace kvcondense::evict
