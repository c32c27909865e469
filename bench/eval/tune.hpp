#pragma once

#include <string>

#include <eval/options.hpp>
#include <eval/result.hpp>
#include <eval/tune_search.hpp>
#include <nlohmann/json.hpp>

namespace eval {

/// What a search found.
struct Tuned {
  Results results;  ///< the full cache, then the best
  Search search;    ///< in the same order
  double bytes_per_token = 0, share = 0;  ///< asked for; share in percent of keys and values in 16 bits
  bool by_attention = false;  ///< loss is the error of attention: there was no model
  double recall_weight = 0;
};

/// Searches recipes and knobs that fit into the bytes asked for. Throws Error. The same options find the same, times apart.
Tuned tune(const Options& options);

std::string tuned_text(const Tuned& tuned);
nlohmann::ordered_json tuned_json(const Tuned& tuned);

}  // namespace eval
