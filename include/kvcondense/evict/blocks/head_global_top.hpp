#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include <kvcondense/core/backend.hpp>
#include <kvcondense/core/shape.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/core/step_view.hpp>
#include <kvcondense/core/view.hpp>
#include <kvcondense/core/workspace.hpp>
#include <kvcondense/evict/pipeline.hpp>
#include <kvcondense/prim/top_k.hpp>

namespace kvcondense::evict {

enum class HeadShare : std::uint8_t {
  exact,      ///< floor, rounded by largest remainders: the layer's total stays what `base` gives (ours)
  rounded,    ///< floor, halves to even, as the authors' code: the total drifts
  safeguard,  ///< kvpress: the best `floor` of every head are safe, the rest is open to all heads
};

/// Allocate: the heads of a layer share what `base` gives them together, by their scores.
template <class Base>
struct HeadGlobalTop {
  Base base{};
  double floor = 0.2;  ///< part of its own budget that a head keeps in any case
  HeadShare form = HeadShare::exact;

  /// The same sharing of another budget.
  template <class Other>
  constexpr HeadGlobalTop<Other> over(Other other) const {
    return {other, floor, form};
  }

  constexpr bool uses_scores() const { return true; }
  constexpr bool asks_for_room_alone() const { return evict::asks_for_room_alone(base); }
  std::size_t workspace_bytes(const CacheShape& shape, index_t slots) const {
    return std::max(base.workspace_bytes(shape, slots),
                    3 * Scratch::bytes_for<index_t>(shape.kv_heads) +
                        Scratch::bytes_for<prim::RowCutoff>(shape.kv_heads));
  }

  template <Backend B>
  index_t expects(const StepView<B>& view, index_t head, Protected shield) const {
    return expected_slots(base, view, head, shield);
  }
  template <Backend B>
  Status run(Context<B>& ctx, const StepView<B>& view, RaggedView<const float> scores,
             const Protected* shield, index_t* budget, Scratch& scratch) const {
    const index_t heads = view.heads();
    Scratch s = scratch;
    if (const Status r = base.run(ctx, view, scores, shield, budget, s); r != Status::ok) return r;
    auto* own = scratch.take_steering<index_t>(heads);
    auto* safe = scratch.take_steering<index_t>(heads);
    auto* count = scratch.take_steering<index_t>(heads);
    if (own == nullptr || safe == nullptr || count == nullptr) return Status::workspace_too_small;
    index_t places = 0;
    for (index_t h = 0; h < heads; ++h) {
      const index_t guarded = shield[h].size();
      own[h] = std::clamp<index_t>(budget[h] - guarded, 0, view.slots(h) - guarded);
      budget[h] = std::min(budget[h], guarded);
      safe[h] = form == HeadShare::safeguard ? part(own[h]) : 0;
      places += own[h] - safe[h];
    }
    Status r = prim::TopKCounts<B>::run(ctx, scores, shield, safe, places, count, scratch);
    if (r == Status::ok) r = ctx.wait();
    if (r != Status::ok) return r;
    if (form == HeadShare::exact) mix_exact(heads, own, count, safe);
    for (index_t h = 0; h < heads; ++h)
      budget[h] += form == HeadShare::rounded ? rounded(own[h], count[h]) : count[h];
    return Status::ok;
  }

 private:
  index_t part(index_t own) const {
    return static_cast<index_t>(std::floor(static_cast<double>(own) * floor + 1e-6));
  }

  index_t rounded(index_t own, index_t won) const {
    return static_cast<index_t>(
        std::nearbyint(static_cast<double>(won) * (1.0 - floor) + static_cast<double>(part(own))));
  }

  /// count = (1 - floor) * count + floor * own in fixed point; the remainders sum to whole places.
  void mix_exact(index_t heads, const index_t* own, index_t* count, index_t* rest) const {
    constexpr index_t one = index_t{1} << 20;
    const auto kept = static_cast<index_t>(std::lround(floor * static_cast<double>(one)));
    index_t left = 0;
    for (index_t h = 0; h < heads; ++h) {
      const index_t exact = count[h] * (one - kept) + own[h] * kept;
      count[h] = exact / one;
      rest[h] = exact % one;
      left += rest[h];
    }
    for (left /= one; left > 0; --left) {
      index_t* most = std::max_element(rest, rest + heads);  // the first of equals
      ++count[most - rest];
      *most = -1;
    }
  }
};

template <class Base, class... Fields>
HeadGlobalTop(Base, Fields...) -> HeadGlobalTop<Base>;

}  // namespace kvcondense::evict
