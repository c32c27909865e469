#include <string>

#include <catch2/catch.hpp>

#include <kvcondense/any/any_cache.hpp>
#include <kvcondense/cpu.hpp>
#include <support/model_facts.hpp>

using namespace kvcondense;

namespace {

const CacheShape shape{.layers = 2, .q_heads = 6, .kv_heads = 2, .head_dim = 32};

any::MakeResult make(const char* text, const any::ModelFacts& facts, const CacheShape& of = shape) {
  return any::make(text, of, any::on<Cpu>, heap_memory(), facts);
}

}  // namespace

TEST_CASE("model facts: a recipe that lacks one is refused with its name, wrapped or not",
          "[any][model_facts]") {
  const char* locret = "locret(tokens=40, stabilizers=8)";
  for (const std::string& text : {std::string(locret), "ada(" + std::string(locret) + ")"}) {
    const auto refused = make(text.c_str(), {});
    REQUIRE(refused.status() == Status::missing_input);
    REQUIRE(refused.message() == "locret needs what it was not given: ModelFacts::retain_in");
  }
  const test::RandomModel model(shape);
  auto cache = make(locret, model.facts());
  REQUIRE(cache);
  REQUIRE(cache->capabilities().needs == Inputs(Input::projections));
  any::ModelFacts half = model.facts();
  half.retain_out = {};
  REQUIRE(make(locret, half).message() ==
          "locret needs what it was not given: ModelFacts::retain_out");
}

TEST_CASE("model facts: those of another model are refused", "[any][model_facts]") {
  const test::RandomModel model(shape);
  CacheShape other = shape;
  other.q_heads = 4;
  REQUIRE(make("locret(tokens=40, stabilizers=8)", model.facts(), other).status() ==
          Status::shape_mismatch);
}

TEST_CASE("model facts: the rope reaches methods that want one", "[any][model_facts]") {
  any::ModelFacts facts;
  facts.rope.rotary_dim = 31;  // odd: no rope can be
  REQUIRE(make("expected_attention", facts).status() == Status::invalid_argument);
  REQUIRE(make("expected_attention", {}));
}

TEST_CASE("any cache: it says by name what a step lacks", "[any][model_facts]") {
  const test::RandomModel model(shape);
  auto cache = make("sirllm", model.facts());
  REQUIRE(cache);
  REQUIRE(std::string(cache->missing(0, {})) == "surprise");
  REQUIRE(cache->missing(0, {}, Phase::turn) == nullptr);
  auto h2o = make("h2o", model.facts());
  REQUIRE(std::string(h2o->missing(0, {})) == "attention");
  REQUIRE(make("knorm", {})->missing(0, {}) == nullptr);
  auto fastgen = make("fastgen", {});
  REQUIRE(std::string(fastgen->missing(0, {})) == "queries");
  const float query = 0;
  StepInputs in{.queries = dense_view(&query, 1, 0, 1)};
  REQUIRE(std::string(fastgen->missing(0, in)) == "classes");
  const TokenClass kind = TokenClass::special;
  in.classes = {&kind, 1};
  REQUIRE(fastgen->missing(0, in) == nullptr);
}
