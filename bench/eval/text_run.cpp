#include <eval/text_run.hpp>

#include <eval/error.hpp>

namespace eval {

using kvcondense::TensorView;

void run_text(const engine::Model& model, engine::DecoderOptions options,
              const engine::Attention& attention,
              std::span<const std::int32_t> tokens, const Feeding& feeding,
              const AfterPrefill& after_prefill, const EachPrediction& each, const Tick& tick) {
  options.chunk = feeding.chunk;
  engine::Decoder decoder(model, std::move(options));
  const auto first = static_cast<std::size_t>(feeding.prefill);
  const index_t last_layer = model.config.layers - 1;
  const engine::Attention counted = [&](const engine::LayerChunk& chunk, TensorView<float, 3> out) {
    const kvcondense::Status s = attention(chunk, out);
    if (chunk.layer == last_layer) tick(static_cast<double>(chunk.k.extent[1]));
    return s;
  };
  for (std::size_t at = 0; const index_t end : feeding.ends()) {
    const auto next = static_cast<std::size_t>(end);
    require(decoder.forward(tokens.subspan(at, next - at), static_cast<index_t>(at), counted, engine::Logits::last, feeding.phase(end)).status(),
            "the model refused the prefill");
    if (end == feeding.prompt() && after_prefill != nullptr) after_prefill(decoder);
    at = next;
  }
  for (std::size_t at = first; at < tokens.size(); ++at) {
    const auto logits = decoder.forward(tokens.subspan(at, 1), static_cast<index_t>(at), counted,
                                        engine::Logits::last, kvcondense::Phase::decode);
    require(logits.status(), "the model refused a token");
    each(static_cast<index_t>(at), *logits);
  }
}

}  // namespace eval
