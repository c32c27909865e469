#pragma once

#include <algorithm>
#include <cstdint>
#include <span>

#include <kvcondense/core/backend.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/core/step_view.hpp>
#include <kvcondense/core/view.hpp>
#include <kvcondense/core/workspace.hpp>

namespace kvcondense::evict {

/// Slots of one head that may not leave: the first `prefix` and the last `suffix` in slot order.
struct Protected {
  index_t prefix = 0;
  index_t suffix = 0;
};

/// What survives a step. Row h of `slots` has room for every slot of head h; the first `count[h]`
/// entries are the kept slots, ascending. `budget[h]` is what the allocator asked for.
struct KeepSet {
  RaggedView<std::int32_t> slots;
  index_t* count = nullptr;
  index_t* budget = nullptr;
};

/// Persistent numbers per slot. Lane i of every head is one RaggedView; new slots start at zero.
using LaneViews = std::span<const RaggedView<float>>;

/// One eviction method as a value: which blocks it is made of (the stages of the eviction pipeline,
/// in their normative order). The cache runs `observe` at every step and, when `fires`, `choose`.
///
/// Blocks, each a plain struct:
///   source      attention() -> AttentionNeed; lanes() -> index_t
///               observe(ctx, view, lanes) -> Status            updates accumulators, may do nothing
///               score(ctx, view, lanes, RaggedView<float> out, Scratch&) -> Status
///   pool        run(ctx, view, const Protected*, RaggedView<float> scores, Scratch&) -> Status
///               in place, over each head's candidates only
///   protect     of(view, head) -> Protected
///   allocate    run(ctx, view, RaggedView<const float> scores, const Protected*, index_t* budget, Scratch&)
///               -> Status; total slots per head, protected ones included
///   select      run(ctx, view, RaggedView<const float> scores, const Protected*, const KeepSet&, Scratch&) -> Status
///   trigger     fires(view, allocate-independent counters) -> bool; a pure function of counters
/// source, pool, allocate and select also have `workspace_bytes(shape, max_total_slots)`.
template <class Source, class Pool, class Protect, class Allocate, class Select, class Trigger>
struct Pipeline {
  Source source;
  Pool pool;
  Protect protect;
  Allocate allocate;
  Select select;
  Trigger trigger;

  AttentionNeed attention() const { return source.attention(); }
  index_t lanes() const { return source.lanes(); }

  /// The same method with another budget allocator: what budget wrappers are made of.
  template <class A>
  Pipeline<Source, Pool, Protect, A, Select, Trigger> with_allocate(A a) const {
    return {source, pool, protect, a, select, trigger};
  }

  template <Backend B>
  Status observe(Context<B>& ctx, const StepView<B>& view, LaneViews lane) const {
    return source.observe(ctx, view, lane);
  }

  template <Backend B>
  bool fires(const StepView<B>& view) const {
    return trigger.fires(view);
  }

  std::size_t workspace_bytes(const CacheShape& shape, index_t slots) const {
    return Scratch::bytes_for<float>(slots) + Scratch::bytes_for<Protected>(shape.kv_heads) +
           std::max({source.workspace_bytes(shape, slots), pool.workspace_bytes(shape, slots),
                     allocate.workspace_bytes(shape, slots), select.workspace_bytes(shape, slots)});
  }

  /// Scores, pools, allocates and selects. Heads already within budget keep everything.
  template <Backend B>
  Status choose(Context<B>& ctx, const StepView<B>& view, LaneViews lane, const KeepSet& keep, Scratch scratch) const {
    float* numbers = scratch.take<float>(view.total());
    auto* shield = scratch.take<Protected>(view.heads());
    if (numbers == nullptr || shield == nullptr) return Status::workspace_too_small;
    for (index_t h = 0; h < view.heads(); ++h) {
      Protected p = protect.of(view, h);
      p.prefix = std::clamp<index_t>(p.prefix, 0, view.slots(h));
      p.suffix = std::clamp<index_t>(p.suffix, 0, view.slots(h) - p.prefix);
      shield[h] = p;
    }
    const RaggedView<float> scores{numbers, view.offset, view.heads()};
    // Each block gets its own copy of what is left of the scratch: nothing outlives a block.
    if (Scratch s = scratch; true)
      if (const Status r = source.score(ctx, view, lane, scores, s); r != Status::ok) return r;
    if (Scratch s = scratch; true)
      if (const Status r = pool.run(ctx, view, shield, scores, s); r != Status::ok) return r;
    if (Scratch s = scratch; true)
      if (const Status r = allocate.run(ctx, view, scores, shield, keep.budget, s); r != Status::ok) return r;
    Scratch s = scratch;
    return select.run(ctx, view, scores, shield, keep, s);
  }
};

template <class Source, class Pool, class Protect, class Allocate, class Select, class Trigger>
Pipeline(Source, Pool, Protect, Allocate, Select, Trigger)
    -> Pipeline<Source, Pool, Protect, Allocate, Select, Trigger>;

}  // namespace kvcondense::evict
