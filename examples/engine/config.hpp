#pragma once

#include <string>
#include <string_view>

#include <kvcondense/core/config.hpp>
#include <kvcondense/core/expected.hpp>

namespace engine {

using kvcondense::Expected;
using kvcondense::index_t;
using kvcondense::Status;

/// How rotary frequencies are stretched beyond the length a model was trained on.
enum class RopeScaling { none, linear, dynamic, llama3, yarn };

/// The rotary embedding of a model, half-split pairs, as config.json describes it.
struct RopeConfig {
  double theta = 10000;
  index_t rotary_dim = 0;  ///< the first so many channels of a head rotate; even
  RopeScaling scaling = RopeScaling::none;
  double factor = 1;
  index_t original_length = 0;  ///< tokens the model was trained on
  double low_freq_factor = 1;   ///< llama3
  double high_freq_factor = 4;  ///< llama3
  double beta_fast = 32;        ///< yarn
  double beta_slow = 1;         ///< yarn
  double attention_factor = 1;  ///< yarn: cosine and sine are multiplied by it
};

/// A Llama-architecture decoder, as config.json describes it.
struct ModelConfig {
  index_t hidden = 0;
  index_t layers = 0;
  index_t q_heads = 0;
  index_t kv_heads = 0;
  index_t head_dim = 0;
  index_t intermediate = 0;
  index_t vocab = 0;
  index_t max_positions = 2048;
  double rms_norm_eps = 1e-6;
  bool tied_embeddings = false;
  RopeConfig rope;
};

/// Reads the text of a Hugging Face config.json.
///
/// `corrupt_data`: no JSON, a field of the wrong type, a number outside its range, heads that do
/// not divide. `not_supported`: a valid file of something this engine would compute wrongly
/// (another architecture, biases, sliding windows, quantized weights). `why` names the field.
Expected<ModelConfig> parse_config(std::string_view text, std::string& why);

/// parse_config on a file.
Expected<ModelConfig> read_config(const std::string& path, std::string& why);

}  // namespace engine
