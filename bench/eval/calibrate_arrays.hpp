#pragma once

#include <string>
#include <vector>

#include <eval/bases_file.hpp>
#include <eval/options.hpp>
#include <eval/recording.hpp>

namespace eval {

/// Texts as a fit sees them: queries and keys in the form that its method wants.
using Texts = std::vector<const Recording*>;

/// The head that arrays are found for.
struct HeadOfTexts {
  const Texts& texts;
  index_t layer = 0, head = 0;

  const CacheShape& shape() const { return texts[0]->shape; }
  /// Rows of all texts, [tokens, dim].
  std::vector<float> keys() const;
  std::vector<float> values() const;
  /// Of all query heads of this KV head, [group * tokens, head_dim].
  std::vector<float> queries() const;
};

/// What is found of one head.
struct HeadArrays {
  std::vector<FactArray> arrays;  ///< without layers and heads in front
  std::vector<std::string> said;  ///< for each column of the table
};

/// How many tokens must be there, and for what.
struct TokensNeeded {
  index_t tokens = 0;
  std::string what;
};

/// A method that wants arrays, found head by head.
struct HeadFit {
  const char* method;
  bool raw;              ///< published with keys before rotation
  const char* only;      ///< why not otherwise; null: both will do
  std::vector<std::string> columns;  ///< of the table, behind layer and head
  TokensNeeded (*needs)(const Calibration& how, const CacheShape& shape);
  HeadArrays (*find)(const HeadOfTexts& of, const Calibration& how, std::uint64_t seed);
};

/// Null: the method is none of these.
const HeadFit* find_head_fit(const std::string& method);
/// Puts the arrays of all heads, layer by layer, together; returns a table.
std::string put_arrays(const HeadFit& fit, const std::vector<HeadArrays>& heads, const CacheShape& shape, MethodBases& to);

}  // namespace eval
