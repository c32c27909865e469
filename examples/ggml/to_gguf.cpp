#include <ggml/to_gguf.hpp>

#include <gguf.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include <engine/config.hpp>
#include <engine/rope.hpp>
#include <engine/safetensors.hpp>
#include <kvcondense/prim/rope.hpp>

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
    if (turns > 0) *data = interleaved(*data, dim, turns, info->shape.back());
    put(*data, as, info->shape.back(), info->shape.size() == 2 ? type_ : GGML_TYPE_F32);
  }
  void put(const std::vector<float>& data, const std::string& as, index_t width, ggml_type type) {
    const index_t rows = static_cast<index_t>(data.size()) / width;
    if (width % ggml_blck_size(type) != 0) {
      why_ = as + ": rows of " + std::to_string(width) + " numbers are no whole blocks of " + ggml_type_name(type);
      good_ = false;
      return;
    }
    std::vector<std::byte>& bytes = kept_.emplace_back(ggml_row_size(type, width) * static_cast<std::size_t>(rows));
    ggml_quantize_chunk(type, data.data(), bytes.data(), 0, rows, width, nullptr);
    ggml_init_params params{};
    params.mem_size = ggml_tensor_overhead() + 64, params.no_alloc = true;
    ggml_context* one = ggml_init(params);
    ggml_tensor* t = ggml_new_tensor_2d(one, type, width, rows);
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
  using S = engine::RopeScaling;
  if (c.rope.scaling != S::none && c.rope.scaling != S::linear && c.rope.scaling != S::llama3)
    return why = "RoPE scaling other than linear and llama3 is not written", false;

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

  if (c.rope.scaling == S::linear) text("llama.rope.scaling.type", "linear"), real("llama.rope.scaling.factor", c.rope.factor);

  Writer w(*weights, file.get(), type, why);
  w.add("model.embed_tokens.weight", "token_embd.weight");
  w.add("model.norm.weight", "output_norm.weight");
  if (c.rope.scaling == S::llama3) {
    const auto angles = kvcondense::prim::rope_angles(engine::library_rope(c.rope, c.max_positions), c.rope.rotary_dim);
    if (!angles) return why = "RoPE scaling cannot be", false;
    std::vector<float> factors;  // what ggml divides a pair's angle by
    for (index_t t = 0; t < angles->pairs; ++t)
      factors.push_back(static_cast<float>(std::pow(c.rope.theta, -2.0 * static_cast<double>(t) / static_cast<double>(c.rope.rotary_dim)) /
                                           static_cast<double>(angles->frequency[t])));
    w.put(factors, "rope_freqs.weight", angles->pairs, GGML_TYPE_F32);
  }
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
