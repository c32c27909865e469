#include <numeric>
#include <functional>
#include <string>

#include <engine/dense_attention.hpp>
#include <engine/sampling.hpp>
#include <engine/tokenizer.hpp>

#include "tinylm.hpp"

using namespace engine;
using engine::test::reference;
using engine::test::tinylm;
using engine::test::worst;

namespace {

// The reference ran in double from the same 16-bit weights; float32 stays well inside this.
constexpr double logit_margin = 1e-3;

std::span<const float> row(std::span<const float> logits, std::size_t at) {
  const auto vocab = static_cast<std::size_t>(tinylm().config.vocab);
  return logits.subspan(at * vocab, vocab);
}

}  // namespace

TEST_CASE("decoder: logits equal the independent reference, whatever the chunk size",
          "[engine][decoder]") {
  const index_t chunk = GENERATE(1, 7, 64, 200, 256);
  CAPTURE(chunk);
  const auto prompt = reference()["prompt"].get<std::vector<std::int32_t>>();
  Decoder decoder(tinylm(), {.chunk = chunk});
  DenseAttention cache(tinylm().config);
  std::vector<float> all;
  const auto last =
      decoder.prefill(prompt, 0, std::ref(cache), [&](index_t at, std::span<const float> logits) {
        REQUIRE(static_cast<std::size_t>(at * tinylm().config.vocab) == all.size());
        all.insert(all.end(), logits.begin(), logits.end());
      });
  REQUIRE(last);
  REQUIRE(worst(*last, reference()["last_logits"]) < logit_margin);
  REQUIRE(reference()["logits_at_positions"].size() == 5);
  for (const auto& [at, want] : reference()["logits_at_positions"].items())
    REQUIRE(worst(row(all, std::stoul(at)), want) < logit_margin);
  REQUIRE(cache.length(0) == static_cast<index_t>(prompt.size()));
}

TEST_CASE("decoder: one token at a time gives the same bits as one chunk", "[engine][decoder]") {
  const auto prompt = reference()["prompt"].get<std::vector<std::int32_t>>();
  std::vector<float> logits[2];
  for (const bool whole : {true, false}) {
    Decoder decoder(tinylm(), {.chunk = whole ? 256 : 1});
    DenseAttention cache(tinylm().config);
    const auto last = decoder.prefill(prompt, 0, std::ref(cache));
    REQUIRE(last);
    logits[whole].assign(last->begin(), last->end());
  }
  REQUIRE(logits[0] == logits[1]);
}

TEST_CASE("decoder: the greedy continuation equals the reference byte for byte",
          "[engine][decoder]") {
  const auto prompt = reference()["prompt"].get<std::vector<std::int32_t>>();
  const auto want = reference()["greedy_continuation_48"].get<std::vector<std::int32_t>>();
  Decoder decoder(tinylm());
  DenseAttention cache(tinylm().config);
  const Attention attention = std::ref(cache);
  auto logits = decoder.prefill(prompt, 0, attention);
  std::vector<std::int32_t> got;
  while (logits && got.size() < want.size()) {
    got.push_back(greedy(*logits));
    logits = decoder.forward({&got.back(), 1}, static_cast<index_t>(prompt.size() + got.size()) - 1,
                             attention);
  }
  REQUIRE(logits);
  REQUIRE(tokens_to_bytes(got) == tokens_to_bytes(want));
}

TEST_CASE("decoder: RoPE is relative: a later start gives the same logits", "[engine][decoder]") {
  const auto prompt = reference()["prompt"].get<std::vector<std::int32_t>>();
  Decoder decoder(tinylm());
  DenseAttention cache(tinylm().config);
  const auto last = decoder.prefill(prompt, 1000, std::ref(cache));
  REQUIRE(last);
  REQUIRE(worst(*last, reference()["last_logits"]) < logit_margin);
}

TEST_CASE("decoder: without rotation a cache gets keys that rotate into the usual ones",
          "[engine][decoder]") {
  const auto prompt = reference()["prompt"].get<std::vector<std::int32_t>>();
  const ModelConfig& c = tinylm().config;
  // Only the first layer: later ones see what attention made of it.
  std::vector<float> keys[2];
  for (const bool rotated : {false, true}) {
    Decoder decoder(tinylm(), {.rotate = rotated});
    DenseAttention cache(c);
    const auto done =
        decoder.forward(prompt, 5, [&](const LayerChunk& chunk, TensorView<float, 3> out) {
          if (chunk.layer == 0)
            for (index_t t = 0; t < chunk.k.extent[1]; ++t)
              for (index_t h = 0; h < chunk.k.extent[0]; ++h)
                for (index_t d = 0; d < chunk.k.extent[2]; ++d)
                  keys[rotated].push_back(chunk.k(h, t, d));
          return cache(chunk, out);
        });
    REQUIRE(done);
  }
  REQUIRE(keys[0] != keys[1]);
  RopeTable table;
  const auto tokens = static_cast<index_t>(prompt.size());
  std::vector<index_t> positions(prompt.size());
  std::iota(positions.begin(), positions.end(), 5);
  table.fill(c.rope, positions);
  rotate(c.rope, table, tokens, c.kv_heads, c.head_dim, keys[0].data());
  REQUIRE(keys[0] == keys[1]);
}

TEST_CASE("decoder: only the last chunk of a prompt is announced as its end", "[engine][decoder]") {
  const auto prompt = reference()["prompt"].get<std::vector<std::int32_t>>();
  Decoder decoder(tinylm(), {.chunk = 64});
  std::vector<Phase> phases;
  std::vector<std::size_t> sizes;
  const Attention attention = [&](const LayerChunk& chunk, TensorView<float, 3>) {
    if (chunk.layer != 0) return Status::ok;
    phases.push_back(chunk.phase);
    sizes.push_back(chunk.positions.size());
    return Status::ok;
  };
  REQUIRE(decoder.prefill(prompt, 0, attention));
  REQUIRE(decoder.forward({&prompt[0], 1}, 200, attention));
  REQUIRE(phases == std::vector{Phase::prefill_chunk, Phase::prefill_chunk, Phase::prefill_chunk,
                                Phase::prefill_end, Phase::automatic});
  REQUIRE(sizes == std::vector<std::size_t>{50, 50, 50, 50, 1});
}

TEST_CASE("decoder: what kind of thing tokens are is handed over to those who ask", "[engine][decoder]") {
  using kvcondense::TokenClass;
  std::vector<std::vector<TokenClass>> seen;
  const Attention attention = [&](const LayerChunk& chunk, TensorView<float, 3>) {
    if (chunk.layer == 0) seen.emplace_back(chunk.classes.begin(), chunk.classes.end());
    return Status::ok;
  };
  const auto tokens = bytes_to_tokens("a(b, 1)\n\xe9\x80");
  Decoder asks(tinylm(), {.classes = true, .chunk = 6}), plain(tinylm());
  REQUIRE(asks.prefill(tokens, 0, attention));
  REQUIRE(plain.prefill(tokens, 0, attention));
  constexpr auto p = TokenClass::plain, m = TokenClass::punctuation, s = TokenClass::special;
  REQUIRE(seen == std::vector<std::vector<TokenClass>>{{s, m, p, m, p}, {p, m, p, p, p}, {}});

  ModelConfig words = tinylm().config;
  words.vocab = 1000;
  REQUIRE_FALSE(speaks_bytes(words));  // then nobody knows, and the cache that wants classes says so
}

TEST_CASE("decoder: what is wrong comes back as a status", "[engine][decoder]") {
  Decoder decoder(tinylm());
  DenseAttention cache(tinylm().config);
  const std::int32_t good = 65, low = -1, high = 256;
  REQUIRE(decoder.forward({}, 0, std::ref(cache)).status() == Status::invalid_argument);
  REQUIRE(decoder.prefill({}, 0, std::ref(cache)).status() == Status::invalid_argument);
  REQUIRE(decoder.forward({&good, 1}, -1, std::ref(cache)).status() == Status::invalid_argument);
  REQUIRE(decoder.forward({&low, 1}, 0, std::ref(cache)).status() == Status::out_of_range);
  REQUIRE(decoder.forward({&high, 1}, 0, std::ref(cache)).status() == Status::out_of_range);
  REQUIRE(cache.length(0) == 0);
  int calls = 0;
  const auto failed =
      decoder.forward({&good, 1}, 0, [&](const LayerChunk& chunk, TensorView<float, 3>) {
        ++calls;
        return chunk.layer == 2 ? Status::out_of_memory : Status::ok;
      });
  REQUIRE(failed.status() == Status::out_of_memory);
  REQUIRE(calls == 3);
}
