#pragma once

#include <string>

#include <eval/bases_file.hpp>

namespace eval {

/// Writes config.json and model.safetensors of the model in `from` into the directory `to`, with paired bases of kv_heads_svd in
/// its weights: it has as many KV heads as the bases have groups, and needs nothing at run time. Tensors keep their precision, bf16 ones
/// become f32. Other files (texts, tokenizer) are not copied. Throws Error.
void fold_checkpoint(const std::string& from, const MethodBases& bases, const std::string& to);

}  // namespace eval
