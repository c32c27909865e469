#include <catch2/catch.hpp>

#include <engine/chunk_reuse.hpp>
#include <engine/dense_attention.hpp>
#include <engine/tinylm.hpp>

using namespace engine;
using namespace engine::test;
using kvcondense::reuse::CacheBlend;
using kvcondense::reuse::CacheCraft;
using kvcondense::reuse::ChunkId;
using Named = std::vector<std::pair<ChunkId, std::vector<std::int32_t>>>;

namespace {

std::vector<std::int32_t> piece(std::size_t first, std::size_t n) {
  static const std::string text = tinylm_text("heldout.txt");
  std::vector<std::int32_t> ids;
  for (std::size_t i = 0; i < n; ++i) ids.push_back(static_cast<unsigned char>(text[first + i]));
  return ids;
}

/// The logits after each token of the question, with everything computed.
std::vector<float> full(const std::vector<const StoredChunk*>& chunks, const std::vector<std::int32_t>& question) {
  std::vector<std::int32_t> all;
  for (const StoredChunk* c : chunks) all.insert(all.end(), c->tokens.begin(), c->tokens.end());
  all.insert(all.end(), question.begin(), question.end());
  DenseAttention cache(tinylm().config);
  Decoder decoder(tinylm(), {.chunk = static_cast<index_t>(all.size())});
  const auto logits = decoder.forward(all, 0, std::ref(cache));
  REQUIRE(logits);
  return {logits->begin(), logits->end()};
}

double divergence(std::span<const float> want, std::span<const float> got) {
  const auto log_sum = [](std::span<const float> x) {
    double top = x[0], sum = 0;
    for (const float v : x) top = std::max(top, static_cast<double>(v));
    for (const float v : x) sum += std::exp(v - top);
    return top + std::log(sum);
  };
  const double a = log_sum(want), b = log_sum(got);
  double kl = 0;
  for (std::size_t i = 0; i < want.size(); ++i) kl += std::exp(want[i] - a) * ((want[i] - a) - (got[i] - b));
  return kl;
}

/// Chunks of one source file, each made alone.
std::vector<StoredChunk> alone(std::size_t first, std::size_t size, std::size_t count) {
  std::vector<StoredChunk> all;
  for (std::size_t i = 0; i < count; ++i) {
    auto made = store_chunks(tinylm(), Named{{static_cast<ChunkId>(i), piece(first + i * size, size)}});
    REQUIRE(made);
    all.push_back(std::move((*made)[0]));
  }
  return all;
}

}  // namespace

TEST_CASE("chunk reuse: computing everything again is a full prefill, whatever the order", "[engine][chunk_reuse]") {
  const auto stored = alone(20000, 60, 3);
  const auto question = piece(40000, 20);
  const std::vector<const StoredChunk*> order{&stored[2], &stored[0], &stored[1]};
  const auto want = full(order, question);
  for (const CacheBlend method : {CacheBlend{.ratio = 1.0}, CacheBlend{.ratio = 0.3, .check_layer = 4}, CacheBlend{.ratio = 0.0, .check_layer = 1, .first_ratio = 1.0, .settle_layers = 9}}) {
    ChunkPrompt prompt(tinylm(), order);
    const auto got = prompt.blend(method, question);
    REQUIRE(got);
    if (method.first_ratio > 0) continue;  // shrinks: only close
    CHECK(prompt.computed() == 1.0);
    for (std::size_t i = 0; i < want.size(); ++i) REQUIRE((*got)[i] == Approx(want[i]).margin(2e-3));
  }
}

TEST_CASE("chunk reuse: chunks in the prompt they were made in need nothing but the question", "[engine][chunk_reuse]") {
  const auto made = store_chunks(tinylm(), Named{{7, piece(20000, 70)}, {8, piece(20070, 50)}, {9, piece(20120, 61)}});
  REQUIRE(made);
  const auto question = piece(20181, 16);
  const std::vector<const StoredChunk*> order{&(*made)[0], &(*made)[1], &(*made)[2]};
  const auto want = full(order, question);
  ChunkPrompt prompt(tinylm(), order);
  const auto got = prompt.craft(CacheCraft{}, question);
  REQUIRE(got);
  CHECK(prompt.computed() == 0.0);
  for (std::size_t i = 0; i < want.size(); ++i) REQUIRE((*got)[i] == Approx(want[i]).margin(2e-3));
  CHECK((*made)[0].context == 0.5);
  CHECK((*made)[2].context > 0.5);
  // What all tokens of a chunk looked at: shares that add up.
  double to_chunks = 0, by_tokens = 0;
  for (const double x : (*made)[2].inter) to_chunks += x;
  for (const double x : (*made)[2].token_inter) by_tokens += x;
  CHECK(to_chunks == Approx(by_tokens));
  CHECK(to_chunks > 0.5);
  CHECK(to_chunks < 4 * 61.0);
}

TEST_CASE("chunk reuse: cacheblend comes close to a full prefill with a part of the work", "[engine][chunk_reuse]") {
  double none = 0, some = 0, quarter = 0, work = 0;
  int prompts = 0;
  for (const std::size_t first : {10000, 30000, 60000, 90000, 120000}) {
    const auto stored = alone(first, 128, 4);
    const auto question = piece(first + 4 * 128, 40);
    const std::vector<const StoredChunk*> order{&stored[2], &stored[0], &stored[1], &stored[3]};
    const auto want = full(order, question);
    const auto run = [&](double ratio) {
      ChunkPrompt prompt(tinylm(), order);
      const auto got = prompt.blend({.ratio = ratio}, question);
      REQUIRE(got);
      if (ratio == 0.25) work += prompt.computed();
      return divergence(want, *got);
    };
    none += run(0.0), some += run(0.15), quarter += run(0.25);
    ++prompts;
  }
  CAPTURE(none / prompts, some / prompts, quarter / prompts, work / prompts);
  // The first layer is computed for all of them: four layers leave (1 + 3 * 0.25) / 4.
  CHECK(work / prompts == Approx(0.4375).margin(0.01));
  CHECK(some < none);
  CHECK(quarter < none);
}

TEST_CASE("chunk reuse: cache craft computes what looked back, and fills a cache that goes on", "[engine][chunk_reuse]") {
  double none = 0, crafted = 0, work = 0;
  for (const std::size_t first : {10000, 30000, 60000, 90000, 120000}) {
    Named text;
    for (std::size_t i = 0; i < 4; ++i) text.emplace_back(static_cast<ChunkId>(i), piece(first + i * 128, 128));
    const auto made = store_chunks(tinylm(), text);
    REQUIRE(made);
    const auto question = piece(first + 4 * 128, 40);
    const std::vector<const StoredChunk*> order{&(*made)[2], &(*made)[0], &(*made)[1], &(*made)[3]};
    const auto want = full(order, question);
    ChunkPrompt nothing(tinylm(), order), prompt(tinylm(), order);
    const auto bare = nothing.craft(CacheCraft{.alpha = 0.0}, question);
    REQUIRE(bare);
    CHECK(nothing.computed() == 0.0);
    none += divergence(want, *bare);
    auto session = any_attention("exact", kvcondense::DType::f32);
    kvcondense::Workspace scratch;
    REQUIRE(scratch.reserve(session.cache().workspace_bytes(1024, 1024)) == Status::ok);
    kvcondense::Context<kvcondense::Cpu> context(scratch.bytes());
    const auto got = prompt.craft(CacheCraft{}, question, [&](index_t layer, auto keys, auto values, auto) {
      const Status s = session.cache().append(context, layer, keys, values);
      return s == Status::ok ? session.cache().step(context, layer, Phase::prefill_end) : s;
    });
    REQUIRE(got);
    crafted += divergence(want, *got);
    work += prompt.computed();
    // The cache goes on as if it had seen the prompt.
    CHECK(session.cache().length() == 4 * 128 + 40);
    Decoder decoder(tinylm(), session.decoder_options());
    const std::vector<std::int32_t> next{10};
    REQUIRE(decoder.forward(next, session.cache().next_position(), std::ref(session)));
  }
  CAPTURE(none / 5, crafted / 5, work / 5);
  CHECK(work / 5 > 0.05);
  CHECK(work / 5 < 0.6);
  CHECK(crafted < none);
}
