#pragma once

#include <algorithm>
#include <span>

#include <kvcondense/core/backend.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/core/step_view.hpp>
#include <kvcondense/core/view.hpp>
#include <kvcondense/core/workspace.hpp>
#include <kvcondense/prim/ends.hpp>

// What blocks of an eviction pipeline say of themselves, and what is taken for granted of those that say nothing.

namespace kvcondense::evict {

/// Slots of one head that may not leave: the first `prefix` and the last `suffix` in slot order.
using Protected = prim::Ends;

/// A part of all slots of all layers, by score; keep 0: budgets are a layer's own business.
struct ModelShare {
  double keep = 0.0;
  bool strict = false;  ///< only what scores more than the last place
};

/// Persistent numbers per slot. Lane i of every head is one RaggedView; new slots start at zero.
using LaneViews = std::span<const RaggedView<float>>;

/// Query rows that a source reads itself; sources that do not say read none.
template <class Source>
constexpr AttentionNeed query_need(const Source& source) {
  if constexpr (requires { source.queries(); }) return source.queries();
  else return {};
}
/// Do scores say nothing but how new a slot is? Wrappers that use scores refuse such a policy.
template <class Source>
constexpr bool scores_age(const Source& source) {
  if constexpr (requires { source.by_age(); }) return source.by_age();
  else return false;
}
/// Does a source read keys as attention compares them? Position stages that store raw keys are refused.
template <class Source>
constexpr bool reads_rotated_keys(const Source& source) {
  if constexpr (requires { source.rotated_keys(); }) return source.rotated_keys();
  else return false;
}
/// Tells a source of a turn that is about to begin; most have nothing to do.
template <class Source, Backend B>
Status observe_turn(const Source& source, Context<B>& ctx, const StepView<B>& view, LaneViews lane) {
  if constexpr (requires { source.observe_turn(ctx, view, lane); }) return source.observe_turn(ctx, view, lane);
  else return Status::ok;
}
/// Inputs that a source reads besides attention and queries; sources that do not say read none.
template <class Source>
constexpr Inputs input_need(const Source& source) {
  if constexpr (requires { source.inputs(); }) return source.inputs();
  else return {};
}

/// Whether a source's scores are shares of attention; those that do not say give some if they read it.
template <class Source>
constexpr bool gives_shares(const Source& source) {
  if constexpr (requires { source.gives_shares(); }) return source.gives_shares();
  else return source.attention().rows != AttentionNeed::Rows::none || query_need(source).rows != AttentionNeed::Rows::none;
}
/// Whether a protect block lets slots go in one step only, so that a step that does not fire is lost for them.
template <class Protect>
constexpr bool judges_once(const Protect& protect) {
  if constexpr (requires { protect.judges_once(); }) return protect.judges_once();
  else return false;
}
/// Whether a pool block leaves all scores as they are.
template <class Pool>
constexpr bool leaves_scores(const Pool& pool) {
  if constexpr (requires { pool.leaves_scores(); }) return pool.leaves_scores();
  else return false;
}
/// The lane that holds a source's scores as they are; -1 for sources that do not say.
template <class Source>
constexpr index_t score_lane(const Source& source) {
  if constexpr (requires { source.score_lane(); }) return source.score_lane();
  else return -1;
}
/// Whether scores that are shares of attention (not negative, with a sum that means something) are so still
/// behind a pool block; blocks that do not say leave them so.
template <class Pool>
constexpr bool keeps_shares(const Pool& pool) {
  if constexpr (requires { pool.keeps_shares(); }) return pool.keeps_shares();
  else return true;
}
/// Whether a select block takes the slots with the largest scores, each for itself; those that do not say
/// do something else.
template <class Select>
constexpr bool takes_best(const Select& select) {
  if constexpr (requires { select.takes_best(); }) return select.takes_best();
  else return false;
}
/// Whether a select block reads scores at all; blocks that do not say do.
template <class Select>
constexpr bool reads_scores(const Select& select) {
  if constexpr (requires { select.reads_scores(); }) return select.reads_scores();
  else return true;
}
/// Slots that stay of a head's `n` where the budget is filled, and protected ones stay whatever it is.
constexpr index_t filled_budget(index_t n, index_t budget, Protected shield) { return std::min(n, std::max(budget, shield.within(n).size())); }
/// Slots that a select block leaves of a head's `n`, where budget and protected slots say it; -1 where only a run knows.
template <class Select>
constexpr index_t kept_slots(const Select& select, index_t n, index_t budget, Protected shield) {
  if constexpr (requires { select.kept(n, budget, shield); }) return select.kept(n, budget, shield);
  else return -1;
}
/// Slots that a head which protects these gets, as far as counters tell; 0 where only a run knows.
template <class Allocate, Backend B>
constexpr index_t expected_slots(const Allocate& allocate, const StepView<B>& view, index_t head, Protected shield) {
  if constexpr (requires { allocate.expects(view, head, shield); }) return allocate.expects(view, head, shield);
  else return 0;
}
/// What a layer's heads get together, for triggers that ask; worked out only then.
template <Backend B>
struct LayerBudget {
  const void* pipeline = nullptr;
  index_t (*of)(const void* pipeline, const StepView<B>& view) = nullptr;

  index_t slots(const StepView<B>& view) const { return of == nullptr ? 0 : of(pipeline, view); }
};
/// Whether a trigger fires; most do not ask for the budget.
template <class Trigger, Backend B>
bool trigger_fires(const Trigger& trigger, const StepView<B>& view, LayerBudget<B> budget) {
  if constexpr (requires { trigger.fires(view, budget); }) return trigger.fires(view, budget);
  else return trigger.fires(view);
}

/// Does a source look at tokens that only ask? Most do not.
template <class Source>
constexpr bool answers_probes(const Source& source) {
  if constexpr (requires { source.probes(); }) return source.probes();
  else return false;
}
template <class Source, Backend B>
Status observe_probe(const Source& source, Context<B>& ctx, const StepView<B>& view, LaneViews lane, Scratch& scratch) {
  if constexpr (requires { source.observe_probe(ctx, view, lane, scratch); })
    return source.observe_probe(ctx, view, lane, scratch);
  else return Status::ok;
}
/// Does an allocator share slots among all layers? Then the cache works its budgets out, for all at once.
template <class Allocate>
constexpr ModelShare model_share(const Allocate& allocate) {
  if constexpr (requires { allocate.model_share(); }) return allocate.model_share();
  else return {};
}

}  // namespace kvcondense::evict
