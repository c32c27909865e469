#pragma once

#include <concepts>
#include <type_traits>
#include <utility>

#include <kvcondense/core/backend.hpp>
#include <kvcondense/core/policy.hpp>
#include <kvcondense/core/shape.hpp>
#include <kvcondense/core/status.hpp>
#include <kvcondense/retrieve/pipeline.hpp>

namespace kvcondense::retrieve {
namespace detail {

template <class P>
concept SaysKeys = requires {
  { P::keys } -> std::convertible_to<KeyState>;
};

template <class P>
concept HasPipeline = requires(const P policy, const CacheShape& shape) {
  { policy.validate(shape) } -> std::same_as<Status>;
  requires std::copyable<decltype(policy.pipeline())>;
};

template <class P, class B>
concept FitPipeline = requires(const P& p, Context<B>& ctx, const ReadView<B>& view, const HeadRows<B>& rows, UnitState& state,
                               const UnitLists& lists, ReadCounts* counts, const Scratch& scratch) {
  p.refresh(rows, index_t{}, state);
  { p.choose(ctx, view, lists, counts, scratch) } -> std::same_as<Status>;
};

}  // namespace detail

/// A value that names the blocks of a retrieval pipeline.
template <class P, class B>
concept RetrievalPolicy = Backend<B> && Described<P> && (P::about.stage == Stage::retrieve) && detail::SaysKeys<P> &&
                          detail::HasPipeline<P> && detail::FitPipeline<decltype(std::declval<const P&>().pipeline()), B>;

/// Same requirements as RetrievalPolicy, one plain sentence per missing piece.
template <class P, Backend B>
consteval bool check_retrieval_policy() {
  static_assert(Described<P>,
                "kvcondense: a retrieval policy needs a member 'static constexpr kvcondense::Descriptor about'.");
  if constexpr (Described<P>)
    static_assert(P::about.stage == Stage::retrieve,
                  "kvcondense: the stage in a retrieval policy's 'about' is Stage::retrieve.");
  static_assert(detail::SaysKeys<P>,
                "kvcondense: a retrieval policy needs a member 'static constexpr kvcondense::retrieve::KeyState keys'.");
  static_assert(detail::HasPipeline<P>,
                "kvcondense: a retrieval policy needs 'pipeline() const' that returns a retrieve::Pipeline, and "
                "'Status validate(const CacheShape&) const'.");
  if constexpr (detail::HasPipeline<P>)
    static_assert(detail::FitPipeline<decltype(std::declval<const P&>().pipeline()), B>,
                  "kvcondense: a block of this retrieval pipeline lacks a function that retrieve/pipeline.hpp lists.");
  return true;
}

}  // namespace kvcondense::retrieve
