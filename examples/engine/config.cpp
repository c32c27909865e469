#include <engine/config.hpp>

#include <cmath>

#include <engine/json_text.hpp>
#include <engine/rope.hpp>
#include <kvcondense/core/shape.hpp>

namespace engine {
namespace {

using nlohmann::json;

constexpr index_t max_length = index_t{1} << 30;

/// Reads fields of one object; keeps the first complaint and ignores what comes after it.
class Fields {
 public:
  Fields(const json& object, std::string& why) : object_(object), why_(why) {}

  Status status() const { return status_; }
  const json* get(const char* name) const {
    const auto at = object_.find(name);
    return at == object_.end() || at->is_null() ? nullptr : &*at;
  }

  /// A count in [1, max]; keeps what `out` held when the file does not say and it need not.
  void count(const char* name, index_t max, index_t& out, bool required = false) {
    const json* v = get(name);
    if (v == nullptr) return required ? refuse(name, "is missing") : void();
    if (!v->is_number_unsigned() || v->get<std::uint64_t>() < 1 ||
        v->get<std::uint64_t>() > static_cast<std::uint64_t>(max))
      return refuse(name, "must be a whole number from 1 to " + std::to_string(max));
    out = v->get<index_t>();
  }

  void number(const char* name, double min, double max, double& out) {
    const json* v = get(name);
    if (v == nullptr) return;
    if (!v->is_number() || !(v->get<double>() >= min && v->get<double>() <= max))
      return refuse(name, "must be a number from " + short_text(min) + " to " + short_text(max));
    out = v->get<double>();
  }

  void flag(const char* name, bool& out) {
    const json* v = get(name);
    if (v == nullptr) return;
    if (!v->is_boolean()) return refuse(name, "must be true or false");
    out = v->get<bool>();
  }

  void text(const char* name, std::string& out) {
    const json* v = get(name);
    if (v == nullptr) return;
    if (!v->is_string()) return refuse(name, "must be text");
    out = v->get<std::string>();
  }

  void refuse(const std::string& name, const std::string& what, Status s = Status::corrupt_data) {
    if (status_ != Status::ok) return;
    status_ = s;
    why_ = name + " " + what;
  }

 private:
  static std::string short_text(double v) { return json(v).dump(); }

  const json& object_;
  std::string& why_;
  Status status_ = Status::ok;
};

/// What this engine computes; everything else is refused rather than computed wrongly.
void check_architecture(Fields& f) {
  const auto refuse = [&](const char* name, const std::string& what) {
    f.refuse(name, what, Status::not_supported);
  };
  const json* list = f.get("architectures");
  if (list == nullptr || !list->is_array() || list->size() != 1 || !(*list)[0].is_string())
    return f.refuse("architectures", "must be a list of one name");
  const auto name = (*list)[0].get<std::string>();
  if (name != "LlamaForCausalLM" && name != "MistralForCausalLM")
    return refuse(
        "architectures",
        "names " + printable(name) + "; this engine runs LlamaForCausalLM and MistralForCausalLM");
  std::string act = "silu";
  f.text("hidden_act", act);
  if (act != "silu") refuse("hidden_act", "is " + printable(act) + "; this engine has silu");
  for (const char* bias : {"attention_bias", "mlp_bias"}) {
    bool on = false;
    f.flag(bias, on);
    if (on) refuse(bias, "is true; this engine has no biases");
  }
  if (f.get("sliding_window") != nullptr)
    refuse("sliding_window", "is set; this engine attends to every token");
  if (f.get("quantization_config") != nullptr)
    refuse("quantization_config", "is set; weights must be F32, F16 or BF16");
}

void read_yarn(Fields& f, RopeConfig& rope) {
  f.number("beta_fast", 1e-3, 1e6, rope.beta_fast);
  f.number("beta_slow", 1e-3, 1e6, rope.beta_slow);
  const auto grown = [&](double by) {
    return rope.factor <= 1 ? 1.0 : 0.1 * by * std::log(rope.factor) + 1.0;
  };
  double mscale = 0, mscale_all_dim = 0;
  f.number("mscale", 0, 100, mscale);
  f.number("mscale_all_dim", 0, 100, mscale_all_dim);
  rope.attention_factor =
      mscale > 0 && mscale_all_dim > 0 ? grown(mscale) / grown(mscale_all_dim) : grown(1);
  f.number("attention_factor", 1e-3, 1e3, rope.attention_factor);
}

/// `rope_scaling`, or `rope_parameters` as later writers call the same object.
void read_scaling(Fields& outer, const json& object, RopeConfig& rope, std::string& why) {
  if (!object.is_object()) return outer.refuse("rope_scaling", "must be an object");
  Fields f(object, why);
  if (f.get("partial_rotary_factor") != nullptr)
    f.refuse("partial_rotary_factor", "must stand outside", Status::not_supported);
  std::string type = "default";
  f.text("type", type);
  f.text("rope_type", type);
  f.number("rope_theta", 1, 1e12, rope.theta);
  f.number("factor", 1, 1e6, rope.factor);
  f.count("original_max_position_embeddings", max_length, rope.original_length);
  if (type == "linear") {
    rope.scaling = RopeScaling::linear;
  } else if (type == "dynamic") {
    rope.scaling = RopeScaling::dynamic;
  } else if (type == "llama3") {
    rope.scaling = RopeScaling::llama3;
    f.number("low_freq_factor", 1e-3, 1e3, rope.low_freq_factor);
    f.number("high_freq_factor", 1e-3, 1e3, rope.high_freq_factor);
  } else if (type == "yarn") {
    rope.scaling = RopeScaling::yarn;
    read_yarn(f, rope);
  } else if (type != "default") {
    f.refuse("rope_type",
             "is " + printable(type) + "; this engine has linear, dynamic, llama3 and yarn",
             Status::not_supported);
  }
  if (rope.scaling != RopeScaling::none && f.get("factor") == nullptr)
    f.refuse("factor", "is missing");
  if (f.status() != Status::ok) outer.refuse("rope_scaling:", std::string(why), f.status());
}

void read_rope(Fields& f, ModelConfig& m, std::string& why) {
  f.number("rope_theta", 1, 1e12, m.rope.theta);
  double part = 1;
  f.number("partial_rotary_factor", 0, 1, part);
  m.rope.rotary_dim = static_cast<index_t>(static_cast<double>(m.head_dim) * part);
  if (m.rope.rotary_dim < 2 || m.rope.rotary_dim % 2 != 0)
    f.refuse("partial_rotary_factor", "must leave an even number of rotary channels");
  m.rope.original_length = m.max_positions;
  for (const char* name : {"rope_scaling", "rope_parameters"})
    if (const json* object = f.get(name); object != nullptr && f.status() == Status::ok)
      read_scaling(f, *object, m.rope, why);
  if (f.status() == Status::ok &&
      kvcondense::prim::validate_rope(library_rope(m.rope, 0), m.head_dim) != Status::ok)
    f.refuse("rope_theta, rope_scaling", "do not make frequencies together");
}

}  // namespace

Expected<ModelConfig> parse_config(std::string_view text, std::string& why) {
  const auto root = parse_json(text, {}, why);
  if (!root) return root.status();
  if (!root->is_object()) return why = "config: no object", Status::corrupt_data;
  Fields f(*root, why);
  check_architecture(f);
  ModelConfig m;
  // Far above any model, and small enough that no product of two of them overflows.
  f.count("hidden_size", 1 << 17, m.hidden, true);
  f.count("num_hidden_layers", 1 << 12, m.layers, true);
  f.count("num_attention_heads", 1 << 12, m.q_heads, true);
  m.kv_heads = m.q_heads;
  f.count("num_key_value_heads", 1 << 12, m.kv_heads);
  f.count("intermediate_size", 1 << 20, m.intermediate, true);
  f.count("vocab_size", 1 << 24, m.vocab, true);
  f.count("max_position_embeddings", max_length, m.max_positions);
  f.number("rms_norm_eps", 0, 1, m.rms_norm_eps);
  f.flag("tie_word_embeddings", m.tied_embeddings);
  if (f.status() == Status::ok) {
    if (m.q_heads % m.kv_heads != 0)
      f.refuse("num_key_value_heads", "must divide num_attention_heads");
    if (f.get("head_dim") == nullptr && m.hidden % m.q_heads != 0)
      f.refuse("num_attention_heads", "must divide hidden_size when head_dim is not given");
    m.head_dim = m.hidden / m.q_heads;
    f.count("head_dim", kvcondense::max_head_dim, m.head_dim);
    if (m.head_dim < 1 || m.head_dim > kvcondense::max_head_dim)
      f.refuse("hidden_size", "makes heads of " + std::to_string(m.head_dim) +
                                  " channels, more than " +
                                  std::to_string(kvcondense::max_head_dim));
  }
  if (f.status() == Status::ok) read_rope(f, m, why);
  if (f.status() == Status::ok) return m;
  why = "config: " + why;
  return f.status();
}

Expected<ModelConfig> read_config(const std::string& path, std::string& why) {
  const auto text = read_file(path, std::size_t{1} << 20, why);
  if (!text) return text.status();
  auto config = parse_config(*text, why);
  if (!config) why = path + ": " + why;
  return config;
}

}  // namespace engine
