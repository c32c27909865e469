#pragma once

#include <string>
#include <vector>

#include <engine/config.hpp>
#include <engine/matmul.hpp>

namespace engine {

class SafetensorsFile;

/// Weights of one decoder layer.
struct LayerWeights {
  std::vector<float> attention_norm, mlp_norm;  ///< [hidden]
  PackedMatrix q, k, v, o;
  PackedMatrix gate, up, down;
};

/// A loaded model: read once as float32, then only read. Several decoders may share one.
struct Model {
  ModelConfig config;
  std::vector<float> embeddings;  ///< [vocab, hidden]
  std::vector<LayerWeights> layers;
  std::vector<float> norm;  ///< [hidden]
  PackedMatrix head;        ///< the embeddings again when they are tied
};

/// Takes the weights out of a file with Hugging Face's Llama tensor names.
///
/// A missing tensor is `missing_input`, another shape than config.json implies `shape_mismatch`, a
/// tensor this engine would leave unused (a bias, a layer too many) `not_supported`.
Expected<Model> make_model(const ModelConfig& config, const SafetensorsFile& file,
                           std::string& why);

/// Reads DIR/config.json and DIR/model.safetensors.
Expected<Model> load_model(const std::string& directory, std::string& why);

}  // namespace engine
