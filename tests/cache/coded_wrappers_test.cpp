#include <algorithm>
#include <cmath>
#include <cstddef>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include <catch2/catch.hpp>

#include <kvcondense/any/any_cache.hpp>
#include <kvcondense/any/builtin.hpp>
#include <kvcondense/cpu.hpp>
#include <support/catalogue.hpp>
#include <support/model_facts.hpp>
#include <support/naive_cache.hpp>
#include <support/saved.hpp>
#include <support/step_data.hpp>

using namespace kvcondense;

namespace {

constexpr CacheShape coded_shape{.layers = 2, .q_heads = 4, .kv_heads = 2, .head_dim = 64, .page_slots = 16};
constexpr int answer_tokens = 60;

/// A prompt and an answer through a recipe.
struct CodedRun {
  any::AnyCache cache;
  Workspace work;
  Context<Cpu> ctx;
  std::mt19937 random{4};
  std::vector<float> outputs;  ///< of the answer
  index_t most_slots = 0;      ///< of a head, after a step of the answer

  explicit CodedRun(const std::string& text) : CodedRun(made(text)) {}
  explicit CodedRun(any::AnyCache c) : cache(std::move(c)) {
    REQUIRE(work.reserve(cache.workspace_bytes(256, 120)) == Status::ok);
    ctx = Context<Cpu>(work.bytes());
  }
  static any::AnyCache made(const std::string& text) {
    static const test::RandomModel model(coded_shape);
    auto c = any::make(text, coded_shape, any::on<Cpu>, heap_memory(), model.facts());
    CAPTURE(text, std::string(c.message()));
    REQUIRE(c);
    return std::move(*c);
  }

  void forward(index_t n, Phase phase) {
    std::vector<float> out(static_cast<std::size_t>(coded_shape.q_heads * n * coded_shape.head_dim));
    for (index_t l = 0; l < coded_shape.layers; ++l) {
      const test::Tokens t(coded_shape, n, random);
      const test::StepData data(coded_shape, n, random);
      StepInputs inputs = data.inputs();
      inputs.queries = t.queries(coded_shape);
      REQUIRE(cache.forward(ctx, l, t.queries(coded_shape), t.keys(coded_shape), t.values(coded_shape),
                            dense_view(out.data(), coded_shape.q_heads, n, coded_shape.head_dim), {}, phase, inputs) == Status::ok);
      if (phase == Phase::decode) outputs.insert(outputs.end(), out.begin(), out.end());
    }
  }
  void answer(int tokens) {
    for (int i = 0; i < tokens; ++i) {
      forward(1, Phase::decode);
      for (index_t l = 0; l < coded_shape.layers; ++l)
        for (index_t h = 0; h < coded_shape.kv_heads; ++h) most_slots = std::max(most_slots, cache.slots(l, h));
    }
  }
};

/// How far outputs are from others, as a part of these.
double apart(const std::vector<float>& got, const std::vector<float>& want) {
  double error = 0, size = 0;
  for (std::size_t i = 0; i < want.size(); ++i)
    error += std::pow(static_cast<double>(got[i]) - static_cast<double>(want[i]), 2), size += std::pow(static_cast<double>(want[i]), 2);
  return std::sqrt(error / size);
}

/// What stands around a policy of 40 slots, and the most that a head may hold after a step then.
struct Wrapped {
  std::string text;
  index_t most = 40;
};

std::vector<Wrapped> wrapped_policies() {
  std::vector<Wrapped> all{{"h2o(heavy=20, recent=20) + rerotate"}};
  for (const any::Entry* e : any::builtin().entries()) {
    if (e->room != Stage::evict || !e->wraps) continue;
    Wrapped w{test::settings.at(std::string(e->word)).text};
    if (e->word == "every") w.most += 6;               // tokens that come between two choices
    if (e->word == "critical") w.most += answer_tokens;  // over snapkv, which chooses once
    if (e->word == "exit_threshold") w = {"exit_threshold(POLICY, window=25, least=0.5)", 150};  // no budget: some of the 180 tokens leave
    w.text.replace(w.text.find("POLICY"), 6, e->word == "critical" ? "snapkv(tokens=40, window=8)" : "h2o(heavy=20, recent=20)");
    all.push_back(w);
  }
  return all;
}

}  // namespace

TEST_CASE("cache: every wrapper of a policy works over codes: within its budget, near what it is without them, smaller, and the same from a file",
          "[cache][pairs]") {
  const auto policies = wrapped_policies();
  REQUIRE(policies.size() >= 9);
  for (const Wrapped& policy : policies) {
    CodedRun exact(policy.text);
    exact.forward(120, Phase::prefill_end), exact.answer(answer_tokens);
    const Report plain = exact.cache.report();
    // How far outputs may be from those without codes, as a part of their size: twice what a group's step makes of random
    // numbers. Where scores are close a coded key may change the set, and a few outputs by more.
    for (const auto& [quant, most_apart] : {std::pair{" + kivi(bits=4, group_size=8, residual_window=16)", 0.12}, std::pair{" + group_int(bits=8, group_size=16)", 0.01}}) {
      CAPTURE(policy.text + quant);
      CodedRun coded(policy.text + quant);
      coded.forward(120, Phase::prefill_end), coded.answer(answer_tokens);
      REQUIRE(coded.most_slots <= policy.most);
      REQUIRE(apart(coded.outputs, exact.outputs) < most_apart);
      const Report r = coded.cache.report();
      REQUIRE(r.evicted_slots > 0);
      REQUIRE(r.coded_bytes > 0);
      REQUIRE(r.bytes() < plain.bytes());

      CodedRun loaded(policy.text + quant);
      const std::vector<std::byte> file = test::saved(coded.cache);
      REQUIRE(loaded.cache.load(file) == Status::ok);
      REQUIRE((test::saved(loaded.cache) == file));
      loaded.random = coded.random, coded.outputs.clear();
      coded.answer(3), loaded.answer(3);
      REQUIRE((loaded.outputs == coded.outputs));
      REQUIRE((test::saved(loaded.cache) == test::saved(coded.cache)));
    }
  }
}
