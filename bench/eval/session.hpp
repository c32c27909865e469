#pragma once

#include <string>
#include <string_view>

#include <engine/condensed_attention.hpp>
#include <kvcondense/any/any_cache.hpp>

namespace eval {

using kvcondense::CacheShape;
using kvcondense::index_t;
using kvcondense::TensorView;
namespace any = kvcondense::any;

/// A recipe that was read and that a cache accepts.
struct RecipeSpec {
  std::string given;  ///< as the user wrote it
  any::ParsedRecipe parsed;
  kvcondense::Capabilities capabilities;
};

/// Reads a recipe and tries it on an empty cache. Throws Error with the byte at fault.
RecipeSpec read_recipe(std::string_view text, const CacheShape& shape,
                       const kvcondense::any::ModelFacts& facts);

/// Whether a recipe's steps look at queries and keys before rotation.
inline bool sees_raw(const kvcondense::Capabilities& c) {
  return c.needs.has(kvcondense::Input::projections) || c.needs.has(kvcondense::Input::moments);
}

/// One sequence in a condensed cache.
using Session = engine::CondensedAttention<any::AnyCache>;

/// An empty one.
Session make_session(const RecipeSpec& recipe, const CacheShape& shape);

}  // namespace eval
