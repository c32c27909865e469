#pragma once

#include <algorithm>
#include <concepts>
#include <cstdint>
#include <span>

#include <kvcondense/core/backend.hpp>
#include <kvcondense/core/shape.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/core/step_view.hpp>
#include <kvcondense/core/view.hpp>
#include <kvcondense/core/workspace.hpp>
#include <kvcondense/evict/blocks/traits.hpp>
#include <kvcondense/evict/counting.hpp>
#include <kvcondense/evict/layer_reuse.hpp>
#include <kvcondense/evict/touches.hpp>
#include <kvcondense/prim/ends.hpp>

namespace kvcondense::evict {

/// What survives a step. Row h of `slots` has room for every slot of head h; the first `count[h]`
/// entries are the kept slots, ascending. `budget[h]` is what the allocator asked for, at most the
/// head's slots; it is less than `count[h]` where more slots than the budget are protected.
struct KeepSet {
  RaggedView<std::int32_t> slots;
  index_t* count = nullptr;
  index_t* budget = nullptr;
  index_t* nan = nullptr;  ///< may be null; NaN scores that selection met are added
  /// Null: lists are wanted. Else, of a head whose kept slots are its first and its last ones, a block may say so here
  /// and leave the list unwritten; where it writes the list, it leaves the entry alone (prefix -1).
  prim::Ends* ends = nullptr;

  KeepSet with_lists() const { return {slots, count, budget, nan}; }
};

/// What stays of slots that leave.
enum class Residual : std::uint8_t {
  none,
  mean,  ///< one more slot per head: the mean of all keys and values that left, with the logarithm of
         ///< their number added to its logit
};

/// One eviction method as a value: which blocks it is made of (the stages of the eviction pipeline,
/// in their normative order). The cache runs `observe` at every step and, when `fires`, `choose`.
///
/// Blocks, each a plain struct:
///   source      attention() -> AttentionNeed; lanes() -> index_t   without a lane, attention is there
///                                                                  only in steps that fire
///               queries() -> AttentionNeed (may be left out)   rows of `view.columns`; with Rows::last
///                                                               the cache keeps older steps' queries
///               inputs() -> Inputs (may be left out)  what else of `view.inputs` it reads, at every step (hidden_norms: in every probe)
///               one_set() -> bool                    the same scores for every head of a layer?
///               by_age() -> bool (may be left out)   nothing but the order of slots
///               rotated_keys() -> bool (may be left out)   reads keys rotated, never raw
///               gives_shares() -> bool (may be left out)   see blocks/traits.hpp
///               observe(ctx, view, lanes) -> Status  updates accumulators, may do nothing
///               touches() -> Touches (may be left out)   see touches.hpp; numbers of a source that says any are copied first
///               counting(shape, rows) -> Counting, observe_counted(ctx, view, lanes) -> Status (may be left out)
///                                                    see counting.hpp: `observe`, and what is left of it
///               observe_turn(ctx, view, lanes) -> Status (may be left out)   the same before a turn
///               probes() -> bool, observe_probe(ctx, view, lanes, Scratch&) -> Status (may be left out)
///                                                    in Phase::probe, with view.columns over the rows
///               score(ctx, view, lanes, RaggedView<float> out, Scratch&) -> Status   `out` has a row per head; of a
///                                                    source with one_set and no lanes perhaps only the first
///               score_lane() -> index_t (may be left out)   `score` copies this lane, so nobody need call it
///   pool        run(ctx, view, const Protected*, RaggedView<float> scores, Scratch&) -> Status
///               in place, over each head's candidates only
///               keeps_shares(), leaves_scores() -> bool (may be left out)   see blocks/traits.hpp
///   protect     of(view, head) -> Protected; most() -> index_t   the most it protects in a head
///               judges_once() -> bool (may be left out)   see blocks/traits.hpp
///   allocate    uses_scores() -> bool
///               run(ctx, view, RaggedView<const float> scores, const Protected*, index_t* budget,
///                   Scratch&) -> Status              total slots per head, protected ones included
///               expects(view, head, Protected) -> index_t (may be left out)   the same from counters alone, for
///                                                    triggers; in the mean over heads where scores decide
///               asks_for_room_alone() -> bool (may be left out)   see touches.hpp; of select blocks too
///               model_share() -> ModelShare (may be left out)   a part of all layers together: budgets then
///                                                    come in view.model_budget, from `Cache::turn`
///   select      run(ctx, view, RaggedView<const float> scores, const Protected*, const KeepSet&,
///                   Scratch&) -> Status              never reads scores while every head is within
///                                                    its budget, and then keeps everything
///               takes_best(), reads_scores() -> bool (may be left out)   see blocks/traits.hpp
///               kept(slots, budget, Protected) -> index_t (may be left out)   see blocks/traits.hpp; a cache elsewhere than on the CPU
///                                                    waits for the lists of blocks that do not say
///   trigger     fires(view) or fires(view, LayerBudget<B>) -> bool   a pure function of counters; in
///                                                    Phase::turn only for methods that make room
///                                                    for what is coming
/// source, pool, allocate and select also have `workspace_bytes(shape, max_total_slots)`.
///
/// `reuse` lets layers take over what the first of them chose (layer_reuse.hpp): only where budgets are found without scores.
///
/// Words may run elsewhere than blocks. Scores, lanes and lists are the words' own: a block makes views of them by
/// `view.ragged` and reads none. What it writes for words or reads from them (ends, budgets, counts) is `scratch.take_steering`:
/// what it reads it waits for (`ctx.wait()`), what it has written it does not write again. An allocate block that uses no scores
/// works in the host's scratch alone.
template <class Source, class Pool, class Protect, class Allocate, class Select, class Trigger>
struct Pipeline {
  Source source;
  Pool pool;
  Protect protect;
  Allocate allocate;
  Select select;
  Trigger trigger;
  Residual residual = Residual::none;
  LayerReuse reuse{};

  constexpr AttentionNeed attention() const { return source.attention(); }
  constexpr AttentionNeed queries() const { return query_need(source); }
  constexpr Inputs inputs() const {
    Inputs r = input_need(source);
    if (attention().rows != AttentionNeed::Rows::none) r = r | Input::attention;
    if (queries().rows != AttentionNeed::Rows::none) r = r | Input::queries;
    return r;
  }
  /// Of a layer: nothing where it takes over what another one chose.
  constexpr Inputs inputs(index_t layer) const { return reuse.follows(layer) ? Inputs{} : inputs(); }
  constexpr AttentionNeed queries(index_t layer) const { return reuse.follows(layer) ? AttentionNeed{} : queries(); }
  constexpr bool probes(index_t layer) const { return probes() && !reuse.follows(layer); }
  /// Whether a probe of a layer reads an input: queries, and hidden_norms, which no other step has.
  constexpr bool asks_with(Input what, index_t layer) const {
    return probes(layer) && (what == Input::queries || (what == Input::hidden_norms && inputs().has(what)));
  }
  constexpr index_t lanes() const { return source.lanes(); }

  /// Whether scores are shares of attention when pools are done, as methods that weigh them need.
  constexpr bool scores_are_shares() const {
    return gives_shares(source) && keeps_shares(pool);
  }

  /// The same method with another block: what wrappers are made of.
  template <class P>
  constexpr Pipeline<Source, P, Protect, Allocate, Select, Trigger> with_pool(P p) const {
    return {source, p, protect, allocate, select, trigger, residual, reuse};
  }
  template <class P>
  constexpr Pipeline<Source, Pool, P, Allocate, Select, Trigger> with_protect(P p) const {
    return {source, pool, p, allocate, select, trigger, residual, reuse};
  }
  template <class A>
  constexpr Pipeline<Source, Pool, Protect, A, Select, Trigger> with_allocate(A a) const {
    return {source, pool, protect, a, select, trigger, residual, reuse};
  }
  template <class S>
  constexpr Pipeline<Source, Pool, Protect, Allocate, S, Trigger> with_select(S s) const {
    return {source, pool, protect, allocate, s, trigger, residual, reuse};
  }
  template <class T>
  constexpr Pipeline<Source, Pool, Protect, Allocate, Select, T> with_trigger(T t) const {
    return {source, pool, protect, allocate, select, t, residual, reuse};
  }

  /// A turn brings no tokens: only sources that say what it means for them look at it.
  template <Backend B>
  Status observe(Context<B>& ctx, const StepView<B>& view, LaneViews lane) const {
    if (reuse.follows(view.layer)) return Status::ok;
    if (view.phase == Phase::turn) return observe_turn(source, ctx, view, lane);
    if (view.counted > 0) return observe_counted(source, ctx, view, lane);
    return source.observe(ctx, view, lane);
  }

  template <Backend B>
  bool fires(const StepView<B>& view) const {
    return trigger_fires(trigger, view, LayerBudget<B>{this, &Pipeline::template budget_of<B>});
  }

  /// Whether `choose` is refused for nothing but too small a workspace.
  constexpr bool asks_for_room_alone() const {
    return leaves_scores(pool) && score_lane(source) >= 0 && evict::asks_for_room_alone(allocate) && evict::asks_for_room_alone(select);
  }

  /// Does a step over tokens that only ask look at them?
  constexpr bool probes() const { return answers_probes(source); }

  /// Does this step read attention? Sources that keep numbers do at every step, others only when the
  /// trigger fires; none where it is counted.
  template <Backend B>
  bool reads_attention(const StepView<B>& view) const {
    return attention().rows != AttentionNeed::Rows::none && view.counted == 0 && view.phase != Phase::turn && view.phase != Phase::probe &&
           !reuse.follows(view.layer) && (lanes() > 0 || fires(view));
  }

  std::size_t workspace_bytes(const CacheShape& shape, index_t slots) const {
    return reuse.workspace_bytes(shape, slots) + Scratch::bytes_for<float>(slots) + Scratch::bytes_for<Protected>(shape.kv_heads) +
           std::max({source.workspace_bytes(shape, slots), pool.workspace_bytes(shape, slots),
                     allocate.workspace_bytes(shape, slots), select.workspace_bytes(shape, slots)});
  }

  /// What each head may not lose.
  template <Backend B>
  void protect_ends(const StepView<B>& view, Protected* shield) const {
    for (index_t h = 0; h < view.heads(); ++h) shield[h] = protect.of(view, h).within(view.slots(h));
  }
  /// Scores and pools. Each block gets its own copy of the scratch: nothing outlives a block.
  template <Backend B>
  Status rank(Context<B>& ctx, const StepView<B>& view, LaneViews lane, const Protected* shield,
              RaggedView<float> scores, const Scratch& scratch) const {
    Scratch s = scratch, p = scratch;
    if (const Status r = source.score(ctx, view, lane, scores, s); r != Status::ok) return r;
    return pool.run(ctx, view, shield, scores, p);
  }

  /// Scores, pools, allocates and selects, or takes over what another layer chose. Heads already within budget keep everything; when all
  /// are, and the budget does not depend on scores, nothing is scored.
  template <Backend B>
  Status choose(Context<B>& ctx, const StepView<B>& view, LaneViews lane, const KeepSet& keep,
                Scratch scratch) const {
    float* numbers = scratch.take<float>(view.total());
    auto* shield = scratch.take_steering<Protected>(view.heads());
    if (numbers == nullptr || shield == nullptr) return Status::workspace_too_small;
    protect_ends(view, shield);
    if (reuse.follows(view.layer)) {
      const Status r = share(ctx, view, view.ragged(numbers), shield, keep, scratch);
      return r == Status::ok ? follow(ctx, view, keep.budget, keep.slots, keep.count) : r;
    }
    RaggedView<float> scores = view.ragged(numbers);
    const index_t same = leaves_scores(pool) ? score_lane(source) : -1;
    if (same >= 0) scores = lane[static_cast<std::size_t>(same)];
    const bool scores_first = allocate.uses_scores();
    if (scores_first && same < 0)
      if (const Status r = rank(ctx, view, lane, shield, scores, scratch); r != Status::ok) return r;
    if (const Status r = share(ctx, view, scores, shield, keep, scratch); r != Status::ok) return r;
    bool over = false;
    for (index_t h = 0; h < view.heads(); ++h) over = over || keep.budget[h] < view.slots(h);
    // One set for heads that are alike is found once, where no head has numbers of its own.
    const bool once = over && !scores_first && source.one_set() && source.lanes() == 0 && leaves_scores(pool) && takes_best(select) &&
                      heads_alike(view, shield, keep.budget);
    if (once) scores.heads = 1;
    if (over && !scores_first && same < 0 && reads_scores(select))
      if (const Status r = rank(ctx, view, lane, shield, scores, scratch); r != Status::ok) return r;
    Scratch s = scratch;
    const index_t nan = once && keep.nan != nullptr ? *keep.nan : 0;  // elsewhere it may be memory that the host cannot read
    const Status done = select.run(ctx, view, scores, shield, keep, s);
    if (once && done == Status::ok) {
      for (index_t h = 1; h < view.heads(); ++h) {
        keep.count[h] = keep.count[0];
        if (keep.ends != nullptr && keep.ends[0].prefix >= 0) keep.ends[h] = keep.ends[0];
        else std::copy_n(keep.slots.row(0), keep.count[0], keep.slots.row(h));
      }
      if (keep.nan != nullptr) *keep.nan = nan + (*keep.nan - nan) * view.heads();
    }
    return done;
  }

 private:
  /// Budgets, of as many slots as there are at most.
  template <Backend B>
  Status share(Context<B>& ctx, const StepView<B>& view, RaggedView<const float> scores, const Protected* shield, const KeepSet& keep,
               const Scratch& scratch) const {
    Scratch s = allocate.uses_scores() ? scratch : scratch.for_host();
    if (const Status r = allocate.run(ctx, view, scores, shield, keep.budget, s); r != Status::ok) return r;
    for (index_t h = 0; h < view.heads(); ++h) keep.budget[h] = std::clamp<index_t>(keep.budget[h], 0, view.slots(h));
    return Status::ok;
  }
  template <Backend B>
  static bool heads_alike(const StepView<B>& view, const Protected* shield, const index_t* budget) {
    bool same = std::same_as<B, Cpu>;  // lists lie where the host can copy them
    for (index_t h = 1; h < view.heads(); ++h)
      same = same && view.slots(h) == view.slots(0) && budget[h] == budget[0] && shield[h].prefix == shield[0].prefix &&
             shield[h].suffix == shield[0].suffix;
    return same;
  }
  template <Backend B>
  static index_t budget_of(const void* self, const StepView<B>& view) {
    const auto& p = *static_cast<const Pipeline*>(self);
    index_t sum = 0;
    for (index_t h = 0; h < view.heads(); ++h)
      sum += expected_slots(p.allocate, view, h, p.protect.of(view, h).within(view.slots(h)));
    return sum;
  }
};

template <class Source, class Pool, class Protect, class Allocate, class Select, class Trigger>
Pipeline(Source, Pool, Protect, Allocate, Select, Trigger)
    -> Pipeline<Source, Pool, Protect, Allocate, Select, Trigger>;
template <class Source, class Pool, class Protect, class Allocate, class Select, class Trigger>
Pipeline(Source, Pool, Protect, Allocate, Select, Trigger, Residual)
    -> Pipeline<Source, Pool, Protect, Allocate, Select, Trigger>;
template <class Source, class Pool, class Protect, class Allocate, class Select, class Trigger>
Pipeline(Source, Pool, Protect, Allocate, Select, Trigger, Residual, LayerReuse)
    -> Pipeline<Source, Pool, Protect, Allocate, Select, Trigger>;

}  // namespace kvcondense::evict
