#pragma once

#include <kvcondense/any/any_evict.hpp>
#include <kvcondense/any/any_lowrank.hpp>
#include <kvcondense/any/any_merge.hpp>
#include <kvcondense/any/any_position.hpp>
#include <kvcondense/any/any_quant.hpp>
#include <kvcondense/any/any_retrieve.hpp>
#include <kvcondense/cache/recipe.hpp>

namespace kvcondense::any {

/// One type for every recipe: the cache is instantiated once, whatever the text names.
///
///   make_cache<Cpu>(shape, AnyRecipe{.evict = AnyEvict(evict::H2O{}), .quant = AnyQuant(quant::Kivi<2>{})})
using AnyRecipe = Recipe<AnyEvict, AnyQuant, AnyPosition, AnyMerge, AnyLowRank, AnyRetrieve>;

/// What the first stage that lacks something lacks.
inline MissingFact missing_fact(const AnyRecipe& recipe) {
  for (const MissingFact m : {recipe.evict.missing(), recipe.quant.missing(), recipe.lowrank.missing(), recipe.retrieve.missing()})
    if (m.fact != nullptr) return m;
  return {};
}

}  // namespace kvcondense::any
