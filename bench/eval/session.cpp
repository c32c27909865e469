#include <eval/session.hpp>

#include <engine/json_text.hpp>
#include <eval/error.hpp>
#include <eval/fact_tensors.hpp>
#include <eval/heads_file.hpp>

namespace eval {

namespace {

/// Where the user may get what the recipe lacks.
std::string hint(const any::ParsedRecipe& recipe) {
  const auto [fact, word] = any::missing_fact(recipe.stages);
  if (fact == nullptr) return {};
  const FactTensor* tensor = tensor_of(fact);
  if (tensor != nullptr && tensor->method == nullptr) return std::string("; it is trained: --bases FILE gives its tensor \"") + tensor->name + "\"";
  if (tensor != nullptr || fact == std::string_view("bases"))
    return std::string("; kvcondense-eval calibrate --method ") + (tensor != nullptr ? tensor->method : word) +
           " makes them, --bases FILE gives them";
  return is_head_table(fact) ? "; give --heads FILE" : ", which this evaluation does not have here";
}

any::AnyCache empty_cache(const any::ParsedRecipe& recipe, const CacheShape& shape,
                          std::string_view given) {
  auto made = any::make(recipe, shape, any::on<kvcondense::Cpu>);
  if (!made)
    throw Refused("recipe '" + engine::printable(given) + "': " + std::string(made.message()) +
                hint(recipe));
  return *std::move(made);
}

}  // namespace

RecipeSpec read_recipe(std::string_view text, const CacheShape& shape,
                       const any::ModelFacts& facts) {
  const any::ParseResult parsed = any::parse(text, facts);
  if (!parsed)
    throw Error("recipe '" + engine::printable(text) + "': at byte " +
                std::to_string(parsed.position()) + ": " + std::string(parsed.message()));
  return {std::string(text), *parsed, empty_cache(*parsed, shape, text).capabilities()};
}

Session make_session(const RecipeSpec& recipe, const CacheShape& shape) {
  return Session(empty_cache(recipe.parsed, shape, recipe.given));
}

}  // namespace eval
