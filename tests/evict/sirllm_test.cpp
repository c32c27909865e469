#include <cmath>
#include <numeric>

#include <evict/properties.hpp>
#include <kvcondense/evict/sirllm.hpp>
#include <support/cache_rig.hpp>
#include <support/naive_cache.hpp>

using namespace kvcondense;
using namespace kvcondense::test;

namespace {

/// Steps tokens with these numbers of surprise.
template <class D>
void say(D& d, const std::vector<float>& surprise) {
  d.inputs = {.surprise = surprise};
  REQUIRE(d.step(static_cast<index_t>(surprise.size()), Phase::prefill_end) == Status::ok);
}
template <class D>
void turn(D& d, index_t incoming) {
  d.inputs = {.incoming = incoming};
  REQUIRE(d.step(0, Phase::turn) == Status::ok);
}

}  // namespace

TEST_CASE("sirllm: what stays before a turn, and what is left of its surprise, equals the oracle", "[evict][sirllm]") {
  const auto oracle = eviction_oracle("sirllm");
  const auto& p = oracle["params"];
  const evict::SirLLM policy{.sinks = p["start_size"], .memory = p["token_entropy_size"], .recent = p["recent_size"], .decay = p["decay"]};
  for (const auto& c : oracle["cases"]) {
    auto d = drive({.kv_heads = 2}, policy);
    say(d, oracle["entropies"].get<std::vector<float>>());
    turn(d, c["num_coming"]);
    for (index_t h = 0; h < 2; ++h) {
      REQUIRE(d.held[at(h)] == c["kept"].get<Ints>());
      for (std::size_t i = 0; i < d.held[at(h)].size(); ++i)
        REQUIRE(d.lane[0][at(h)][i] == Approx(c["entropies_after_decay"][i].get<double>()));
    }
  }
}

TEST_CASE("sirllm: the oracle's surprise of tokens from logits, and that of the published code", "[evict][sirllm]") {
  const auto a = eviction_oracle("sirllm")["alignment"];
  std::vector<float> logits, out(4);
  for (const auto& row : a["logits_after_token"])
    for (const float x : row) logits.push_back(x);
  const auto ids = a["token_ids"].get<std::vector<std::int32_t>>();
  const auto view = dense_view(static_cast<const float*>(logits.data()), 4, 3);
  Context<Cpu> ctx;
  using Surprise = prim::TokenSurprise<Cpu>;
  for (const auto& [which, want] : {std::pair{prim::SurpriseOf::repeated, "reference_code_values"},
                                    std::pair{prim::SurpriseOf::this_token, "intended_nll_first_is_max"}}) {
    REQUIRE(Surprise::run(ctx, view, ids, which, out) == Status::ok);
    REQUIRE(std::isnan(out[0]));
    auto d = drive({}, evict::SirLLM{});  // which counts it as the most surprising of its step
    say(d, out);
    for (std::size_t i = 0; i < 4; ++i) REQUIRE(d.lane[0][0][i] == Approx(a[want][i].get<double>()));
  }

  const std::vector<std::int32_t> strange{0, 3, 1, 0};
  REQUIRE(Surprise::run(ctx, view, strange, prim::SurpriseOf::repeated, out) == Status::out_of_range);
  REQUIRE(Surprise::run(ctx, view, std::span(ids).first(3), prim::SurpriseOf::repeated, out) == Status::shape_mismatch);
}

TEST_CASE("sirllm: nothing leaves within a turn, and the newest fill what surprise leaves", "[evict][sirllm]") {
  auto d = drive({}, evict::SirLLM{.sinks = 1, .memory = 3, .recent = 2, .decay = 1.0f});
  say(d, {9, 1, 8, 1, 1, 1, 1, 1});
  REQUIRE(d.held[0].size() == 8);
  for (int i = 0; i < 3; ++i) {
    d.inputs = {};
    const float one = 2;
    d.inputs.surprise = {&one, 1};
    REQUIRE(d.step(1, Phase::decode) == Status::ok);
  }
  REQUIRE(d.held[0].size() == 11);
  turn(d, 2);  // 4 may stay: sink 0 (among the best too), the best one; then the newest
  REQUIRE(d.held[0] == Ints{0, 8, 9, 10});
  turn(d, 5);
  REQUIRE(d.held[0] == Ints{0});
  turn(d, 100);  // sinks stay whatever comes
  REQUIRE(d.held[0] == Ints{0});
}

TEST_CASE("sirllm: decay lets an old turn fade behind a new one", "[evict][sirllm]") {
  for (const float decay : {1.0f, 0.3f}) {
    auto d = drive({}, evict::SirLLM{.sinks = 0, .memory = 4, .recent = 0, .decay = decay});
    say(d, {5, 5});
    turn(d, 2);
    say(d, {2, 2, 2});
    turn(d, 1);
    REQUIRE(d.held[0] == (decay < 1 ? Ints{2, 3, 4} : Ints{0, 1, 2}));
  }
}

TEST_CASE("sirllm: a cache says what a step lacks, and drafts of a turn leave no trace", "[evict][sirllm]") {
  const CacheShape shape{.layers = 2, .q_heads = 4, .kv_heads = 2, .head_dim = 8, .dtype = DType::f32};
  CacheRig r(shape, recipe(evict::SirLLM{.sinks = 1, .memory = 5, .recent = 2}), 64, 16);
  std::mt19937 random(5);
  const Tokens t(shape, 9, random);
  const std::vector<float> surprise{1, 9, 2, 8, 3, 7, 4, 6, 5};
  REQUIRE(r.cache.step(r.ctx, 0, StepInputs{.incoming = 1}, Phase::turn) == Status::ok);  // empty: nothing to do
  for (index_t layer = 0; layer < 2; ++layer) {
    REQUIRE(r.cache.append(r.ctx, layer, t.keys(shape), t.values(shape)) == Status::ok);
    REQUIRE(r.cache.step(r.ctx, layer, StepInputs{.incoming = 3}, Phase::turn) == Status::order_violation);  // tokens are pending
    REQUIRE(std::string(r.cache.missing(layer, {})) == "surprise");
    REQUIRE(r.cache.step(r.ctx, layer, StepInputs{}) == Status::missing_input);
    REQUIRE(r.cache.step(r.ctx, layer, StepInputs{.surprise = std::span(surprise).first(8)}) == Status::shape_mismatch);
    REQUIRE(r.cache.missing(layer, {.surprise = surprise}) == nullptr);
    REQUIRE(r.cache.step(r.ctx, layer, StepInputs{.surprise = surprise}) == Status::ok);
    REQUIRE(r.cache.step(r.ctx, layer, StepInputs{.incoming = -1}, Phase::turn) == Status::invalid_argument);
    REQUIRE(r.cache.slots(layer, 0) == 9);
    REQUIRE(r.cache.step(r.ctx, layer, StepInputs{.incoming = 3}, Phase::turn) == Status::ok);
    REQUIRE(r.cache.slots(layer, 0) == 5);
  }
  // Five of 1 + 5 + 2 stay: the sink, the two most surprising, and the newest.
  for (const auto& [slot, token] : std::vector<std::pair<index_t, index_t>>{{0, 0}, {1, 1}, {2, 3}, {3, 7}, {4, 8}})
    for (index_t h = 0; h < 2; ++h) REQUIRE(r.cache.token(1, h, slot) == token);
  REQUIRE(r.cache.next_position() == 9);
  REQUIRE(r.cache.capabilities().needs == Inputs(Input::surprise));
}

TEST_CASE("sirllm: a long dialogue stays within its memory", "[evict][sirllm]") {
  const CacheShape shape{.q_heads = 2, .kv_heads = 1, .head_dim = 16, .dtype = DType::f16};
  CacheRig r(shape, recipe(evict::SirLLM{.sinks = 4, .memory = 124, .recent = 0}), 256, 64);
  std::mt19937 random(6);
  const Tokens t(shape, 50, random);
  std::vector<float> surprise(50);
  std::size_t most = 0;
  for (int i = 0; i < 2000; ++i) {  // 100,000 tokens
    for (float& s : surprise) s = std::uniform_real_distribution<float>(0, 9)(random);
    REQUIRE(r.cache.step(r.ctx, 0, StepInputs{.incoming = 50}, Phase::turn) == Status::ok);
    REQUIRE(r.cache.append(r.ctx, 0, t.keys(shape), t.values(shape)) == Status::ok);
    REQUIRE(r.cache.step(r.ctx, 0, StepInputs{.surprise = surprise}) == Status::ok);
    REQUIRE(r.cache.slots(0, 0) <= 128);
    if (i == 50) most = r.memory.peak_bytes;
  }
  REQUIRE(r.cache.next_position() == 100000);
  REQUIRE(r.memory.peak_bytes == most);  // nothing grows after the first turns
}

TEST_CASE("sirllm: fields out of range are refused", "[evict][sirllm]") {
  REQUIRE(evict::SirLLM{}.validate({}) == Status::ok);
  REQUIRE(evict::SirLLM{.sinks = -1}.validate({}) == Status::invalid_argument);
  REQUIRE(evict::SirLLM{.memory = -1}.validate({}) == Status::invalid_argument);
  REQUIRE(evict::SirLLM{.recent = -1}.validate({}) == Status::invalid_argument);
  REQUIRE(evict::SirLLM{.sinks = 0, .memory = 0, .recent = 0}.validate({}) == Status::invalid_argument);
  REQUIRE(evict::SirLLM{.decay = 1.5f}.validate({}) == Status::invalid_argument);
}
