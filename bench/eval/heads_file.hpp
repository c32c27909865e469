#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

#include <kvcondense/any/model_facts.hpp>
#include <kvcondense/core/shape.hpp>

namespace eval {

using kvcondense::CacheShape;
using kvcondense::index_t;

/// A row of numbers for every head, all of one length.
struct HeadLists {
  std::vector<float> numbers;  ///< [layers, kv_heads, length]
};

/// What was measured of a model's heads and layers, row by row; a table that was not is empty.
struct HeadsFile {
  index_t layers = 0;
  index_t kv_heads = 0;
  std::vector<float> gates, induction, echo, shares;  ///< [layers, kv_heads]
  std::vector<float> evicted, variance;               ///< [layers]
  std::vector<float> key_widths, value_widths;        ///< [layers, kv_heads]
  HeadLists key_clusters, value_clusters, key_lower, key_upper, key_levels, value_levels;

  /// `facts` with the tables that are there. They borrow this object.
  kvcondense::any::ModelFacts add_to(kvcondense::any::ModelFacts facts) const;
};

/// Whether a fact of the model may stand in such a file.
bool is_head_table(std::string_view fact);

/// Reads such a file. Throws Error with the table and the place in it at fault.
HeadsFile parse_heads(std::string_view text, const std::string& name);
/// The same, and refuses a file of a model of another shape.
HeadsFile read_heads(const std::string& path, const CacheShape& shape);

/// A file that parse_heads reads; `made` says how the tables came to be.
std::string heads_text(const HeadsFile& heads, const nlohmann::ordered_json& made);

}  // namespace eval
