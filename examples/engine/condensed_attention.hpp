#pragma once

#include <algorithm>
#include <functional>
#include <utility>

#include <engine/decoder.hpp>
#include <engine/step_statistics.hpp>
#include <kvcondense/backend/cpu/context.hpp>
#include <kvcondense/cache/engine_facts.hpp>
#include <kvcondense/cache/recipe.hpp>
#include <kvcondense/core/shape.hpp>

namespace kvcondense {
template <Backend B, class R>
class Cache;
}

// Everything this engine knows about kvcondense's caches: what an integrator has to write.

namespace engine {

/// The shape a model asks of its cache.
inline kvcondense::CacheShape cache_shape(const ModelConfig& m) {
  return {.layers = m.layers, .q_heads = m.q_heads, .kv_heads = m.kv_heads, .head_dim = m.head_dim};
}

/// What this engine can give to steps; a recipe that needs more is refused by its cache, by name.
inline constexpr kvcondense::Inputs given_inputs =
    kvcondense::Input::attention | kvcondense::Input::queries | kvcondense::Input::projections |
    kvcondense::Input::moments | kvcondense::Input::surprise | kvcondense::Input::classes |
    kvcondense::Input::hidden_norms;

/// What this engine is like, for `admit`.
inline constexpr kvcondense::EngineFacts engine_facts{.gives = given_inputs, .probes = true, .output_weights = true};

/// What the recipe of a type of cache looks at; of AnyCache nothing is known here, and its recipe is admitted.
template <class Cache>
inline constexpr kvcondense::Inputs looked_at{};
template <kvcondense::Backend B, class R>
inline constexpr kvcondense::Inputs looked_at<kvcondense::Cache<B, R>> = kvcondense::needs<R>;

/// One sequence in a condensed cache, as Decoder wants its attention. Cache: kvcondense::Cache of
/// any recipe, or kvcondense::any::AnyCache. Its decoder is made with `decoder_options()`.
template <class Cache>
class CondensedAttention {
  static_assert(looked_at<Cache>.within(given_inputs), "engine: this recipe looks at something that the engine does not give: see given_inputs.");

 public:
  explicit CondensedAttention(Cache cache) : cache_(std::move(cache)) {}
  /// `cache` goes on where the one of `before` stood: its fork, or what its snapshot was loaded into.
  CondensedAttention(Cache cache, const CondensedAttention& before) : cache_(std::move(cache)), statistics_(before.statistics_) {}

  Cache& cache() { return cache_; }
  const Cache& cache() const { return cache_; }
  bool rotated_input() const { return cache_.capabilities().rotated_input; }

  /// The options hold this object's address where its recipe wants to see logits.
  DecoderOptions decoder_options(index_t chunk = DecoderOptions{}.chunk) {
    using kvcondense::Input;
    DecoderOptions o{.rotate = rotated_input(), .chunk = chunk};
    o.keep_raw = needs().has(Input::projections) || needs().has(Input::moments);
    o.classes = needs().has(Input::classes);
    if (needs().has(Input::surprise))
      o.after_pass = [this](auto tokens, auto logits) { return finish(tokens, logits); };
    return o;
  }

  /// Feeds tokens that only ask about the tokens [first, last) of the context, and takes them back.
  Status ask(Decoder& decoder, std::span<const std::int32_t> tokens, index_t first, index_t last) {
    const index_t length = cache_.length();
    asked_first_ = first, asked_last_ = last;
    const Status s = decoder.forward(tokens, cache_.next_position(), std::ref(*this), Logits::last, Phase::probe).status();
    const Status back = cache_.truncate(length);
    return s == Status::ok ? back : s;
  }
  /// Feeds the context once more, in chunks, where the recipe asks how it would be repeated; then a turn, before which some recipes choose.
  Status condense(Decoder& decoder, std::span<const std::int32_t> context, index_t chunk) {
    const auto size = static_cast<index_t>(context.size());
    for (index_t at = 0; cache_.capabilities().probes && at < size; at += chunk) {
      const index_t count = std::min(chunk, size - at);
      const Status s = ask(decoder, context.subspan(static_cast<std::size_t>(at), static_cast<std::size_t>(count)), at, at + count);
      if (s != Status::ok) return s;
    }
    return turn(0);
  }
  /// Before `incoming` tokens of a new turn.
  Status turn(index_t incoming) {
    kvcondense::Context<kvcondense::Cpu> context(scratch_.bytes());
    return cache_.turn(context, incoming);
  }

  Status operator()(const LayerChunk& chunk, TensorView<float, 3> out) {
    const index_t tokens = chunk.k.extent[1];
    index_t slots = 0;
    for (index_t h = 0; h < chunk.k.extent[0]; ++h)
      slots = std::max(slots, cache_.slots(chunk.layer, h));
    // In steps, so that a growing cache does not ask for new scratch at every token.
    const index_t room = (slots + tokens + 255) / 256 * 256;
    if (const Status s = scratch_.reserve(cache_.workspace_bytes(room, tokens)); s != Status::ok)
      return s;
    kvcondense::Context<kvcondense::Cpu> context(scratch_.bytes());
    if (!needs().has(kvcondense::Input::surprise))
      return cache_.forward(context, chunk.layer, chunk.q, chunk.k, chunk.v, out, chunk.positions,
                            chunk.phase, inputs(context, chunk));
    phase_ = chunk.phase;  // how surprising the tokens were is known when the pass is over
    const Status s = cache_.append(context, chunk.layer, chunk.k, chunk.v, chunk.positions, chunk.q);
    return s == Status::ok ? cache_.attend(context, chunk.layer, chunk.q, out) : s;
  }

 private:
  kvcondense::Inputs needs() const { return cache_.capabilities().needs; }

  kvcondense::StepInputs inputs(kvcondense::Context<kvcondense::Cpu>& context, const LayerChunk& chunk) {
    kvcondense::StepInputs in = statistics_.inputs(context, chunk, needs());
    in.probe_first = asked_first_, in.probe_last = asked_last_;
    return in;
  }

  Status finish(std::span<const std::int32_t> tokens, std::span<const float> logits) {
    kvcondense::Context<kvcondense::Cpu> context(scratch_.bytes());
    kvcondense::StepInputs inputs;
    Status s = statistics_.surprise(context, tokens, logits, inputs);
    for (index_t layer = 0; s == Status::ok && layer < cache_.shape().layers; ++layer)
      s = cache_.step(context, layer, inputs, phase_);
    return s;
  }

  Cache cache_;
  kvcondense::Workspace scratch_;
  StepStatistics statistics_;
  Phase phase_ = Phase::automatic;
  index_t asked_first_ = 0, asked_last_ = 0;
};

}  // namespace engine
