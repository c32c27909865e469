#pragma once

#include <concepts>
#include <tuple>
#include <utility>

#include <kvcondense/cache/reduced.hpp>
#include <kvcondense/core/flush.hpp>
#include <kvcondense/core/row_groups.hpp>
#include <kvcondense/core/policy.hpp>
#include <kvcondense/core/shape.hpp>
#include <kvcondense/core/stage_traits.hpp>
#include <kvcondense/evict/keep_all.hpp>
#include <kvcondense/evict/policy.hpp>
#include <kvcondense/position/absolute.hpp>
#include <kvcondense/prim/page_codec.hpp>
#include <kvcondense/retrieve/read_all.hpp>

namespace kvcondense {

/// The quant stage of a recipe that names none: every slot stays exact.
struct KeepExact {
  static constexpr Descriptor about{"exact", Stage::quant, "none"};
  static constexpr index_t sinks = 0;

  prim::ExactRows key_codec() const { return {}; }
  prim::ExactRows value_codec() const { return {}; }
  Flush key_flush() const { return {0, 0}; }
  Flush value_flush() const { return {0, 0}; }
  Status validate(const CacheShape&) const { return Status::ok; }
};

/// Whether a quant stage tells slots apart by scores: those of a member `saliency()`, the pipeline of an eviction
/// policy, of which only what scores is run.
template <class Quant>
constexpr bool has_saliency(const Quant& q) {
  if constexpr (requires { q.has_saliency(); }) return q.has_saliency();
  else return requires { q.saliency(); };
}
template <class Quant>
constexpr auto saliency_of(const Quant& q) {
  if constexpr (requires { q.saliency(); }) return q.saliency();
  else return evict::KeepAll{}.pipeline();
}
/// What a quant stage looks at besides keys and values.
template <class Quant>
constexpr Inputs quant_needs() {
  if constexpr (requires { Quant::needs; }) return Quant::needs;
  else return {};
}

/// The same of a merge stage.
template <class Merge>
constexpr Inputs merge_needs() {
  if constexpr (requires { Merge::needs; }) return Merge::needs;
  else return {};
}

/// The merge stage of a recipe that names none: slots that leave are gone.
struct NoMerge {
  static constexpr Descriptor about{"none", Stage::merge, "none"};
  Status validate(const CacheShape&) const { return Status::ok; }
};

/// The low-rank stage of a recipe that names none: rows keep all their numbers.
struct NoLowRank {
  static constexpr Descriptor about{"none", Stage::lowrank, "none"};
  static constexpr Inputs needs{};
  Status validate(const CacheShape&) const { return Status::ok; }
};

/// Whether a low-rank stage can live with keys as the position stage stores them: rotated, or raw.
template <class LowRank>
constexpr bool takes_keys(const LowRank& l, bool raw) {
  if constexpr (requires { l.takes_keys(raw); }) return l.takes_keys(raw);
  else return true;
}

/// Which layers and heads a low-rank stage stores together.
template <class LowRank>
constexpr RowGroups row_groups(const LowRank& l, const CacheShape& shape) {
  if constexpr (requires { l.row_groups(shape); }) return l.row_groups(shape);
  else return {};
}

/// How a merge stage folds; of none, the stage itself.
template <class Merge>
constexpr auto merger_of(const Merge& m) {
  if constexpr (requires { m.pipeline(); }) return m.pipeline();
  else return m;
}

/// A value that may stand in a recipe.
template <class S>
concept StageValue = Described<S> && std::copyable<S>;

/// Which stage of each kind a cache runs; made by `recipe(...)`.
template <class Evict, class Quant, class Position, class Merge = NoMerge, class LowRank = NoLowRank,
          class Retrieve = retrieve::ReadAll>
struct Recipe {
  Evict evict{};
  Quant quant{};
  Position position{};
  Merge merge{};
  LowRank lowrank{};
  Retrieve retrieve{};
};

namespace detail {

template <Stage Want, class Default, class... S>
constexpr auto pick(const std::tuple<S...>& stages) {
  if constexpr (sizeof...(S) == 0) {
    return Default{};
  } else {
    return std::apply(
        [](const auto& first, const auto&... rest) {
          if constexpr (std::remove_cvref_t<decltype(first)>::about.stage == Want) return first;
          else return pick<Want, Default>(std::tuple{rest...});
        },
        stages);
  }
}

template <Stage Want, class... S>
inline constexpr int count_stage = ((S::about.stage == Want ? 1 : 0) + ... + 0);

}  // namespace detail

/// Collects the stages of a cache. Order carries no meaning: stages sort themselves.
///
///   recipe(evict::H2O{.heavy = 256, .recent = 256}, quant::Kivi<2>{.group_size = 32})
template <class... S>
constexpr auto recipe(S... stages) {
  constexpr bool stages_only = (StageValue<S> && ... && true);
  static_assert(stages_only,
                "kvcondense::recipe: a stage is a copyable struct with a member 'static constexpr kvcondense::Descriptor about'.");
  if constexpr (stages_only) {
    static_assert(detail::count_stage<Stage::evict, S...> <= 1,
                  "kvcondense::recipe: at most one eviction stage; a budget or another wrapper takes its policy as a field.");
    static_assert(detail::count_stage<Stage::quant, S...> <= 1,
                  "kvcondense::recipe: at most one quantization stage.");
    static_assert(detail::count_stage<Stage::position, S...> <= 1,
                  "kvcondense::recipe: at most one position stage.");
    static_assert(detail::count_stage<Stage::merge, S...> <= 1, "kvcondense::recipe: at most one merge stage.");
    static_assert(detail::count_stage<Stage::lowrank, S...> <= 1, "kvcondense::recipe: at most one low-rank stage.");
    static_assert(detail::count_stage<Stage::retrieve, S...> <= 1,
                  "kvcondense::recipe: at most one retrieval stage.");
    static_assert(((S::about.stage == Stage::evict || S::about.stage == Stage::merge || S::about.stage == Stage::lowrank ||
                    S::about.stage == Stage::quant || S::about.stage == Stage::position || S::about.stage == Stage::retrieve) &&
                   ... && true),
                  "kvcondense::recipe: this stage is not one that a cache runs.");
    const std::tuple all{stages...};
    return Recipe{detail::pick<Stage::evict, evict::KeepAll>(all), detail::pick<Stage::quant, KeepExact>(all),
                  detail::pick<Stage::position, position::Absolute>(all), detail::pick<Stage::merge, NoMerge>(all),
                  detail::pick<Stage::lowrank, NoLowRank>(all), detail::pick<Stage::retrieve, retrieve::ReadAll>(all)};
  }
}

template <class E, class Q, class P, class M = NoMerge, class L = NoLowRank, class T = retrieve::ReadAll>
Recipe(E, Q, P, M = {}, L = {}, T = {}) -> Recipe<E, Q, P, M, L, T>;

/// Whether a retrieval stage can score keys as a position stage stores them.
template <class Retrieve, class Position>
constexpr bool keys_fit(const Retrieve& retrieve, const Position& position) {
  return retrieve.keys != retrieve::KeyState::raw || position.raw_keys;
}
/// The same as far as types tell.
template <class Retrieve, class Position>
constexpr bool keys_can_fit() {
  if constexpr (requires { typename std::bool_constant<Retrieve::keys == retrieve::KeyState::raw && !Position::raw_keys>; })
    return !(Retrieve::keys == retrieve::KeyState::raw && !Position::raw_keys);
  else
    return true;
}
/// What a retrieval stage looks at in steps: its schedule may need queries.
template <class Retrieve>
constexpr Inputs retrieve_needs() {
  if constexpr (requires { typename std::bool_constant<Retrieve{}.pipeline().holds() || Retrieve{}.pipeline().fit_queries()>; })
    return Retrieve{}.pipeline().holds() || Retrieve{}.pipeline().fit_queries() ? Inputs(Input::queries) : Inputs{};
  else
    return Inputs(Input::queries);
}

/// How a recipe stores what leaves the exact window: its quant stage, behind its low-rank stage where it has one.
template <class R>
constexpr auto storage_of(const R& recipe) {
  if constexpr (std::same_as<std::remove_cvref_t<decltype(recipe.lowrank)>, NoLowRank>) return recipe.quant;
  else return cache::Reduced<decltype(R::lowrank), decltype(R::quant)>{recipe.lowrank, recipe.quant};
}

/// What a step of this recipe needs besides the tokens.
template <class R>
inline constexpr Inputs needs = decltype(R::evict)::needs | merge_needs<decltype(R::merge)>() | decltype(R::lowrank)::needs |
                                quant_needs<decltype(R::quant)>() | retrieve_needs<decltype(R::retrieve)>();

/// What the stages of a recipe want of the model.
template <class R>
constexpr StageTraits recipe_traits(const R& r) {
  return traits_of(r.evict) | traits_of(r.merge) | traits_of(r.lowrank) | traits_of(r.quant) | traits_of(r.retrieve);
}

/// The type of a recipe, for members and functions that hold a cache:
/// `Cache<Cpu, RecipeOf<evict::H2O, quant::Kivi<2>>>`.
template <class... S>
using RecipeOf = decltype(recipe(std::declval<S>()...));

}  // namespace kvcondense
