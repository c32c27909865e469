#pragma once

#include <algorithm>
#include <cstddef>

#include <kvcondense/core/backend.hpp>
#include <kvcondense/core/shape.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/core/step_view.hpp>
#include <kvcondense/core/view.hpp>
#include <kvcondense/core/workspace.hpp>
#include <kvcondense/evict/blocks/chunk.hpp>
#include <kvcondense/evict/pipeline.hpp>

namespace kvcondense::evict {

/// Whether a policy keeps ends of a head and no more: nothing scores what lies between.
template <class Pipe>
constexpr bool keeps_ends(const Pipe& p) {
  return !reads_scores(p.select) && p.protect.most() > 0;
}

/// Allocate: what `base` allocates. Where `open_end`, as many more slots as the newest ones need to
/// begin at a page.
template <class Base>
struct WholePageBudget {
  Base base{};
  index_t page = 64;
  bool open_end = false;

  template <class Other>
  constexpr WholePageBudget<Other> over(Other other) const {
    return {other, page, open_end};
  }

  constexpr bool uses_scores() const { return base.uses_scores(); }
  constexpr bool asks_for_room_alone() const { return evict::asks_for_room_alone(base); }
  constexpr ModelShare model_share() const { return evict::model_share(base); }
  std::size_t workspace_bytes(const CacheShape& shape, index_t slots) const {
    return base.workspace_bytes(shape, slots);
  }

  /// Of `n` slots, where `budget` were to stay.
  index_t rounded(index_t n, index_t budget, Protected shield) const {
    if (!open_end || budget >= n) return budget;
    const index_t newest = std::max(shield.suffix, budget - shield.prefix);
    return shield.prefix + n - std::max(shield.prefix, (n - newest) / page * page);
  }

  template <Backend B>
  index_t expects(const StepView<B>& view, index_t head, Protected shield) const {
    return rounded(view.slots(head), expected_slots(base, view, head, shield), shield);
  }
  template <Backend B>
  Status run(Context<B>& ctx, const StepView<B>& view, RaggedView<const float> scores,
             const Protected* shield, index_t* budget, Scratch& scratch) const {
    const Status s = base.run(ctx, view, scores, shield, budget, scratch);
    for (index_t h = 0; h < view.heads() && s == Status::ok; ++h)
      budget[h] = rounded(view.slots(h), budget[h], shield[h]);
    return s;
  }
};

/// Select: the best whole pages, where `base` takes the best slots; where it reads no score, what
/// it takes.
template <class Base>
struct TopPages {
  Base base{};
  index_t page = 64;

  template <class Other>
  constexpr TopPages<Other> over(Other other) const {
    return {other, page};
  }

  constexpr bool reads_scores() const { return evict::reads_scores(base); }
  std::size_t workspace_bytes(const CacheShape& shape, index_t slots) const {
    return base.workspace_bytes(shape, slots);
  }

  template <Backend B>
  Status run(Context<B>& ctx, const StepView<B>& view, RaggedView<const float> scores,
             const Protected* shield, const KeepSet& keep, Scratch& scratch) const {
    return reads_scores() ? ChunkTopK{page}.run(ctx, view, scores, shield, keep, scratch)
                          : base.run(ctx, view, scores, shield, keep, scratch);
  }
};

template <class Base, class... Fields>
WholePageBudget(Base, Fields...) -> WholePageBudget<Base>;
template <class Base, class... Fields>
TopPages(Base, Fields...) -> TopPages<Base>;

}  // namespace kvcondense::evict
