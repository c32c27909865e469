#include <engine/model.hpp>

#include <filesystem>
#include <set>
#include <string_view>

#include <engine/json_text.hpp>
#include <engine/safetensors.hpp>

namespace engine {
namespace {

/// Takes tensors by name and remembers which were taken and what went wrong first.
class Loader {
 public:
  Loader(const SafetensorsFile& file, std::string& why) : file_(file), why_(why) {}

  Status status() const { return status_; }

  std::vector<float> take(const std::string& name, const std::vector<index_t>& shape) {
    if (status_ != Status::ok) return {};
    taken_.insert(name);
    const TensorInfo* info = file_.find(name);
    if (info != nullptr && info->shape != shape) {
      why_ = "tensor \"" + name + "\" is " + shape_text(info->shape) + ", config.json implies " +
             shape_text(shape);
      status_ = Status::shape_mismatch;
      return {};
    }
    auto data = file_.floats(name, why_);
    status_ = data.status();
    return data ? *std::move(data) : std::vector<float>{};
  }

  PackedMatrix matrix(const std::string& name, index_t out, index_t in) {
    const std::vector<float> rows = take(name, {out, in});
    return status_ == Status::ok ? PackedMatrix(rows, out, in) : PackedMatrix();
  }

  void ignore(const std::string& name) { taken_.insert(name); }

  void refuse_leftovers() {
    for (const TensorInfo& t : file_.tensors()) {
      if (status_ != Status::ok || taken_.contains(t.name)) continue;
      why_ = "tensor \"" + printable(t.name) + "\" is not part of this architecture";
      status_ = Status::not_supported;
    }
  }

 private:
  const SafetensorsFile& file_;
  std::string& why_;
  std::set<std::string, std::less<>> taken_;
  Status status_ = Status::ok;
};

LayerWeights take_layer(Loader& from, const ModelConfig& c, const std::string& prefix) {
  const index_t q = c.q_heads * c.head_dim, kv = c.kv_heads * c.head_dim;
  LayerWeights w;
  w.attention_norm = from.take(prefix + "input_layernorm.weight", {c.hidden});
  w.q = from.matrix(prefix + "self_attn.q_proj.weight", q, c.hidden);
  w.k = from.matrix(prefix + "self_attn.k_proj.weight", kv, c.hidden);
  w.v = from.matrix(prefix + "self_attn.v_proj.weight", kv, c.hidden);
  w.o = from.matrix(prefix + "self_attn.o_proj.weight", c.hidden, q);
  w.mlp_norm = from.take(prefix + "post_attention_layernorm.weight", {c.hidden});
  w.gate = from.matrix(prefix + "mlp.gate_proj.weight", c.intermediate, c.hidden);
  w.up = from.matrix(prefix + "mlp.up_proj.weight", c.intermediate, c.hidden);
  w.down = from.matrix(prefix + "mlp.down_proj.weight", c.hidden, c.intermediate);
  // Old checkpoints carry the rotary frequencies, which config.json determines.
  from.ignore(prefix + "self_attn.rotary_emb.inv_freq");
  return w;
}

}  // namespace

Expected<Model> make_model(const ModelConfig& config, const SafetensorsFile& file,
                           std::string& why) {
  Loader from(file, why);
  Model m;
  m.config = config;
  m.embeddings = from.take("model.embed_tokens.weight", {config.vocab, config.hidden});
  for (index_t layer = 0; layer < config.layers && from.status() == Status::ok; ++layer)
    m.layers.push_back(take_layer(from, config, "model.layers." + std::to_string(layer) + "."));
  m.norm = from.take("model.norm.weight", {config.hidden});
  if (config.tied_embeddings) {
    from.ignore("lm_head.weight");  // some writers store the tied head as well
    if (from.status() == Status::ok)
      m.head = PackedMatrix(m.embeddings, config.vocab, config.hidden);
  } else {
    m.head = from.matrix("lm_head.weight", config.vocab, config.hidden);
  }
  from.refuse_leftovers();
  if (from.status() != Status::ok) return from.status();
  return m;
}

Expected<Model> load_model(const std::string& directory, std::string& why) {
  const std::filesystem::path dir(directory);
  const auto config = read_config((dir / "config.json").string(), why);
  if (!config) return config.status();
  const std::string weights = (dir / "model.safetensors").string();
  std::error_code error;
  if (!std::filesystem::exists(weights, error) &&
      std::filesystem::exists(dir / "model.safetensors.index.json", error)) {
    why = directory + ": the weights lie in several files; this engine reads one model.safetensors";
    return Status::not_supported;
  }
  const auto file = SafetensorsFile::read(weights, why);
  if (!file) return file.status();
  auto model = make_model(*config, *file, why);
  if (!model) why = weights + ": " + why;
  return model;
}

}  // namespace engine
