#include <functional>
#include <sstream>
#include <string>

#include <engine/sampling.hpp>
#include <engine/tokenizer.hpp>

#include "tinylm.hpp"

using namespace engine;
using engine::test::any_attention;
using engine::test::reference;
using engine::test::tinylm;
using engine::test::tinylm_text;

TEST_CASE("tinylm: bits per byte of the held-out windows are the reference's",
          "[engine][quality]") {
  const std::size_t length = GENERATE(256u, 512u, 1024u, 2048u);
  CAPTURE(length);
  const auto text = bytes_to_tokens(tinylm_text("heldout.txt"));
  Decoder decoder(tinylm());
  auto cache = any_attention("keep_all", kvcondense::DType::f32);
  double sum = 0;
  std::size_t count = 0;
  for (const auto& window : reference()["bits_per_byte_windows"]) {
    const auto tokens = std::span(text).subspan(window.get<std::size_t>(), length + 1);
    cache.cache().reset();
    const auto done = decoder.prefill(
        tokens.first(length), 0, std::ref(cache), [&](index_t at, std::span<const float> logits) {
          for (std::size_t i = 0; i * 256 < logits.size(); ++i, ++count)
            sum += bits(logits.subspan(i * 256, 256), tokens[static_cast<std::size_t>(at) + i + 1]);
        });
    REQUIRE(done);
  }
  REQUIRE(count == 5 * length);
  // The reference is printed with five decimals.
  REQUIRE(sum / static_cast<double>(count) ==
          Approx(reference()["bits_per_byte"][std::to_string(length)].get<double>()).margin(2e-5));
}

TEST_CASE("tinylm: recall of value bytes is the reference's", "[engine][quality]") {
  const std::size_t length = GENERATE(256u, 512u, 1024u, 2048u);
  CAPTURE(length);
  std::istringstream lines(tinylm_text("recall.jsonl"));
  Decoder decoder(tinylm());
  auto cache = any_attention("keep_all", kvcondense::DType::f32);
  int documents = 0, right = 0, asked = 0;
  for (std::string line; std::getline(lines, line) && documents < 4;) {
    const auto document = nlohmann::json::parse(line);
    if (document["length"] != length) continue;
    ++documents;
    const auto tokens = bytes_to_tokens(document["text"].get<std::string>());
    cache.cache().reset();
    std::vector<std::int32_t> guesses;  // guesses[i] follows tokens[i]
    const auto done =
        decoder.prefill(tokens, 0, std::ref(cache), [&](index_t, std::span<const float> logits) {
          for (std::size_t i = 0; i < logits.size(); i += 256)
            guesses.push_back(greedy(logits.subspan(i, 256)));
        });
    REQUIRE(done);
    for (const auto& query : document["queries"]) {
      const auto at = query["value_at"].get<std::size_t>();
      for (std::size_t i = at; i < at + 4; ++i, ++asked) right += guesses[i - 1] == tokens[i];
    }
  }
  REQUIRE(documents == 4);
  REQUIRE(asked > 0);
  // The reference is printed with four decimals.
  REQUIRE(static_cast<double>(right) / asked ==
          Approx(reference()["recall_first_4_docs"][std::to_string(length)].get<double>())
              .margin(6e-5));
}
