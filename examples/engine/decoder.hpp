#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <utility>
#include <vector>

#include <engine/model.hpp>
#include <engine/rope.hpp>
#include <kvcondense/core/step_view.hpp>
#include <kvcondense/core/view.hpp>

namespace engine {

using kvcondense::Phase;
using kvcondense::TensorView;

/// What one layer hands to its cache for one chunk of tokens. Views into the decoder's own buffers,
/// valid during the call; the channels of a head are contiguous.
struct LayerChunk {
  index_t layer = 0;
  TensorView<const float, 3> q;        ///< [q_heads, tokens, head_dim]
  TensorView<const float, 3> k;        ///< [kv_heads, tokens, head_dim]
  TensorView<const float, 3> v;        ///< [kv_heads, tokens, head_dim]
  std::span<const index_t> positions;  ///< [tokens]
  Phase phase = Phase::automatic;      ///< where the chunk stands in its request
  TensorView<const float, 3> raw_q{};  ///< q and k before RoPE, when options ask for them
  TensorView<const float, 3> raw_k{};
  std::span<const kvcondense::TokenClass> classes{};  ///< of the tokens, when options ask for them and they are known
};

/// Stores k and v of the chunk, then writes causal attention of q over all that is stored to `out`
/// [q_heads, tokens, head_dim]. The decoder knows nothing else about a cache, so anything that
/// wants to see q, k and v (a dump, a measurement) wraps one of these.
using Attention = std::function<Status(const LayerChunk& chunk, TensorView<float, 3> out)>;

/// Which tokens of a chunk get logits.
enum class Logits { all, last };

struct DecoderOptions {
  bool rotate = true;     ///< false hands q and k over before RoPE, for caches that store raw keys
  bool keep_raw = false;  ///< q and k before RoPE are handed over too
  bool classes = false;   ///< what the tokenizer knows of tokens is handed over too
  /// Which rows of a pass go on behind the attention of a layer, ascending; empty: all. The others are dropped, and
  /// attention need not have been written for them.
  std::function<std::span<const index_t>(index_t layer)> go_on{};
  /// Sees a pass when it is over: its tokens and the logits after each of them. May stop the decoder.
  std::function<Status(std::span<const std::int32_t> tokens, std::span<const float> logits)> after_pass{};
  index_t chunk =
      256;  ///< tokens per pass of prefill(); the cache sees chunks of at most this size
};

/// Runs a model over chunks of tokens. Holds buffers and the model's address, no cache: one decoder
/// may serve several sequences in turn. No allocation once the largest chunk was seen.
class Decoder {
 public:
  explicit Decoder(const Model& model, DecoderOptions options = {})
      : model_(&model), options_(std::move(options)) {}

  const ModelConfig& config() const { return model_->config; }

  /// One pass over tokens at positions first, first + 1, ... as a single chunk. The logits
  /// [tokens or 1, vocab] stay valid until the next call. An unknown token is `out_of_range`; a
  /// status of `attention` other than ok ends the pass and is returned.
  Expected<std::span<const float>> forward(std::span<const std::int32_t> tokens, index_t first,
                                           const Attention& attention, Logits which = Logits::last,
                                           Phase phase = Phase::automatic);

  /// forward() of tokens at any ascending positions, for attention that knows how to do with that.
  Expected<std::span<const float>> forward_at(std::span<const std::int32_t> tokens, std::span<const index_t> positions,
                                              const Attention& attention, Logits which = Logits::last,
                                              Phase phase = Phase::automatic);

  /// forward() over chunks of about equal size, at most options.chunk: policies that look at the
  /// newest queries of a prefill find them all in the last chunk. With `each`, all logits are
  /// computed and `each(index of the chunk's first token, logits)` sees them; the last token's are
  /// returned.
  using EachChunk = std::function<void(index_t at, std::span<const float> logits)>;
  Expected<std::span<const float>> prefill(std::span<const std::int32_t> tokens, index_t first,
                                           const Attention& attention,
                                           const EachChunk& each = nullptr);

 private:
  Status layer(index_t index, index_t& tokens, Phase phase, const Attention& attention);
  void keep_rows(std::span<const index_t> rows);
  void feed_forward(const LayerWeights& w, index_t tokens);

  const Model* model_;
  DecoderOptions options_;
  RopeTable rope_;
  std::vector<index_t> positions_, consecutive_;
  std::vector<kvcondense::TokenClass> classes_;
  std::vector<float> hidden_, normed_, q_, k_, v_, raw_q_, raw_k_, mixed_, gate_, up_, delta_, logits_;
};

}  // namespace engine
