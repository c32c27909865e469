#include <ggml/to_gguf.hpp>

#include <gguf.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include <engine/config.hpp>
#include <engine/safetensors.hpp>

namespace ggml_engine {
namespace {

using engine::index_t;

struct FreeGguf {
  void operator()(gguf_context* p) const { gguf_free(p); }
};

/// See to_gguf(): rows of length `width`, head after head, of each of which the first `turns` turn.
std::vector<float> interleaved(const std::vector<float>& rows, index_t dim, index_t turns, index_t width) {
  std::vector<float> out = rows;
  for (index_t h = 0; h * dim * width < static_cast<index_t>(rows.size()); ++h)
    for (index_t t = 0; t < turns; ++t) {
      const index_t from = h * dim + t, to = h * dim + (t < turns / 2 ? 2 * t : 2 * (t - turns / 2) + 1);
      std::copy_n(rows.begin() + from * width, width, out.begin() + to * width);
    }
  return out;
}

class Writer {
 public:
  Writer(const engine::SafetensorsFile& from, gguf_context* to, ggml_type type, std::string& why) : from_(from), to_(to), type_(type), why_(why) {}

  bool good() const { return good_; }

  /// Matrices in the file's type, norms as they are. `turns`: how many channels of a head turn, 0: none.
  void add(const std::string& name, const std::string& as, index_t dim = 0, index_t turns = 0) {
    if (!good_) return;
    auto data = from_.floats(name, why_);
    const engine::TensorInfo* info = from_.find(name);
    good_ = data && !info->shape.empty() && info->shape.size() <= 2;
    if (!good_) return;
    const index_t width = info->shape.back(), rows = info->size() / width;
    const ggml_type type = info->shape.size() == 2 ? type_ : GGML_TYPE_F32;
    if (width % ggml_blck_size(type) != 0) {
      why_ = name + ": rows of " + std::to_string(width) + " numbers are no whole blocks of " + ggml_type_name(type);
      good_ = false;
      return;
    }
    if (turns > 0) *data = interleaved(*data, dim, turns, width);
    std::vector<std::byte>& bytes = kept_.emplace_back(ggml_row_size(type, width) * static_cast<std::size_t>(rows));
    ggml_quantize_chunk(type, data->data(), bytes.data(), 0, rows, width, nullptr);
    ggml_init_params params{};
    params.mem_size = ggml_tensor_overhead() + 64, params.no_alloc = true;
    ggml_context* one = ggml_init(params);
    ggml_tensor* t = info->shape.size() == 2 ? ggml_new_tensor_2d(one, type, width, rows) : ggml_new_tensor_1d(one, type, width);
    ggml_set_name(t, as.c_str());
    t->data = bytes.data();
    gguf_add_tensor(to_, t);  // a copy of what describes it; the bytes stay here
    ggml_free(one);
  }

 private:
  const engine::SafetensorsFile& from_;
  gguf_context* to_;
  ggml_type type_;
  std::string& why_;
  std::vector<std::vector<std::byte>> kept_;
  bool good_ = true;
};

}  // namespace

bool to_gguf(const std::string& directory, const std::string& path, ggml_type type, std::string& why) {
  const auto config = engine::read_config(directory + "/config.json", why);
  if (!config) return false;
  const auto weights = engine::SafetensorsFile::read(directory + "/model.safetensors", why);
  if (!weights) return false;
  const engine::ModelConfig& c = *config;
  if (c.rope.scaling != engine::RopeScaling::none) return why = "RoPE scaling is not written", false;

  const std::unique_ptr<gguf_context, FreeGguf> file(gguf_init_empty());
  const auto text = [&](const char* key, const char* value) { gguf_set_val_str(file.get(), key, value); };
  const auto whole = [&](const char* key, index_t value) { gguf_set_val_u32(file.get(), key, static_cast<std::uint32_t>(value)); };
  const auto real = [&](const char* key, double value) { gguf_set_val_f32(file.get(), key, static_cast<float>(value)); };
  text("general.architecture", "llama");
  text("tokenizer.ggml.model", "no_vocab");
  whole("llama.vocab_size", c.vocab);
  whole("llama.context_length", c.max_positions);
  whole("llama.block_count", c.layers);
  whole("llama.embedding_length", c.hidden);
  whole("llama.feed_forward_length", c.intermediate);
  whole("llama.attention.head_count", c.q_heads);
  whole("llama.attention.head_count_kv", c.kv_heads);
  whole("llama.attention.key_length", c.head_dim);
  whole("llama.attention.value_length", c.head_dim);
  whole("llama.rope.dimension_count", c.rope.rotary_dim);
  real("llama.rope.freq_base", c.rope.theta);
  real("llama.attention.layer_norm_rms_epsilon", c.rms_norm_eps);

  Writer w(*weights, file.get(), type, why);
  w.add("model.embed_tokens.weight", "token_embd.weight");
  w.add("model.norm.weight", "output_norm.weight");
  if (!c.tied_embeddings) w.add("lm_head.weight", "output.weight");
  for (index_t l = 0; l < c.layers; ++l) {
    const std::string from = "model.layers." + std::to_string(l) + ".", to = "blk." + std::to_string(l) + ".";
    w.add(from + "input_layernorm.weight", to + "attn_norm.weight");
    w.add(from + "self_attn.q_proj.weight", to + "attn_q.weight", c.head_dim, c.rope.rotary_dim);
    w.add(from + "self_attn.k_proj.weight", to + "attn_k.weight", c.head_dim, c.rope.rotary_dim);
    w.add(from + "self_attn.v_proj.weight", to + "attn_v.weight");
    w.add(from + "self_attn.o_proj.weight", to + "attn_output.weight");
    w.add(from + "post_attention_layernorm.weight", to + "ffn_norm.weight");
    w.add(from + "mlp.gate_proj.weight", to + "ffn_gate.weight");
    w.add(from + "mlp.up_proj.weight", to + "ffn_up.weight");
    w.add(from + "mlp.down_proj.weight", to + "ffn_down.weight");
  }
  if (!w.good()) return false;
  if (gguf_write_to_file(file.get(), path.c_str(), false)) return true;
  why = path + ": cannot be written";
  return false;
}

}  // namespace ggml_engine
