#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include <ggml-alloc.h>
#include <ggml-backend.h>
#include <ggml-cpu.h>
#include <ggml.h>

/// A small Llama engine on ggml's CPU backend: weights from a GGUF file, a graph per pass, keys and values in cells as
/// llama.cpp keeps them. It stands for an engine that is there already, and knows nothing of caches other than its own.
namespace ggml_engine {

struct Free {
  void operator()(ggml_context* p) const { ggml_free(p); }
  void operator()(ggml_gallocr* p) const { ggml_gallocr_free(p); }
  void operator()(ggml_backend* p) const { ggml_backend_free(p); }
};
using Context = std::unique_ptr<ggml_context, Free>;

struct Facts {
  int layers = 0, hidden = 0, q_heads = 0, kv_heads = 0, dim = 0, vocab = 0;
  float rms_eps = 1e-5f;
  int rotary_dim = 0;  ///< of a head; channels 2t and 2t + 1 turn together, GGUF's way for Llama
  float rope_base = 10000.0f, rope_scale = 1.0f;
};

/// Where the tokens of a pass stand in their request.
enum class Part { prompt_chunk, prompt_end, generated };

struct Options {
  int cells = 2048;
  ggml_type kv = GGML_TYPE_F16;  ///< F32 or F16
  /// ggml_flash_attn_ext over values [cells, heads, dim]; without it mul_mat, soft_max, mul_mat over values by channels,
  /// [heads, dim, cells].
  bool flash = true;
  int threads = 1;
};

class Llama {
 public:
  /// Null, and a sentence, for a file that is none, another architecture, or weights that ggml's CPU cannot multiply.
  static std::unique_ptr<Llama> load(const std::string& path, Options options, std::string& why);

  /// Runs tokens of a sequence, writes their keys and values to free cells, attends over the sequence's cells. False: no room,
  /// no such token, or what `after_pass` said; the tokens are gone again then.
  bool pass(int id, std::span<const std::int32_t> tokens, Part part);
  /// Of the last pass's last token, or of all its tokens where `all_logits` was set.
  std::span<const float> logits() const { return {static_cast<const float*>(logits_->data), static_cast<std::size_t>(ggml_nelements(logits_))}; }
  bool all_logits = false;

  /// The sequence's first n cells stay its own, the others are free.
  void keep_first(int id, std::size_t n);
  void remove(int id) { keep_first(id, 0), sequences.erase(id); }
  /// Cells up to the last one that is in use: what attention runs over.
  int reach() const;
  int free_cells() const;

  // What adapters look at.
  std::function<bool(int id, int tokens, Part part)> after_pass;
  std::map<int, std::vector<std::int32_t>> sequences;  ///< their cells, by position
  std::vector<std::int32_t> pos;                       ///< of each cell; the next token's is that of the last cell + 1
  ggml_tensor* keys(int layer) const { return keys_[static_cast<std::size_t>(layer)]; }      ///< [cells, kv_heads, dim]
  ggml_tensor* values(int layer) const { return values_[static_cast<std::size_t>(layer)]; }  ///< see Options::flash
  /// As attention had them in the last pass, [tokens, q_heads, dim].
  const float* queries(int layer) const { return static_cast<const float*>(queries_[static_cast<std::size_t>(layer)]->data); }
  /// Radians per position that pair t of a key turns by.
  const std::vector<float>& frequencies() const { return frequencies_; }

  const Facts facts;
  const Options options;

 private:
  struct Layer {
    ggml_tensor *attn_norm, *q, *k, *v, *o, *ffn_norm, *gate, *up, *down;
  };
  struct Weights {
    Context context;
    ggml_tensor *embeddings = nullptr, *norm = nullptr, *head = nullptr, *rope_factors = nullptr;
    std::vector<Layer> layers;
  };
  struct Inputs {
    ggml_tensor *ids, *pos, *cells, *channels, *mask;
  };

  Llama(const Facts& f, Options o, Weights w);
  static bool read(const std::string& path, Facts& facts, Weights& weights, std::string& why);
  bool run(int id, std::span<const std::int32_t> tokens, int first);
  Inputs inputs(int tokens, int reach);
  void fill(const Inputs& in, int id, std::span<const std::int32_t> tokens, int first, int reach) const;
  ggml_tensor* norm(ggml_tensor* x, ggml_tensor* weight) { return ggml_mul(pass_.get(), ggml_rms_norm(pass_.get(), x, facts.rms_eps), weight); }
  ggml_tensor* turned(ggml_tensor* rows, int heads, const Inputs& in);
  ggml_tensor* attention(int layer, ggml_tensor* x, const Inputs& in, ggml_cgraph* graph);

  Weights weights_;
  Context cells_, pass_;
  std::unique_ptr<ggml_backend, Free> cpu_;
  std::unique_ptr<ggml_gallocr, Free> memory_;
  std::vector<ggml_tensor*> keys_, values_, queries_;
  ggml_tensor* logits_ = nullptr;
  std::vector<std::int32_t> owner_;  ///< of each cell, a sequence or -1
  std::vector<float> frequencies_;
};

}  // namespace ggml_engine
