#pragma once

#include <eval/heads_file.hpp>
#include <eval/options.hpp>

namespace eval {

/// What was found out about a model's heads, and how.
struct Identified {
  HeadsFile heads;
  nlohmann::ordered_json made;
  std::string text;  ///< the same as a table
};

/// Measures a model's heads and layers as `options` say: echo and induction on random tokens that
/// repeat, gates by DuoAttention's search on recall documents (or the text), shares, and what budgets
/// for layers need. Throws Error.
Identified identify_heads(const Options& options);

}  // namespace eval
