#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include <engine/decoder.hpp>
#include <eval/jobs.hpp>

namespace eval {

/// How a text is fed to a model: a prefill, then token by token, so that recipes act as in real
/// use.
struct Feeding {
  index_t prefill = 0;   ///< tokens before the first single one
  index_t chunk = 1024;  ///< most tokens of one prefill pass
  index_t last = 0;      ///< of the prefill, that are no prompt but a question behind it

  index_t prompt() const { return last < prefill ? prefill - last : prefill; }
  kvcondense::Phase phase(index_t end) const {
    return end < prompt() ? kvcondense::Phase::prefill_chunk : end == prompt() ? kvcondense::Phase::prefill_end : kvcondense::Phase::decode;
  }
  /// Where the passes of a prefill end: equal ones, as engine::Decoder::prefill makes them, then those of the question.
  std::vector<index_t> ends() const {
    std::vector<index_t> all;
    const auto cut = [&](index_t first, index_t count) {
      const index_t pieces = (count + chunk - 1) / chunk;
      for (index_t i = 1; i <= pieces; ++i) all.push_back(first + count * i / pieces);
    };
    cut(0, prompt()), cut(prompt(), prefill - prompt());
    return all;
  }
};

/// Sees the logits after token `at` was fed, for the tokens that were fed singly.
using EachPrediction = std::function<void(index_t at, std::span<const float> logits)>;

/// Sees the decoder when the prompt is over.
using AfterPrefill = std::function<void(engine::Decoder&)>;

/// Feeds all of `tokens` at positions 0, 1, ... to a model with an empty cache behind `attention`;
/// `options` are those of that cache. Throws Error when a call is refused.
void run_text(const engine::Model& model, engine::DecoderOptions options,
              const engine::Attention& attention,
              std::span<const std::int32_t> tokens, const Feeding& feeding,
              const AfterPrefill& after_prefill, const EachPrediction& each, const Tick& tick);

}  // namespace eval
