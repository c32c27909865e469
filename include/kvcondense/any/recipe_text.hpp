#pragma once

#include <cassert>
#include <cstddef>
#include <string_view>

#include <kvcondense/any/any_recipe.hpp>
#include <kvcondense/any/builtin.hpp>
#include <kvcondense/any/fixed_text.hpp>
#include <kvcondense/any/registry.hpp>

namespace kvcondense::any {

inline constexpr std::size_t most_text = 1024;  ///< bytes of a recipe
inline constexpr int most_nesting = AnyEvict::most_links;

using Message = FixedText<320>;
using RecipeText = FixedText<4096>;

/// A recipe that was read.
struct ParsedRecipe {
  AnyRecipe stages;
  RecipeText
      text;  ///< canonical: reading it again gives the same stages, whatever the model's rope
};

/// Stages, or what is wrong with the text: where (a byte) and one sentence.
class [[nodiscard]] ParseResult {
 public:
  ParseResult(const ParsedRecipe& recipe)
      : recipe_(recipe), ok_(true) {}  // NOLINT(google-explicit-constructor)
  ParseResult(std::size_t position, const Message& message)
      : position_(position), message_(message) {}

  explicit operator bool() const { return ok_; }
  const ParsedRecipe& operator*() const { return assert(ok_), recipe_; }
  const ParsedRecipe* operator->() const { return assert(ok_), &recipe_; }
  std::size_t position() const { return position_; }
  std::string_view message() const { return message_.view(); }

 private:
  ParsedRecipe recipe_{};
  std::size_t position_ = 0;
  Message message_{};
  bool ok_ = false;
};

/// Reads a recipe. No heap, no recursion beyond `most_nesting`.
///
///   recipe := stage ('+' stage)*        "ada(snapkv(window=32, budget=512), floor=0.2) +
///   kivi2(group=32)" stage  := word ['(' [arg (',' arg)*] ')'] arg    := field '=' value | stage
///   a stage is the policy that a wrapper takes value  := integer | real | real '%' | true | false
///   | name
///
/// `model` fills what the text leaves out or cannot say.
ParseResult parse(std::string_view text, const ModelFacts& model = {},
                  const Registry& words = builtin());

/// A value as recipes spell it, and what a field accepts in words ("integer from 0 to 256").
FixedText<64> value_text(const Field& field, FieldValue value);
FixedText<256> accepts_text(const Field& field);

/// The value a field has when nothing is said: read from the default-constructed struct.
FieldValue default_of(const Entry& entry, const Field& field);

}  // namespace kvcondense::any
