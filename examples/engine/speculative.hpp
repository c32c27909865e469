#pragma once

#include <algorithm>
#include <cstdint>
#include <functional>
#include <span>
#include <utility>
#include <vector>

#include <engine/decoder.hpp>
#include <engine/sampling.hpp>
#include <kvcondense/backend/cpu/context.hpp>
#include <kvcondense/core/shape.hpp>
#include <kvcondense/core/step_inputs.hpp>

// Speculative decoding: a condensed cache drafts, the full one verifies all drafts in one pass, and both take back what was wrong.

namespace engine {

/// One sequence whose tokens stay pending until it is known which of them are right. For recipes whose steps look at no
/// more than attention and queries. Cache: as in CondensedAttention.
template <class Cache>
class TentativeAttention {
 public:
  explicit TentativeAttention(Cache cache) : cache_(std::move(cache)) { queries_.resize(static_cast<std::size_t>(cache_.shape().layers)); }

  Cache& cache() { return cache_; }
  DecoderOptions decoder_options() const { return {.rotate = cache_.capabilities().rotated_input}; }

  /// Appends and attends; no step.
  Status operator()(const LayerChunk& chunk, TensorView<float, 3> out) {
    const index_t heads = chunk.q.extent[0], tokens = chunk.q.extent[1], dim = chunk.q.extent[2];
    if (const Status s = reserve(chunk.layer, tokens); s != Status::ok) return s;
    kvcondense::Context<kvcondense::Cpu> context(scratch_.bytes());
    if (const Status s = cache_.append(context, chunk.layer, chunk.k, chunk.v, chunk.positions, chunk.q); s != Status::ok) return s;
    auto& rows = queries_[static_cast<std::size_t>(chunk.layer)];  // token by token, for the step that will come
    for (index_t t = 0; t < tokens; ++t)
      for (index_t h = 0; h < heads; ++h)
        for (index_t d = 0; d < dim; ++d) rows.push_back(chunk.q(h, t, d));
    return cache_.attend(context, chunk.layer, chunk.q, out);
  }

  /// The first `tokens` pending ones were right, the others were never there; the step that follows sees a decode step of those.
  Status keep(index_t tokens, Phase phase = Phase::decode) {
    if (const Status s = cache_.truncate(cache_.length() - cache_.pending() + tokens); s != Status::ok) return s;
    const index_t heads = cache_.shape().q_heads, dim = cache_.shape().head_dim;
    Status s = Status::ok;
    for (index_t layer = 0; s == Status::ok && tokens > 0 && layer < cache_.shape().layers; ++layer) {
      if (s = reserve(layer, 0); s != Status::ok) return s;
      kvcondense::Context<kvcondense::Cpu> context(scratch_.bytes());
      auto& rows = queries_[static_cast<std::size_t>(layer)];
      const TensorView<const float, 3> q{rows.data(), {heads, tokens, dim}, {dim, heads * dim, 1}};
      kvcondense::StepInputs in{.queries = q};
      if (cache_.wants_mass(layer, phase)) {  // what was measured before counted the rejected ones
        mass_.resize(static_cast<std::size_t>(cache_.total_slots(layer)));
        out_.resize(static_cast<std::size_t>(heads * tokens * cache_.shape().values()));
        in.attention = {cache_.ragged(layer, mass_.data()), cache_.mass_rows(tokens)};
        s = cache_.attend(context, layer, q, kvcondense::dense_view(out_.data(), heads, tokens, cache_.shape().values()),
                          {.mass = cache_.ragged(layer, mass_.data())});
      }
      if (s == Status::ok) s = cache_.step(context, layer, in, phase);
    }
    for (auto& rows : queries_) rows.clear();
    return s;
  }

 private:
  Status reserve(index_t layer, index_t tokens) {
    index_t slots = 0;
    for (index_t h = 0; h < cache_.shape().kv_heads; ++h) slots = std::max(slots, cache_.slots(layer, h));
    return scratch_.reserve(cache_.workspace_bytes((slots + tokens + 255) / 256 * 256, tokens + cache_.pending(layer)));
  }

  Cache cache_;
  kvcondense::Workspace scratch_;
  std::vector<std::vector<float>> queries_;  ///< of each layer's pending tokens
  std::vector<float> mass_, out_;
};

struct Speculated {
  std::vector<std::int32_t> tokens;
  index_t rounds = 0, drafted = 0, accepted = 0;

  double acceptance() const { return drafted == 0 ? 0.0 : static_cast<double>(accepted) / static_cast<double>(drafted); }
};

/// The `count` likeliest tokens behind a prompt, as `full` has it: `draft` guesses `drafts` tokens a round, one pass over
/// `full` looks at all of them.
template <class Cache>
Expected<Speculated> speculate(const Model& model, TentativeAttention<Cache>& draft, TentativeAttention<Cache>& full,
                               std::span<const std::int32_t> prompt, index_t count, index_t drafts) {
  Decoder guessing(model, draft.decoder_options()), checking(model, full.decoder_options());
  const auto prefill = [&](Decoder& decoder, TentativeAttention<Cache>& to) -> Expected<std::int32_t> {
    const auto logits = decoder.forward(prompt, 0, std::ref(to), Logits::last, Phase::prefill_end);
    if (!logits) return logits.status();
    const std::int32_t next = greedy(*logits);
    const Status s = to.keep(static_cast<index_t>(prompt.size()), Phase::prefill_end);
    if (s != Status::ok) return s;
    return next;
  };
  if (const auto first = prefill(guessing, draft); !first) return first.status();
  const auto first = prefill(checking, full);
  if (!first) return first.status();

  Speculated out;
  std::vector<std::int32_t> round{*first};  // the next token, which is right, then guesses
  std::vector<std::int32_t> unseen;         // right tokens that `draft` has not seen
  while (static_cast<index_t>(out.tokens.size()) < count) {
    unseen.push_back(round[0]);
    const auto behind = static_cast<index_t>(unseen.size());
    for (index_t g = 0; g < drafts; ++g) {
      const auto logits = guessing.forward(unseen, draft.cache().next_position(), std::ref(draft), Logits::last, Phase::decode);
      if (!logits) return logits.status();
      round.push_back(greedy(*logits));
      unseen.assign(1, round.back());
    }
    const auto logits = checking.forward(round, full.cache().next_position(), std::ref(full), Logits::all, Phase::decode);
    if (!logits) return logits.status();
    const auto vocab = static_cast<std::size_t>(model.config.vocab);
    std::size_t right = 1;
    std::int32_t next = greedy(logits->subspan(0, vocab));
    for (; right < round.size() && round[right] == next; ++right) next = greedy(logits->subspan(right * vocab, vocab));

    const auto agreed = static_cast<index_t>(right) - 1;
    ++out.rounds, out.drafted += drafts, out.accepted += agreed;
    out.tokens.insert(out.tokens.end(), round.begin(), round.begin() + static_cast<std::ptrdiff_t>(right));
    if (const Status s = full.keep(agreed + 1); s != Status::ok) return s;
    // The last guess was made but not fed: where it is right, `draft` sees it in the next round.
    const bool all = agreed == drafts;
    if (drafts > 0)
      if (const Status s = draft.keep(behind + std::min(agreed, drafts - 1)); s != Status::ok) return s;
    unseen.clear();
    if (all && drafts > 0) unseen.push_back(round.back());
    round.assign(1, next);
  }
  out.tokens.resize(static_cast<std::size_t>(count));
  return out;
}

}  // namespace engine
