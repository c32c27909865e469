#pragma once

#include <string_view>

#include <kvcondense/any/recipe_text.hpp>
#include <kvcondense/core/shape.hpp>

namespace kvcondense::any::detail {

/// A recipe's text with all that it was read with.
struct Written {
  std::string_view text;
  const ModelFacts& model;
  const Registry& words;
};

/// What the library says of stages and a shape; `ok` when they fit.
using Fits = Status (*)(const CacheShape&, const AnyRecipe&);

/// Of a recipe that does not fit: adds the stage and the first field that would let it fit if it
/// had its default, "word: invalid_argument; field=value does not fit its other fields (...)", or
/// the first stage that would with its defaults,
/// "... its fields (...) do not fit together". Nothing where neither does.
bool name_misfit(const Written& recipe, const CacheShape& shape, Fits fits, Message& why);

/// Adds " (field=value, ...)" of the stage, nothing where it has no field or the text cannot be
/// read with these words.
void add_fields(const Written& recipe, std::string_view word, Message& why);

}  // namespace kvcondense::any::detail
