#include <cmath>
#include <functional>
#include <string>

#include <engine/condensed_attention.hpp>
#include <engine/output_projections.hpp>
#include <engine/sampling.hpp>
#include <kvcondense/any/builtin.hpp>
#include <kvcondense/cpu.hpp>
#include <support/model_facts.hpp>

#include "tinylm.hpp"

using namespace engine;
using engine::test::any_attention;
using engine::test::reference;
using engine::test::tinylm;
using engine::test::worst;

namespace {

using kvcondense::Cpu;
using kvcondense::DType;

std::vector<std::int32_t> prompt() {
  return reference()["prompt"].get<std::vector<std::int32_t>>();
}

}  // namespace

TEST_CASE("condensed: a recipe that keeps all gives the reference's logits",
          "[engine][condensed]") {
  // Raw keys rotate inside the cache, others arrive rotated; the model must not notice.
  const std::string recipe = GENERATE("keep_all", "keep_all + absolute", "keep_all + reindex",
                                      "keep_all + rerotate", "h2o(heavy=128, recent=128)");
  const index_t chunk = GENERATE(1, 64, 256);
  CAPTURE(recipe, chunk);
  auto cache = any_attention(recipe, DType::f32);
  Decoder decoder(tinylm(), cache.decoder_options(chunk));
  const auto last = decoder.prefill(prompt(), 0, std::ref(cache));
  REQUIRE(last);
  REQUIRE(worst(*last, reference()["last_logits"]) < 1e-3);
  REQUIRE(cache.cache().length() == 200);
}

TEST_CASE("condensed: the greedy continuation equals the reference byte for byte",
          "[engine][condensed]") {
  const auto want = reference()["greedy_continuation_48"].get<std::vector<std::int32_t>>();
  auto cache = any_attention("keep_all", DType::f32);
  Decoder decoder(tinylm());
  auto logits = decoder.prefill(prompt(), 0, std::ref(cache));
  std::vector<std::int32_t> got;
  while (logits && got.size() < want.size()) {
    got.push_back(greedy(*logits));
    logits = decoder.forward({&got.back(), 1}, cache.cache().next_position(), std::ref(cache));
  }
  REQUIRE(logits);
  REQUIRE(got == want);
}

TEST_CASE("condensed: a cache whose recipe is a type serves as well", "[engine][condensed]") {
  auto shape = cache_shape(tinylm().config);
  shape.dtype = DType::f32;
  auto made = kvcondense::make_cache<Cpu>(shape, kvcondense::recipe(kvcondense::evict::KeepAll{}));
  REQUIRE(made);
  CondensedAttention cache(*std::move(made));
  Decoder decoder(tinylm());
  const auto last = decoder.prefill(prompt(), 0, std::ref(cache));
  REQUIRE(last);
  REQUIRE(worst(*last, reference()["last_logits"]) < 1e-3);
}

TEST_CASE("condensed: every recipe runs, keeps to its budget and predicts text",
          "[engine][condensed]") {
  struct Case {
    const char* recipe;
    index_t
        most;  ///< slots a head may hold afterwards; budgets that heads share have no such bound
  };
  const Case c = GENERATE(Case{"sliding_window(window=96)", 96},        //
                          Case{"sink_window(sinks=4, window=92)", 96},  //
                          Case{"h2o(heavy=48, recent=48)", 96},         //
                          Case{"h2o(heavy=48, recent=48) + kivi2(group=32)", 96},
                          Case{"tova(budget=96)", 96},                //
                          Case{"snapkv(budget=96, window=16)", 200},  //
                          Case{"knorm(budget=96)", 96},               //
                          Case{"kivi4(group=32)", 200},               //
                          Case{"int8", 200},                          //
                          Case{"sink_window(sinks=4, window=92) + rerotate", 96},
                          Case{"sink_window(sinks=4, window=92) + reindex + int8", 96});
  CAPTURE(c.recipe);
  auto cache = any_attention(c.recipe, DType::f16);
  Decoder decoder(tinylm(), cache.decoder_options(64));
  const auto tokens = prompt();
  double sum = 0;
  auto logits = decoder.prefill(std::span(tokens).first(160), 0, std::ref(cache));
  for (std::size_t at = 160; at < tokens.size(); ++at) {
    REQUIRE(logits);
    sum += bits(*logits, tokens[at]);
    logits = decoder.forward({&tokens[at], 1}, static_cast<index_t>(at), std::ref(cache));
  }
  REQUIRE(logits);
  // The full cache needs 1.5 bits for such bytes; without any context they cost more than five.
  REQUIRE(sum / 40 < 3);
  for (index_t layer = 0; layer < tinylm().config.layers; ++layer)
    for (index_t head = 0; head < tinylm().config.kv_heads; ++head)
      REQUIRE(cache.cache().slots(layer, head) <= c.most);
}

TEST_CASE("condensed: every word of the registry runs in the model", "[engine][condensed]") {
  for (const kvcondense::any::Entry* e : kvcondense::any::builtin().entries()) {
    const std::string policy = !e->wraps ? "" : e->room == kvcondense::Stage::quant ? "int8" : "h2o(heavy=48, recent=48)";
    std::string budget = e->field("budget") != nullptr ? "budget=96" : "";
    for (const char* newest : {"stabilizers", "recent"})  // their defaults are for longer texts
      if (!budget.empty() && e->field(newest) != nullptr) budget += std::string(", ") + newest + "=24";
    const std::string comma = !policy.empty() && !budget.empty() ? ", " : "";
    // Random bases say nothing of this model; whole ones lose nothing. Directions of several layers are found from the text.
    const bool lowrank = e->room == kvcondense::Stage::lowrank && e->field("layers") == nullptr;
    for (const char* part : {"keep=100%", "value_keep=100%", "rule=part"})
      if (const std::string field = std::string(part).substr(0, std::string(part).find('=')); lowrank && e->field(field) != nullptr)
        budget += (budget.empty() ? "" : ", ") + std::string(part);
    const std::string lets_go = e->room == kvcondense::Stage::merge ? "h2o(heavy=48, recent=48) + " : "";
    std::string recipe = lets_go + std::string(e->word) + "(" + policy + comma + budget + ")";
    CAPTURE(recipe);
    static const kvcondense::test::RandomModel random(cache_shape(tinylm().config));
    const auto stages = kvcondense::any::parse(recipe, random.facts())->stages;
    if (!stages.lowrank.takes_keys(false) || stages.retrieve.keys == kvcondense::retrieve::KeyState::raw) recipe += " + rerotate";
    auto cache = any_attention(recipe, DType::f16, random.facts());
    Decoder decoder(tinylm(), cache.decoder_options(100));
    const auto last = decoder.prefill(prompt(), 0, std::ref(cache));
    if (!cache.cache().capabilities().needs.within(given_inputs)) {
      REQUIRE(last.status() == kvcondense::Status::missing_input);  // a gate that nobody trained
      REQUIRE(recipe == "dms()");
      continue;
    }
    REQUIRE(last);
    // The next byte is a closing parenthesis, and every method leaves enough context to see it.
    REQUIRE(bits(*last, ')') < 4);
  }
}

TEST_CASE("condensed: surprise of a dialogue is that of the full cache's logits, and turns make room",
          "[engine][condensed]") {
  const auto tokens = prompt();
  const index_t turn = 40, capacity = 2 + 60;
  auto full = any_attention("keep_all", DType::f32);
  auto cache = any_attention("sirllm(sinks=2, memory=60, decay=1)", DType::f32);
  Decoder plain(tinylm()), decoder(tinylm(), cache.decoder_options(16));
  std::vector<float> want;  // -log p of every token but the first, while nothing has left
  std::span<const float> logits;
  for (index_t at = 0; at < 40; ++at) {
    if (at > 0) want.push_back(static_cast<float>(bits(logits, tokens[static_cast<std::size_t>(at)]) * std::log(2.0)));
    const auto next = plain.forward(std::span(tokens).subspan(static_cast<std::size_t>(at), 1), at, std::ref(full));
    REQUIRE(next);
    logits = *next;
  }
  for (index_t first = 0; first < 200; first += turn) {
    REQUIRE((first == 0 || cache.turn(turn) == kvcondense::Status::ok));
    for (index_t l = 0; l < tinylm().config.layers; ++l) REQUIRE(cache.cache().slots(l, 0) <= capacity - turn);
    REQUIRE(decoder.prefill(std::span(tokens).subspan(static_cast<std::size_t>(first), 40), first, std::ref(cache)));
    REQUIRE(cache.cache().pending() == 0);
    if (first > 0) continue;
    const auto& lane = cache.cache().full().layers()[1].heads[0].lane[0];
    REQUIRE(lane.size() == 40);
    for (std::size_t i = 0; i < want.size(); ++i) REQUIRE(lane[static_cast<index_t>(i) + 1] == Approx(want[i]).margin(2e-3));
  }
  REQUIRE(cache.cache().slots(0, 0) == capacity);
  REQUIRE(cache.cache().next_position() == 200);
}

TEST_CASE("condensed: a context that was asked to repeat itself serves a question nobody knew",
          "[engine][condensed]") {
  const auto tokens = prompt();
  const auto part = [&](index_t first, index_t count) {
    return std::span(tokens).subspan(static_cast<std::size_t>(first), static_cast<std::size_t>(count));
  };
  const engine::OutputProjections output(tinylm());
  for (const char* recipe : {"kvzip(keep=60%)", "kvzip(keep=60%, weighted=true)", "global_top(kvzip, keep=60%)"}) {
    CAPTURE(recipe);
    kvcondense::any::ModelFacts facts;
    facts.output = output.view();
    auto cache = any_attention(recipe, DType::f16, facts);
    Decoder decoder(tinylm(), cache.decoder_options(256));
    REQUIRE(decoder.prefill(part(0, 160), 0, std::ref(cache)));
    for (index_t first = 0; first < 160; first += 80) REQUIRE(cache.ask(decoder, part(first, 80), first, first + 80) == kvcondense::Status::ok);
    REQUIRE(cache.cache().length() == 160);
    REQUIRE(cache.turn(40) == kvcondense::Status::ok);
    const auto report = cache.cache().report();
    REQUIRE(report.slots <= static_cast<index_t>(0.6 * 160 * 8) + 4 * 8);
    REQUIRE(report.slots >= static_cast<index_t>(0.6 * 156 * 8));
    double sum = 0;
    auto logits = decoder.forward(part(160, 1), 160, std::ref(cache), Logits::last, Phase::decode);
    for (index_t at = 161; at < 200; ++at) {
      REQUIRE(logits);
      sum += bits(*logits, tokens[static_cast<std::size_t>(at)]);
      logits = decoder.forward(part(at, 1), at, std::ref(cache), Logits::last, Phase::decode);
    }
    REQUIRE(sum / 39 < 3);
  }
}

TEST_CASE("condensed: what expected queries choose is enough to predict text",
          "[engine][condensed]") {
  const auto tokens = prompt();
  auto cache = any_attention("expected_attention(keep=30%, horizon=64)", DType::f16);
  Decoder decoder(tinylm(), cache.decoder_options(256));
  auto logits = decoder.prefill(std::span(tokens).first(160), 0, std::ref(cache));
  REQUIRE(cache.cache().slots(0, 0) == 48);
  double sum = 0;
  for (std::size_t at = 160; at < tokens.size(); ++at) {
    REQUIRE(logits);
    sum += bits(*logits, tokens[at]);
    logits = decoder.forward({&tokens[at], 1}, static_cast<index_t>(at), std::ref(cache));
  }
  REQUIRE(sum / 40 < 3);
}

TEST_CASE("condensed: heads that keep what serves them hold less than all, and predict text",
          "[engine][condensed]") {
  const auto tokens = prompt();
  auto cache = any_attention("fastgen(recovery=90%, frequent=20%, local=20%)", DType::f16);
  Decoder decoder(tinylm(), cache.decoder_options(64));
  double sum = 0;
  auto logits = decoder.prefill(std::span(tokens).first(160), 0, std::ref(cache));
  for (std::size_t at = 160; at < tokens.size(); ++at) {
    REQUIRE(logits);
    sum += bits(*logits, tokens[at]);
    logits = decoder.forward({&tokens[at], 1}, static_cast<index_t>(at), std::ref(cache));
  }
  REQUIRE(sum / 40 < 3);
  index_t least = 200, most = 0;
  for (index_t layer = 0; layer < tinylm().config.layers; ++layer)
    for (index_t head = 0; head < tinylm().config.kv_heads; ++head) {
      least = std::min(least, cache.cache().slots(layer, head));
      most = std::max(most, cache.cache().slots(layer, head));
    }
  CAPTURE(least, most, sum / 40);
  REQUIRE(least < most);
  REQUIRE(cache.cache().report().slots < 200 * 8 * 9 / 10);
}

TEST_CASE("condensed: a cache that cannot get memory stops the pass with its status",
          "[engine][condensed]") {
  struct None final : kvcondense::MemoryResource<Cpu> {
    int left = 1 << 30;
    void* allocate(std::size_t bytes, std::size_t align) noexcept override {
      return left-- > 0 ? kvcondense::heap_memory().allocate(bytes, align) : nullptr;
    }
    void release(void* p, std::size_t bytes, std::size_t align) noexcept override {
      kvcondense::heap_memory().release(p, bytes, align);
    }
  } memory;
  auto made = kvcondense::any::make("keep_all", cache_shape(tinylm().config),
                                    kvcondense::any::on<Cpu>, memory);
  REQUIRE(made);
  CondensedAttention cache(*std::move(made));
  Decoder decoder(tinylm());
  memory.left = 0;
  REQUIRE(decoder.prefill(prompt(), 0, std::ref(cache)).status() == Status::out_of_memory);
  REQUIRE(cache.cache().length() == 0);
  memory.left = 1 << 30;
  REQUIRE(decoder.prefill(prompt(), 0, std::ref(cache)));
}
