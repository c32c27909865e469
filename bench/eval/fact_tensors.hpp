#pragma once

#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include <kvcondense/any/model_facts.hpp>
#include <kvcondense/core/model_arrays.hpp>
#include <kvcondense/core/shape.hpp>

namespace eval {

using kvcondense::CacheShape;
using kvcondense::index_t;

/// Numbers that recipes take as a fact of the model: one tensor of a file.
struct FactArray {
  std::string name;  ///< "key.books", ...
  std::vector<index_t> extent;
  std::vector<float> numbers;

  /// Where the numbers of each layer begin, or of whatever else the first extent counts.
  std::vector<const float*> block_addresses() const;
};

/// A tensor that files of bases may hold, and the fact that it is.
struct FactTensor {
  using Facts = kvcondense::any::ModelFacts;

  const char* name;    ///< in a file
  const char* fact;    ///< its member's name in ModelFacts
  const char* method;  ///< of `calibrate`, that makes it; null: somebody trained it
  std::vector<const char*> axes;  ///< "layers", "kv_heads", "head_dim", "value_dim" and "projections" (a token's query, key and value) are the model's, others are free
  std::variant<kvcondense::HeadRows Facts::*, kvcondense::LayerMatrices Facts::*, kvcondense::HashPlanes Facts::*> member;

  bool fits(const std::vector<index_t>& extent, const CacheShape& shape) const;
  /// "[4, 2, codes, 64]", for complaints.
  std::string expected(const CacheShape& shape) const;
  /// Hands `array` over. `facts` borrows it, and `blocks`, its `block_addresses`.
  void give(const FactArray& array, const std::vector<const float*>& blocks, Facts& facts) const;
};

/// Null: no fact has this tensor.
const FactTensor* find_tensor(std::string_view name);
/// Null: no tensor is this member of ModelFacts.
const FactTensor* tensor_of(std::string_view fact);

}  // namespace eval
