#pragma once

#include <algorithm>

#include <kvcondense/core/backend.hpp>
#include <kvcondense/core/policy.hpp>
#include <kvcondense/core/shape.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/core/step_view.hpp>
#include <kvcondense/core/view.hpp>
#include <kvcondense/core/workspace.hpp>
#include <kvcondense/evict/blocks/room.hpp>
#include <kvcondense/evict/blocks/select.hpp>
#include <kvcondense/evict/pipeline.hpp>
#include <kvcondense/evict/policy.hpp>

namespace kvcondense::evict {

/// Allocate: what the best of all slots of all layers leave this layer's heads; the cache has counted.
struct ModelTop {
  ModelShare share{};

  constexpr bool uses_scores() const { return false; }
  constexpr ModelShare model_share() const { return share; }
  std::size_t workspace_bytes(const CacheShape&, index_t) const { return 0; }

  template <Backend B>
  Status run(Context<B>&, const StepView<B>& view, RaggedView<const float>, const Protected*, index_t* budget,
             Scratch&) const {
    if (view.model_budget == nullptr) return Status::order_violation;
    std::copy_n(view.model_budget, view.heads(), budget);
    return Status::ok;
  }
};

}  // namespace kvcondense::evict

namespace kvcondense::budget {

/// Lets all heads of all layers share one pool of slots by their scores, before every turn.
///
/// Idea     a layer that needs little leaves its places to one that needs much.
/// Source   the global threshold of KVzip, arXiv:2505.23416; `strict` is its published code.
/// Needs    scores that are comparable between layers and do not come with a step: those of policies that keep them
///          with their slots, or read them off keys and values. `turn(ctx, incoming)` of the cache, which sees all
///          layers at once.
/// Shapes   scores [kv_heads, slots] of every layer.
/// Cost     scores are made five times per layer and turn, for counting; layers * kv_heads numbers of workspace. No
///          slot is copied.
/// Numbers  floor(keep * all tokens of all heads + 1e-6) slots stay in the whole cache, protected ones included, exactly,
///          by score, then layer, head, slot; those that score +inf stay beyond it. `strict` keeps only what scores
///          more than the last of them. NaN leaves first.
/// Errors   incompatible over a policy whose scores are measured in a step (snapkv, tova), or that scores all heads
///          alike; invalid_argument unless 0 < keep <= 1; order_violation from `step` with Phase::turn.
template <class P>
struct GlobalTop {
  static constexpr Descriptor about{"global_top", Stage::evict, "arXiv:2505.23416"};
  static constexpr Inputs needs = P::needs;

  P policy{};
  double keep = 0.3;
  bool strict = false;

  constexpr auto pipeline() const {
    const auto p = policy.pipeline();
    return evict::Pipeline{p.source,      p.pool, p.protect, evict::ModelTop{{keep, strict}},
                           evict::TopK{}, evict::BeforeTurn{}, p.residual, p.reuse};
  }
  Status validate(const CacheShape& shape) const {
    if (!(keep > 0.0 && keep <= 1.0)) return Status::invalid_argument;
    const auto p = policy.pipeline();
    const bool measured = (p.inputs().has(Input::attention) && p.lanes() == 0) || p.inputs().has(Input::queries) ||
                          p.inputs().has(Input::moments);
    return measured || p.source.one_set() ? Status::incompatible : policy.validate(shape);
  }
};

template <class P, class... Fields>
GlobalTop(P, Fields...) -> GlobalTop<P>;

}  // namespace kvcondense::budget
