#include <catch2/catch.hpp>

#include <eval/error.hpp>
#include <eval/evaluate.hpp>
#include <eval/heads_file.hpp>

#include "dump_files.hpp"

using namespace eval;
using eval::test::TempFile;

namespace {

/// A file of one layer of two heads with something put in.
std::string file(const std::string& fields) {
  return R"({"format": "kvcondense-heads", "version": 1, "layers": 1, "kv_heads": 2)" + (fields.empty() ? "" : ", " + fields) + "}";
}

std::string complaint(const std::string& text) {
  try {
    (void)parse_heads(text, "f.json");
  } catch (const Error& e) {
    return e.what();
  }
  return {};
}

HeadsFile some() {
  HeadsFile h;
  h.layers = 2, h.kv_heads = 3;
  h.gates = {0, 0.25f, 1, 0.1f, 0.3f, 0.7f};
  h.shares = {0.5f, 0.1f, 0.1f, 0.1f, 0.1f, 0.1f};
  h.variance = {0.5f, 0.125f};
  return h;
}

}  // namespace

TEST_CASE("heads file: what is written is read, and fills the facts", "[eval][heads_file]") {
  const HeadsFile h = some();
  const HeadsFile back = parse_heads(heads_text(h, {{"source", "m"}, {"steps", 7}}), "f");
  REQUIRE((back.layers == 2 && back.kv_heads == 3));
  REQUIRE(back.gates == h.gates);
  REQUIRE(back.shares == h.shares);
  REQUIRE(back.variance == h.variance);
  REQUIRE((back.induction.empty() && back.echo.empty() && back.evicted.empty()));
  kvcondense::any::ModelFacts facts;
  facts.rope.base = 5;
  facts = back.add_to(facts);
  REQUIRE(facts.rope.base == 5);
  REQUIRE(facts.gates(1, 2) == 0.7f);
  REQUIRE(facts.shares.layers == 2);
  REQUIRE(facts.variance(1) == 0.125f);
  REQUIRE((facts.induction.empty() && facts.echo.empty() && facts.evicted.empty()));
}

TEST_CASE("heads file: what is wrong is said with its place", "[eval][heads_file]") {
  REQUIRE(complaint(file(R"("gates": [[0.5, 1]])")).empty());
  REQUIRE(complaint(file(R"("made": {"any": ["thing"]}, "evicted": [0.5])")).empty());
  const auto says = [](const std::string& text, const std::string& part) {
    const std::string said = complaint(text);
    INFO(text << "\n" << said);
    REQUIRE(said.starts_with("f.json: "));
    REQUIRE(said.find(part) != std::string::npos);
    REQUIRE(said.find('\n') == std::string::npos);
  };
  says("", "f.json");
  says("[[0.5, 1]]", "not a file of head tables");
  says(R"({"gates": [[0.5, 1]]})", "not a file of head tables");
  says(R"({"format": "kvcondense-eval", "version": 1})", "not a file of head tables");
  says(R"({"format": "kvcondense-heads", "version": 2, "layers": 1, "kv_heads": 2})", "version");
  says(R"({"format": "kvcondense-heads", "version": 1, "kv_heads": 2})", "layers");
  for (const char* bad : {"0", "-1", "1.5", "\"2\"", "99999999", "null"}) {
    const std::string text = R"({"format": "kvcondense-heads", "version": 1, "layers": 1, "kv_heads": )" + std::string(bad) + "}";
    says(text, "kv_heads");
  }
  says(file(""), "no table");
  says(file(R"("made": {})"), "no table");
  says(file(R"("gate": [[0.5, 1]])"), "no table is called 'gate'");
  says(file(R"("gates": [[0.5, 1, 2]])"), "gates[0] is not a list of 2 numbers");
  says(file(R"("gates": [[0.5, 1], [0.5, 1]])"), "gates is not a list of 1 layers");
  says(file(R"("gates": [0.5])"), "gates[0] is not a list of 2 numbers");
  says(file(R"("gates": {"0": [0.5, 1]})"), "gates");
  says(file(R"("evicted": [[0.5]])"), "evicted[0] is no number");
  says(file(R"("gates": [[0.5, "x"]])"), "gates[0][1] is no number");
  says(file(R"("gates": [[0.5, null]])"), "gates[0][1] is no number");
  says(file(R"("gates": [[0.5, NaN]])"), "f.json");
  says(file(R"("gates": [[0.5, 1e39]])"), "gates[0][1] is too large");
  says(file(R"("gates": [[0.5, 1e999]])"), "f.json");
  says(file(R"("gates": [[0.5, 1]], "gates": [[0.5, 1]])"), "f.json");
  says(file(R"("made": [[[[[[[[[]]]]]]]]], "gates": [[0.5, 1]])"), "f.json");
}

TEST_CASE("heads file: a file of another model, or none, is refused", "[eval][heads_file]") {
  const TempFile temp("heads.json");
  OutputFile(temp.path()).write(heads_text(some(), {}));
  REQUIRE(read_heads(temp.path(), {.layers = 2, .q_heads = 6, .kv_heads = 3}).gates.size() == 6);
  REQUIRE_THROWS_WITH(read_heads(temp.path(), {.layers = 4, .q_heads = 6, .kv_heads = 2}),
                      Catch::Contains("made for 2 layers of 3 KV heads") && Catch::Contains("has 4 of 2"));
  REQUIRE_THROWS_WITH(read_heads(temp.path() + ".not", {}), Catch::Contains("no such file"));
}

TEST_CASE("heads file: a recipe that needs tables says how to give them, and runs with them", "[eval][heads_file]") {
  const TempFile qkv("heads.safetensors"), temp("heads-of-random.json");
  const CacheShape shape{.layers = 2, .q_heads = 6, .kv_heads = 3, .head_dim = 16};
  test::write_qkv(test::random_recording(96, shape), qkv.path());
  HeadsFile h = some();
  OutputFile(temp.path()).write(heads_text(h, {}));
  Options o;
  o.qkv = qkv.path();
  o.recipes = {"duo_attention(sinks=2, recent=14)", "head_table(knorm(tokens=20, recent=4))", "variance(knorm(tokens=20, recent=4))"};
  o.rounds = 0, o.jobs = 1, o.quiet = true;
  REQUIRE_THROWS_WITH(evaluate(o), Catch::Contains("ModelFacts::gates") && Catch::Contains("--heads"));
  o.heads = temp.path();
  const Results r = evaluate(o);
  REQUIRE(r.setting.heads == temp.path());
  REQUIRE(r.recipes[1].slots == std::vector<std::vector<index_t>>{{16, 16, 96}, {16, 96, 96}});
  REQUIRE(r.recipes[2].report.budget_asked == 2 * 3 * 20);
  REQUIRE(r.recipes[3].report.budget_asked == 2 * 3 * 20);
  REQUIRE(r.recipes[2].slots[0][0] > r.recipes[2].slots[0][1]);
  REQUIRE(r.recipes[3].slots[0][0] < r.recipes[3].slots[1][0]);
}
