#pragma once

#include <algorithm>

#include <kvcondense/core/backend.hpp>
#include <kvcondense/core/shape.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/core/view.hpp>
#include <kvcondense/core/workspace.hpp>
#include <kvcondense/prim/near_share.hpp>
#include <kvcondense/prim/rank_bits.hpp>
#include <kvcondense/prim/top_k.hpp>
#include <kvcondense/retrieve/blocks/view.hpp>

namespace kvcondense::retrieve {

/// Selector: the units with the largest scores, ascending.
struct TopUnits {
  index_t units = 1;

  template <Backend B>
  constexpr index_t budget(const ReadView<B>&, index_t) const {
    return std::max<index_t>(units, 0);
  }
  template <Backend B>
  constexpr bool takes_all(const ReadView<B>&, index_t, index_t candidates) const {
    return candidates <= units;
  }
  std::size_t workspace_bytes(const CacheShape& shape, index_t, index_t) const {
    return Scratch::bytes_for<index_t>(shape.q_heads);
  }
  template <Backend B>
  Status run(Context<B>& ctx, const ReadView<B>&, RaggedView<const float> scores, const UnitLists& lists, Scratch& scratch) const {
    auto* total = scratch.take_steering<index_t>(scores.heads);
    if (total == nullptr) return Status::workspace_too_small;
    std::fill_n(total, scores.heads, std::max<index_t>(units, 0));
    return prim::TopK<B>::run(ctx, scores, nullptr, total, lists.units, lists.count);
  }
};

/// For selectors whose `budget` says how many units of a row they take.
template <class Select, Backend B>
Status take_budget(const Select& select, Context<B>& ctx, const ReadView<B>& view, RaggedView<const float> scores, const UnitLists& lists,
                   Scratch& scratch) {
  auto* total = scratch.take_steering<index_t>(scores.heads);
  if (total == nullptr) return Status::workspace_too_small;
  for (index_t r = 0; r < scores.heads; ++r) total[r] = select.budget(view, r * view.heads() / scores.heads);
  return prim::TopK<B>::run(ctx, scores, nullptr, total, lists.units, lists.count);
}

/// Selector: as many units with the largest scores as `count` says of a head: count(view, head) -> index_t.
template <class Count>
struct TopCounted {
  Count count{};

  template <Backend B>
  constexpr index_t budget(const ReadView<B>& view, index_t head) const {
    return count(view, head);
  }
  template <Backend B>
  constexpr bool takes_all(const ReadView<B>& view, index_t head, index_t candidates) const {
    return candidates <= budget(view, head);
  }
  std::size_t workspace_bytes(const CacheShape& shape, index_t, index_t) const {
    return Scratch::bytes_for<index_t>(shape.q_heads);
  }
  template <Backend B>
  Status run(Context<B>& ctx, const ReadView<B>& view, RaggedView<const float> scores, const UnitLists& lists, Scratch& scratch) const {
    return take_budget(*this, ctx, view, scores, lists, scratch);
  }
};

/// A part of a head's slots behind the first `skip`.
struct ShareOfSlots {
  double share = 0.1;
  index_t skip = 0;
  index_t least = 0;
  index_t most = index_t{1} << 40;

  template <Backend B>
  constexpr index_t operator()(const ReadView<B>& view, index_t head) const {
    const index_t n = std::max<index_t>(0, view.slots[head] - skip);
    return std::clamp(static_cast<index_t>(static_cast<double>(n) * share + 1e-9), least, most);
  }
};
using TopShare = TopCounted<ShareOfSlots>;

/// As many as slots are near, of those that steps have seen.
struct NearOfKnown {
  prim::NearShare near{};

  template <Backend B>
  index_t operator()(const ReadView<B>& view, index_t head) const {
    return near.of(view.known[head]);
  }
};
using TopNear = TopCounted<NearOfKnown>;

/// Selector: the same in the order of scores, the best first. What comes later takes the place of the last ones.
struct RankedUnits {
  index_t units = 1;
  index_t slots = 16;  ///< that are read in all, newer ones included

  template <Backend B>
  constexpr index_t budget(const ReadView<B>&, index_t) const {
    return units;
  }
  template <Backend B>
  constexpr bool takes_all(const ReadView<B>&, index_t, index_t) const {
    return false;  // the order counts later
  }
  constexpr index_t room(index_t since) const { return slots - since; }
  std::size_t workspace_bytes(const CacheShape& shape, index_t, index_t) const {
    return Scratch::bytes_for<index_t>(shape.q_heads);
  }
  template <Backend B>
  Status run(Context<B>& ctx, const ReadView<B>& view, RaggedView<const float> scores, const UnitLists& lists, Scratch& scratch) const {
    if (const Status s = TopUnits{units}.run(ctx, view, scores, lists, scratch); s != Status::ok) return s;
    for (index_t r = 0; r < scores.heads; ++r) {
      const float* x = scores.row(r);
      auto* list = lists.units.row(r);
      std::stable_sort(list, list + lists.count[r], [&](auto a, auto b) { return prim::rank_bits(x[a]) > prim::rank_bits(x[b]); });
    }
    return Status::ok;
  }
};

}  // namespace kvcondense::retrieve
