#pragma once

#include <string>
#include <vector>

#include <eval/bases_file.hpp>
#include <eval/options.hpp>
#include <eval/recording.hpp>

namespace eval {

/// Books of one head, for commvq.
struct HeadBooks {
  std::vector<float> keys, values;  ///< [stages, words, dim]
  double key_lost = 0, value_lost = 0;  ///< of the rows that they are found from, the part of the squares that codes lose
};

/// From the rows of all texts. Throws Error.
HeadBooks head_books(const std::vector<const Recording*>& texts, const Calibration& how, std::uint64_t seed, index_t layer, index_t head);
/// Puts the books of all heads, layer by layer, together; returns a table.
std::string put_books(const std::vector<HeadBooks>& books, const Calibration& how, const CacheShape& shape, MethodBases& to);

/// Maps from layer to layer, for aquakv; returns a table of what they leave and what codes lose. Throws Error.
std::string put_layer_maps(const std::vector<const Recording*>& texts, MethodBases& to);

}  // namespace eval
