// The weights and facts of a GGUF file, everything checked before it is used.

#include <gguf.h>

#include <cmath>
#include <set>

#include <ggml/llama.hpp>

namespace ggml_engine {
namespace {

struct FreeGguf {
  void operator()(gguf_context* p) const { gguf_free(p); }
};

/// Keys and tensors of a file by name; remembers what was taken and what went wrong first.
class Reader {
 public:
  Reader(gguf_context* file, ggml_context* tensors, std::string& why) : file_(file), tensors_(tensors), why_(why) {}

  bool good() const { return good_; }
  void refuse(const std::string& why) {
    if (good_) why_ = why;
    good_ = false;
  }

  std::string text(const std::string& key, const std::string& otherwise = "") {
    const auto id = gguf_find_key(file_, key.c_str());
    if (id < 0) return otherwise;
    if (gguf_get_kv_type(file_, id) == GGUF_TYPE_STRING) return gguf_get_val_str(file_, id);
    refuse(key + " is no text");
    return otherwise;
  }

  /// A number inside [low, high]; a key that is not there is `otherwise`, NaN: must be there.
  double number(const std::string& key, double low, double high, double otherwise = NAN) {
    const auto id = gguf_find_key(file_, key.c_str());
    double x = otherwise;
    if (id >= 0) {
      switch (gguf_get_kv_type(file_, id)) {
        case GGUF_TYPE_UINT32: x = gguf_get_val_u32(file_, id); break;
        case GGUF_TYPE_INT32: x = gguf_get_val_i32(file_, id); break;
        case GGUF_TYPE_UINT64: x = static_cast<double>(gguf_get_val_u64(file_, id)); break;
        case GGUF_TYPE_FLOAT32: x = static_cast<double>(gguf_get_val_f32(file_, id)); break;
        case GGUF_TYPE_FLOAT64: x = gguf_get_val_f64(file_, id); break;
        default: refuse(key + " is not one number"); return low;
      }
    }
    if (x >= low && x <= high) return x;
    refuse(id < 0 ? key + " is missing" : key + " is out of range");
    return low;
  }
  int integer(const std::string& key, int high, double otherwise = NAN) { return static_cast<int>(number(key, 1, high, otherwise)); }
  double given(const std::string& key, double otherwise) { return number(key, 1e-12, 1e12, otherwise); }

  bool has(const std::string& name) const { return gguf_find_tensor(file_, name.c_str()) >= 0; }

  ggml_tensor* matrix(const std::string& name, int in, int out) {
    ggml_tensor* t = take(name, in, out);
    if (t != nullptr && ggml_get_type_traits_cpu(t->type)->vec_dot == nullptr)
      refuse(name + ": ggml's CPU does not multiply " + ggml_type_name(t->type));
    return t;
  }
  ggml_tensor* numbers(const std::string& name, int n) {
    ggml_tensor* t = take(name, n, 1);
    if (t != nullptr && t->type != GGML_TYPE_F32) refuse(name + " is not F32");
    return t;
  }
  void refuse_leftovers() {
    for (std::int64_t i = 0; i < gguf_get_n_tensors(file_); ++i)
      if (const std::string name = gguf_get_tensor_name(file_, i); taken_.count(name) == 0)
        refuse("tensor " + name + " is not part of this architecture");
  }

 private:
  ggml_tensor* take(const std::string& name, int in, int out) {
    taken_.insert(name);
    ggml_tensor* t = ggml_get_tensor(tensors_, name.c_str());
    if (t == nullptr)
      refuse("tensor " + name + " is missing");
    else if (t->ne[0] != in || t->ne[1] != out || t->ne[2] != 1 || t->ne[3] != 1)
      refuse("tensor " + name + " has another shape than " + std::to_string(in) + " x " + std::to_string(out));
    return t;
  }

  gguf_context* file_;
  ggml_context* tensors_;
  std::string& why_;
  std::set<std::string> taken_;
  bool good_ = true;
};

}  // namespace

bool Llama::read(const std::string& path, Facts& f, Weights& w, std::string& why) {
  ggml_context* tensors = nullptr;
  gguf_init_params params{};
  params.ctx = &tensors;
  const std::unique_ptr<gguf_context, FreeGguf> file(gguf_init_from_file(path.c_str(), params));
  w.context.reset(tensors);
  if (file == nullptr || tensors == nullptr) {
    why = "no GGUF file that can be read";
    return false;
  }
  Reader from(file.get(), tensors, why);
  if (from.text("general.architecture") != "llama") from.refuse("the architecture is not llama");
  const std::string scaling = from.text("llama.rope.scaling.type", "none");
  if (scaling != "none" && scaling != "linear") from.refuse("RoPE scaling " + scaling + " is not among none, linear, rope_freqs");
  if (gguf_find_key(file.get(), "llama.rope.scale_linear") >= 0) from.refuse("llama.rope.scale_linear is too old a key; convert the model again");
  constexpr int most = 1 << 24;
  f.layers = from.integer("llama.block_count", 1024);
  f.hidden = from.integer("llama.embedding_length", most);
  f.q_heads = from.integer("llama.attention.head_count", most);
  f.kv_heads = from.integer("llama.attention.head_count_kv", most, f.q_heads);
  if (f.hidden % f.q_heads != 0 && gguf_find_key(file.get(), "llama.attention.key_length") < 0) from.refuse("heads do not divide the width");
  f.dim = from.integer("llama.attention.key_length", 256, f.hidden / f.q_heads);
  f.rotary_dim = from.integer("llama.rope.dimension_count", f.dim, f.dim);
  f.rms_eps = static_cast<float>(from.given("llama.attention.layer_norm_rms_epsilon", NAN));
  f.rope_base = static_cast<float>(from.given("llama.rope.freq_base", 10000));
  if (scaling == "linear") f.rope_scale = static_cast<float>(1.0 / from.given("llama.rope.scaling.factor", NAN));
  const int inner = from.integer("llama.feed_forward_length", most);
  if (from.integer("llama.attention.value_length", 1 << 16, f.dim) != f.dim) from.refuse("values of another size than keys");
  if (f.q_heads % f.kv_heads != 0 || f.rotary_dim % 2 != 0) from.refuse("heads do not divide, or an odd number of channels turns");
  if (!from.good()) return false;

  const ggml_tensor* embeddings = ggml_get_tensor(tensors, "token_embd.weight");
  f.vocab = embeddings != nullptr && embeddings->ne[1] < most ? static_cast<int>(embeddings->ne[1]) : 0;
  w.embeddings = from.matrix("token_embd.weight", f.hidden, f.vocab);
  w.norm = from.numbers("output_norm.weight", f.hidden);
  w.head = from.has("output.weight") ? from.matrix("output.weight", f.hidden, f.vocab) : w.embeddings;
  if (from.has("rope_freqs.weight")) w.rope_factors = from.numbers("rope_freqs.weight", f.rotary_dim / 2);
  const int q = f.q_heads * f.dim, kv = f.kv_heads * f.dim;
  for (int l = 0; l < f.layers && from.good(); ++l) {
    const std::string at = "blk." + std::to_string(l) + ".";
    const auto matrix = [&](const char* name, int in, int out) { return from.matrix(at + name + ".weight", in, out); };
    w.layers.push_back({from.numbers(at + "attn_norm.weight", f.hidden), matrix("attn_q", f.hidden, q), matrix("attn_k", f.hidden, kv),
                        matrix("attn_v", f.hidden, kv), matrix("attn_output", q, f.hidden), from.numbers(at + "ffn_norm.weight", f.hidden),
                        matrix("ffn_gate", f.hidden, inner), matrix("ffn_up", f.hidden, inner), matrix("ffn_down", inner, f.hidden)});
  }
  from.refuse_leftovers();
  return from.good();
}

}  // namespace ggml_engine
