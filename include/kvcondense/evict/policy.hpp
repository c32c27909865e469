#pragma once

#include <concepts>
#include <type_traits>
#include <utility>

#include <kvcondense/core/backend.hpp>
#include <kvcondense/core/policy.hpp>
#include <kvcondense/core/shape.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/core/step_view.hpp>
#include <kvcondense/evict/pipeline.hpp>

namespace kvcondense::evict {
namespace detail {

template <class P>
concept SaysNeeds = requires {
  { P::needs } -> std::convertible_to<Inputs>;
};

template <class P>
concept Validates = requires(const P policy, const CacheShape& shape) {
  { policy.validate(shape) } -> std::same_as<Status>;
};

template <class P>
concept HasPipeline = requires(const P policy) {
  policy.pipeline();
  requires std::copyable<decltype(policy.pipeline())>;
  requires std::default_initializable<decltype(policy.pipeline())>;
};

template <class S, class B>
concept SourceBlock = requires(const S source, Context<B>& ctx, const StepView<B>& view,
                               LaneViews lane, RaggedView<float> out, Scratch& scratch) {
  { source.attention() } -> std::same_as<AttentionNeed>;
  { source.lanes() } -> std::same_as<index_t>;
  { source.one_set() } -> std::same_as<bool>;
  { source.observe(ctx, view, lane) } -> std::same_as<Status>;
  { source.score(ctx, view, lane, out, scratch) } -> std::same_as<Status>;
  { source.workspace_bytes(view.shape, index_t{}) } -> std::same_as<std::size_t>;
};

template <class P, class B>
concept PoolBlock = requires(const P pool, Context<B>& ctx, const StepView<B>& view,
                             const Protected* shield, RaggedView<float> scores, Scratch& scratch) {
  { pool.run(ctx, view, shield, scores, scratch) } -> std::same_as<Status>;
  { pool.workspace_bytes(view.shape, index_t{}) } -> std::same_as<std::size_t>;
};

template <class P, class B>
concept ProtectBlock = requires(const P protect, const StepView<B>& view) {
  { protect.of(view, index_t{}) } -> std::same_as<Protected>;
  { protect.most() } -> std::same_as<index_t>;
};

template <class A, class B>
concept AllocateBlock =
    requires(const A allocate, Context<B>& ctx, const StepView<B>& view, const Protected* shield,
             RaggedView<const float> scores, index_t* budget, Scratch& scratch) {
      { allocate.uses_scores() } -> std::same_as<bool>;
      { allocate.run(ctx, view, scores, shield, budget, scratch) } -> std::same_as<Status>;
      { allocate.workspace_bytes(view.shape, index_t{}) } -> std::same_as<std::size_t>;
    };

template <class S, class B>
concept SelectBlock =
    requires(const S select, Context<B>& ctx, const StepView<B>& view, const Protected* shield,
             RaggedView<const float> scores, const KeepSet& keep, Scratch& scratch) {
      { select.run(ctx, view, scores, shield, keep, scratch) } -> std::same_as<Status>;
      { select.workspace_bytes(view.shape, index_t{}) } -> std::same_as<std::size_t>;
    };

template <class T, class B>
concept TriggerBlock = requires(const T trigger, const StepView<B>& view) {
  requires requires { { trigger.fires(view) } -> std::same_as<bool>; } ||
               requires { { trigger.fires(view, LayerBudget<B>{}) } -> std::same_as<bool>; };
};

/// The inputs that a default policy asks for; none where that is only known at run time.
template <class P>
consteval Inputs asks_for() {
  if constexpr (requires { typename std::bool_constant<P{}.pipeline().inputs().empty()>; })
    return P{}.pipeline().inputs();
  else
    return {};
}

template <class P, class B>
concept FitPipeline = requires(const P p) {
  requires SourceBlock<decltype(p.source), B> && PoolBlock<decltype(p.pool), B> &&
               ProtectBlock<decltype(p.protect), B> && AllocateBlock<decltype(p.allocate), B> &&
               SelectBlock<decltype(p.select), B> && TriggerBlock<decltype(p.trigger), B>;
};

}  // namespace detail

/// A value that names the blocks of an eviction pipeline: an eviction method, or a budget over one.
template <class P, class B>
concept EvictionPolicy =
    Backend<B> && Described<P> && (P::about.stage == Stage::evict) && detail::SaysNeeds<P> &&
    detail::Validates<P> && detail::HasPipeline<P> &&
    detail::FitPipeline<decltype(std::declval<const P&>().pipeline()), B> &&
    detail::asks_for<P>().within(P::needs);

/// Same requirements as EvictionPolicy, one plain sentence per missing piece.
template <class P, Backend B>
consteval bool check_eviction_policy() {
  static_assert(Described<P>,
                "kvcondense: an eviction policy needs a member "
                "'static constexpr kvcondense::Descriptor about'.");
  if constexpr (Described<P>)
    static_assert(P::about.stage == Stage::evict,
                  "kvcondense: the stage in an eviction policy's 'about' is Stage::evict.");
  static_assert(detail::SaysNeeds<P>,
                "kvcondense: an eviction policy needs a member "
                "'static constexpr kvcondense::Inputs needs'.");
  static_assert(detail::Validates<P>,
                "kvcondense: an eviction policy needs "
                "'Status validate(const CacheShape&) const'.");
  static_assert(detail::HasPipeline<P>,
                "kvcondense: an eviction policy needs 'pipeline() const' that returns an "
                "evict::Pipeline of default-constructible blocks.");
  if constexpr (detail::HasPipeline<P>) {
    using Blocks = decltype(std::declval<const P&>().pipeline());
    static_assert(detail::SourceBlock<decltype(Blocks::source), B>,
                  "kvcondense: a source block needs attention(), lanes(), one_set(), observe(...), "
                  "score(...) and workspace_bytes(...) as evict/pipeline.hpp lists them.");
    static_assert(detail::PoolBlock<decltype(Blocks::pool), B>,
                  "kvcondense: a pool block needs run(...) and workspace_bytes(...) as "
                  "evict/pipeline.hpp lists them.");
    static_assert(detail::ProtectBlock<decltype(Blocks::protect), B>,
                  "kvcondense: a protect block needs 'Protected of(view, head) const' and most().");
    static_assert(detail::AllocateBlock<decltype(Blocks::allocate), B>,
                  "kvcondense: an allocate block needs uses_scores(), run(...) and "
                  "workspace_bytes(...) as evict/pipeline.hpp lists them.");
    static_assert(detail::SelectBlock<decltype(Blocks::select), B>,
                  "kvcondense: a select block needs run(...) and workspace_bytes(...) as "
                  "evict/pipeline.hpp lists them.");
    static_assert(detail::TriggerBlock<decltype(Blocks::trigger), B>,
                  "kvcondense: a trigger block needs 'bool fires(view) const', or with a LayerBudget behind it.");
  }
  if constexpr (detail::SaysNeeds<P> && detail::HasPipeline<P>)
    static_assert(detail::asks_for<P>().within(P::needs),
                  "kvcondense: this policy's source asks for an input that its 'needs' does not name.");
  return true;
}

}  // namespace kvcondense::evict
