#include <functional>
#include <string>
#include <vector>

#include <engine/sampling.hpp>
#include <engine/speculative.hpp>
#include <kvcondense/cpu.hpp>
#include <support/saved.hpp>

#include "tinylm.hpp"

using namespace engine;
using engine::test::any_attention;
using engine::test::reference;
using engine::test::tinylm;
using kvcondense::test::saved;

namespace {

using Any = kvcondense::any::AnyCache;

TentativeAttention<Any> tentative(const std::string& recipe) {
  return TentativeAttention(std::move(any_attention(recipe, kvcondense::DType::f16).cache()));
}

constexpr index_t count = 40;

}  // namespace

TEST_CASE("speculative: tokens are those of plain greedy decoding, whoever drafts and how many", "[engine][speculative]") {
  const auto prompt = reference()["prompt"].get<std::vector<std::int32_t>>();
  auto alone = any_attention("keep_all", kvcondense::DType::f16);
  Decoder decoder(tinylm());
  std::vector<std::int32_t> want;
  auto logits = decoder.forward(prompt, 0, std::ref(alone), Logits::last, Phase::prefill_end);
  while (logits && static_cast<index_t>(want.size()) < count) {
    want.push_back(greedy(*logits));
    logits = decoder.forward({&want.back(), 1}, alone.cache().next_position(), std::ref(alone));
  }
  REQUIRE(logits);

  double acceptance[2] = {};
  for (const char* recipe : {"keep_all", "sink_window(sinks=4, recent=12)", "h2o(heavy=32, recent=32) + kivi4(group=16, residual=16)",
                             "sink_window(sinks=4, recent=60) + reindex + int8", "rkv(tokens=64, window=4)"})
    for (const index_t drafts : {0, 1, 4, 7}) {
      CAPTURE(recipe, drafts);
      auto draft = tentative(recipe), full = tentative("keep_all");
      const auto got = speculate(tinylm(), draft, full, prompt, count, drafts);
      REQUIRE(got);
      REQUIRE(got->tokens == want);
      REQUIRE(got->drafted == got->rounds * drafts);
      REQUIRE(got->accepted + got->rounds >= count);
      // What was rejected left no trace: the cache is the one that never saw it.
      const index_t extra = got->accepted + got->rounds - count;
      if (extra == 0) REQUIRE(saved(full.cache()) == saved(alone.cache()));
      REQUIRE(full.cache().pending() + draft.cache().pending() == 0);
      REQUIRE(full.cache().length() == static_cast<index_t>(prompt.size()) + got->accepted + got->rounds);
      // The same recipe drafts what it would say.
      if (std::string(recipe) == "keep_all" && drafts > 0) REQUIRE(got->acceptance() == 1.0);
      if (drafts == 4 && std::string(recipe) == "keep_all") acceptance[0] = got->acceptance();
      if (drafts == 4 && std::string(recipe) == "sink_window(sinks=4, recent=12)") acceptance[1] = got->acceptance();
    }
  REQUIRE(acceptance[1] < acceptance[0]);
}

TEST_CASE("speculative: a cache that drafts is the one that was given the right tokens only", "[engine][speculative]") {
  const auto prompt = reference()["prompt"].get<std::vector<std::int32_t>>();
  for (const char* recipe : {"h2o(heavy=32, recent=32) + kivi4(group=16, residual=16)", "sink_window(sinks=4, recent=60) + rerotate"}) {
    CAPTURE(recipe);
    auto drafting = tentative(recipe), plain = tentative(recipe);
    Decoder decoder(tinylm(), plain.decoder_options());
    std::vector<std::int32_t> wrong(9, 7);
    for (auto* a : {&drafting, &plain}) {
      REQUIRE(decoder.forward(prompt, 0, std::ref(*a), Logits::last, Phase::prefill_end));
      REQUIRE(a->keep(static_cast<index_t>(prompt.size()), Phase::prefill_end) == Status::ok);
    }
    for (index_t right = 0; right < 4; ++right) {
      std::vector<std::int32_t> both(prompt.begin(), prompt.begin() + right);
      if (right > 0) {
        REQUIRE(decoder.forward(both, plain.cache().next_position(), std::ref(plain), Logits::last, Phase::decode));
        REQUIRE(plain.keep(right) == Status::ok);
      }
      both.insert(both.end(), wrong.begin(), wrong.end());
      REQUIRE(decoder.forward(both, drafting.cache().next_position(), std::ref(drafting), Logits::all, Phase::decode));
      REQUIRE(drafting.keep(right) == Status::ok);
      REQUIRE(drafting.cache().next_position() == plain.cache().next_position());
      REQUIRE(drafting.cache().slots(1, 1) == plain.cache().slots(1, 1));
      for (index_t s = 0; s < plain.cache().slots(1, 1); ++s) REQUIRE(drafting.cache().token(1, 1, s) == plain.cache().token(1, 1, s));
    }
    const std::int32_t probe = prompt[0];
    const auto a = decoder.forward({&probe, 1}, plain.cache().next_position(), std::ref(plain));
    REQUIRE(a);
    const std::vector<float> want(a->begin(), a->end());
    const auto b = decoder.forward({&probe, 1}, drafting.cache().next_position(), std::ref(drafting));
    REQUIRE(b);
    REQUIRE(std::vector<float>(b->begin(), b->end()) == want);
  }
}
