#pragma once

#include <string>

#include <ggml.h>

namespace ggml_engine {

/// Writes a model that the small engine reads (config.json and model.safetensors, Hugging Face's names) as a GGUF file of the
/// llama architecture, its matrices in `type`. No vocabulary: ids go in and come out.
///
/// Hugging Face's rows of q and k are for channels t and t + dim / 2 of a head that turn together; GGUF's llama turns channels 2t
/// and 2t + 1 (GGML_ROPE_TYPE_NORMAL). So these rows change places inside each head: row t becomes row 2t, row t + dim / 2 row 2t + 1.
bool to_gguf(const std::string& directory, const std::string& path, ggml_type type, std::string& why);

}  // namespace ggml_engine
