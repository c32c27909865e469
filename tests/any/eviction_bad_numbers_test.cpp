#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include <catch2/catch.hpp>

#include <any/settings.hpp>
#include <kvcondense/any/any_cache.hpp>
#include <kvcondense/cpu.hpp>
#include <support/model_facts.hpp>
#include <support/naive_cache.hpp>
#include <support/step_data.hpp>

using namespace kvcondense;

// Budgets of nothing and scores that are no numbers, in every word of the registry that evicts or gives budgets: a new
// word needs no line here.

namespace {

constexpr CacheShape shape{.layers = 2, .q_heads = 4, .kv_heads = 2, .head_dim = 16, .dtype = DType::f32};
constexpr float no_number = std::numeric_limits<float>::quiet_NaN();

const any::ModelFacts& facts() {
  static const test::RandomModel model(shape);
  return model.facts();
}

template <class F>
void each_word(F&& f) {
  for (const any::Entry* e : any::builtin().entries())
    if (e->room == Stage::evict || e->room == Stage::budget) f(*e);
}

/// A sequence of random tokens through a cache.
struct Run {
  any::AnyCache cache;
  Workspace work;
  Context<Cpu> ctx;
  std::mt19937 random{4};
  index_t seen = 0;

  explicit Run(any::AnyCache made) : cache(std::move(made)) {
    REQUIRE(work.reserve(cache.workspace_bytes(128, 64)) == Status::ok);
    ctx = Context<Cpu>(work.bytes());
  }

  static std::vector<float> spoiled(TensorView<const float, 3> view, index_t heads) {
    std::vector<float> x;
    for (index_t h = 0; h < view.extent[0]; ++h)
      for (index_t t = 0; t < view.extent[1]; ++t)
        for (index_t d = 0; d < view.extent[2]; ++d) x.push_back(h < heads ? no_number : view(h, t, d));
    return x;
  }

  /// Tokens through every layer. Of bad ones every second query head asks with NaN, and so do gates and surprise.
  void feed(index_t n, bool bad) {
    for (index_t l = 0; l < shape.layers; ++l) {
      const test::Tokens t(shape, n, random, 2.0f);
      const test::StepData data(shape, n, random);
      StepInputs inputs = data.inputs();
      const std::vector<float> queries = spoiled(t.queries(shape), bad ? 2 : 0), raw = spoiled(inputs.raw_queries, bad ? 2 : 0);
      const std::vector<float> none(static_cast<std::size_t>(shape.kv_heads * n), no_number);
      inputs.queries = dense_view(queries.data(), shape.q_heads, n, shape.head_dim);
      inputs.raw_queries = dense_view(raw.data(), shape.q_heads, n, shape.head_dim);
      if (bad) inputs.gates = dense_view(none.data(), shape.kv_heads, n), inputs.surprise = {none.data(), static_cast<std::size_t>(n)};
      std::vector<float> out(static_cast<std::size_t>(shape.q_heads * n * shape.head_dim));
      const Status s = cache.forward(ctx, l, inputs.queries, t.keys(shape), t.values(shape),
                                     dense_view(out.data(), shape.q_heads, n, shape.head_dim), {}, n > 1 ? Phase::prefill_end : Phase::decode, inputs);
      REQUIRE(s == Status::ok);
      // Heads that were asked with numbers answer with numbers, whatever the others were asked.
      const bool fine = std::all_of(out.begin() + static_cast<std::ptrdiff_t>(out.size() / 2), out.end(), [](float x) { return std::isfinite(x); });
      if (cache.slots(l, 1) > 0) REQUIRE(fine);
    }
    seen += n;
    REQUIRE(cache.turn(ctx, 2) == Status::ok);
    for (index_t l = 0; l < shape.layers; ++l) {
      REQUIRE(cache.length(l) == seen);
      for (index_t h = 0; h < shape.kv_heads; ++h) {
        index_t last = -1;
        for (index_t s = 0; s < cache.slots(l, h); ++s) {
          const index_t token = cache.token(l, h, s);
          if (token <= last || token >= seen) FAIL("slot " << s << " holds token " << token << " after " << last);
          last = token;
        }
      }
    }
  }
};

}  // namespace

TEST_CASE("eviction: no field of a policy takes a NaN", "[any][bad_numbers]") {
  index_t tried = 0;
  each_word([&](const any::Entry& e) {
    for (const any::Field& f : e.fields) {
      if (!f.is_real()) continue;
      const std::string text = test::with_fields(e, std::string(f.name) + "=nan");
      CAPTURE(text);
      REQUIRE_FALSE(any::make(text, shape, any::on<Cpu>, heap_memory(), facts()));
      ++tried;
    }
  });
  REQUIRE(tried > 20);
}

TEST_CASE("eviction: with a 0 in any field a policy is refused by its name, or works", "[any][bad_numbers]") {
  index_t refused = 0, works = 0;
  each_word([&](const any::Entry& e) {
    for (const any::Field& f : e.fields) {
      if (f.type == any::FieldType::choice || f.type == any::FieldType::boolean) continue;
      const std::string text = test::with_fields(e, std::string(f.name) + "=0");
      CAPTURE(text);
      auto made = any::make(text, shape, any::on<Cpu>, heap_memory(), facts());
      if (!made) {
        CAPTURE(std::string(made.message()));
        REQUIRE((made.status() == Status::invalid_argument || made.status() == Status::incompatible));
        REQUIRE(std::string(made.message()).find(std::string(e.word)) != std::string::npos);
        ++refused;
        continue;
      }
      Run run(std::move(*made));
      run.feed(60, false);
      for (int i = 0; i < 4; ++i) run.feed(1, false);
      ++works;
    }
  });
  REQUIRE(refused > 20);
  REQUIRE(works > 20);
}

TEST_CASE("eviction: queries, gates and surprise that are NaN harm no other head and no later token, and are counted", "[any][bad_numbers]") {
  index_t counted = 0;
  each_word([&](const any::Entry& e) {
    for (const std::string& fields : test::stages_to_vary(e))
      for (const bool bad_prompt : {false, true}) {
        const std::string text = test::with_fields(e, fields);
        CAPTURE(text, bad_prompt);
        auto made = any::make(text, shape, any::on<Cpu>, heap_memory(), facts());
        REQUIRE(made);
        Run run(std::move(*made));
        run.feed(60, bad_prompt);
        for (int i = 0; i < 8; ++i) run.feed(1, i % 3 == 1);
        counted += run.cache.report().nan_scores > 0;
      }
  });
  REQUIRE(counted > 20);
}

TEST_CASE("eviction: keys and values that are NaN are refused, and nothing is lost", "[any][bad_numbers]") {
  each_word([&](const any::Entry& e) {
    const std::string text = test::with_fields(e, test::stages_to_vary(e).front());
    CAPTURE(text);
    auto made = any::make(text, shape, any::on<Cpu>, heap_memory(), facts());
    REQUIRE(made);
    Run run(std::move(*made));
    run.feed(60, false);
    const index_t slots = run.cache.slots(0, 1);
    for (const bool keys : {true, false}) {
      test::Tokens t(shape, 2, run.random);
      (keys ? t.k : t.v)[17] = no_number;
      REQUIRE(run.cache.append(run.ctx, 0, t.keys(shape), t.values(shape), {}, t.queries(shape)) == Status::invalid_argument);
    }
    REQUIRE(run.cache.slots(0, 1) == slots);
    REQUIRE(run.cache.length(0) == run.seen);
    run.feed(1, false);
  });
}
