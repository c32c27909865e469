#pragma once

#include <string>
#include <vector>

#include <eval/ask.hpp>
#include <eval/metrics.hpp>
#include <kvcondense/cache/report.hpp>

namespace eval {

/// How fast one recipe fed single tokens, beside the full cache in the same rounds.
struct Speed {
  double tokens_per_second = 0;  ///< middle of the rounds; 0: not measured
  double of_full = 0;            ///< middle of the rounds' ratios
  double spread = 0;             ///< (third quartile - first) / middle of the ratios
};

/// All that was measured about one recipe.
struct RecipeResult {
  std::string recipe;     ///< as given
  std::string canonical;  ///< as the library reads it
  bool drops_tokens = false;
  bool codes_numbers = false;
  kvcondense::Report report;                ///< of the cache at the end of the first window
  std::vector<std::vector<index_t>> slots;  ///< at the same moment, per layer and KV head
  std::vector<double> layer_error;          ///< relative error of attention, per layer
  ReadSums reads;                        ///< of a recipe that reads a part
  TextSums text;
  RecallSums recall;
  Speed speed;

  double bytes_per_token() const {
    return report.tokens == 0
               ? 0
               : static_cast<double>(report.bytes()) / static_cast<double>(report.tokens);
  }
  double mean_error() const {
    double sum = 0;
    for (const double e : layer_error) sum += e;
    return layer_error.empty() ? 0 : sum / static_cast<double>(layer_error.size());
  }
};

/// What was run: printed above the table, repeated in the JSON.
struct Setting {
  std::string command;
  std::string source;       ///< model directory or dump
  std::string text;         ///< file of the text; empty with a dump
  std::string recall;       ///< file of the recall documents; empty when none is used
  std::string heads;        ///< file of head tables; empty when none is used
  bool byte_tokens = true;  ///< a token is a byte
  index_t layers = 0, q_heads = 0, kv_heads = 0, head_dim = 0, page_slots = 0;
  index_t max_positions = 0;  ///< that the model was made for; 0: not known
  index_t context = 0, prefill = 0, chunk = 0, last_pass = 0, windows = 0, documents = 0, rounds = 0;
  std::uint64_t seed = 0;
  Ask ask = Ask::stream;
  index_t question = 0;
  std::vector<std::string> left_out;  ///< of the recipes run by default, those this cache refuses

  bool has_text() const { return !text.empty(); }
};

struct Results {
  Setting setting;
  std::vector<RecipeResult> recipes;  ///< the full cache first
  double seconds = 0;
};

}  // namespace eval
