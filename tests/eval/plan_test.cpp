#include <catch2/catch.hpp>

#include <eval/error.hpp>
#include <eval/plan.hpp>
#include <kvcondense/retrieve/blocks/step_reads.hpp>
#include <kvcondense/retrieve/sparq.hpp>
#include <support/oracle.hpp>

using namespace eval;
namespace cost = kvcondense::cost;

namespace {

const std::string tinylm = KVCONDENSE_SOURCE_DIR "/examples/models/tinylm";

/// The cells of the row that begins with `name`, split where two blanks are.
std::vector<std::string> row(const std::string& table, const std::string& name) {
  std::istringstream lines(table);
  for (std::string line; std::getline(lines, line);) {
    if (!line.starts_with(name)) continue;
    std::vector<std::string> cells;
    for (std::size_t at = name.size(); at < line.size();) {
      const std::size_t from = line.find_first_not_of(' ', at);
      if (from == std::string::npos) break;
      at = std::min(line.find("  ", from), line.size());
      cells.push_back(line.substr(from, at - from));
    }
    return cells;
  }
  return {};
}

Options asked(const std::string& shape, const std::string& gpu) {
  Options o;
  o.plan.model_shape = shape, o.plan.gpu = gpu;
  return o;
}

}  // namespace

TEST_CASE("plan: shapes by name, by file and by numbers", "[eval][plan]") {
  CHECK(model_shape("llama-3-8b").kv_heads == 8);
  const cost::Model tiny = model_shape(tinylm);
  CHECK(tiny.layers == 4);
  CHECK(tiny.tied);
  CHECK(tiny.parameters() == 2016960.0);
  const cost::Model m = model_shape("layers=4, hidden=192,intermediate=512, q_heads=6, kv_heads=2, head_dim=64, vocab=256, tied=1");
  CHECK(m.parameters() == tiny.parameters());
  CHECK_THROWS_WITH(model_shape("no-model"), Catch::Contains("llama-2-7b, llama-3-8b"));
  CHECK_THROWS_WITH(model_shape("layers=4, depth=3"), Catch::Contains("there is no 'depth'"));
  CHECK_THROWS_WITH(model_shape("layers=many"), Catch::Contains("expected name=number"));
  CHECK_THROWS_WITH(model_shape("layers=4"), Catch::Contains("whole numbers above 0"));
  CHECK_THROWS_WITH(model_shape("layers=4.5, hidden=192, intermediate=512, q_heads=6, kv_heads=2, head_dim=64, vocab=256"),
                    Catch::Contains("whole numbers above 0"));
}

TEST_CASE("plan: devices by name and by numbers", "[eval][plan]") {
  CHECK(device_of("a100-80g").memory == 80e9);
  CHECK(device_of("flops=312e12, bandwidth=2e12, memory=80e9, link=20e9").ridge() == 156.0);
  CHECK_THROWS_WITH(device_of("b1"), Catch::Contains("a6000"));
  CHECK_THROWS_WITH(device_of("flops=312e12"), Catch::Contains("above 0"));
  CHECK_THROWS_WITH(device_of("speed=1"), Catch::Contains("there is no 'speed'"));
}

TEST_CASE("plan: what a recipe holds is what its cache holds", "[eval][plan]") {
  cost::Model m = model_shape("llama-3-8b");
  m.layers = 3;
  CHECK(cache_factors("exact", m, 4096).held == Approx(1.0).epsilon(0.03));
  CHECK(cache_factors("kivi2", m, 4096).held < 0.25);
  CHECK(cache_factors("kivi2", m, 4096).held > 0.125);
  const double snapkv = cache_factors("snapkv(tokens=512, window=16)", m, 4096).held;
  CHECK(snapkv > 512.0 / 4096);  // tables remember the prompt
  CHECK(snapkv < 512.0 / 4096 * 1.4);
  CHECK(cache_factors("h2o(heavy=256, recent=256) + int8", m, 4096).held < 0.12);
  CHECK(cache_factors("sirllm(recent=100, memory=200)", m, 2048).held < 0.3);
  CHECK(cache_factors("expected_attention(keep=20%)", m, 2048).held < 0.3);
  // A retrieval stage holds everything and reads a part.
  cost::Model deep = m;
  deep.layers = 16;
  const CacheFactors quest = cache_factors("quest(tokens=256)", deep, 4096);
  CHECK(quest.held > 1.0);
  CHECK(quest.read < 0.4);  // its first layers read everything
  CHECK(quest.read > 256.0 / 4096);
  // The query heads of a group read the channels of each, and pages that each chose: what the blocks say.
  cost::Model one = m;
  one.layers = 1;
  const double dense = 4096.0 * 4 * 128;
  const auto sparq = kvcondense::retrieve::step_reads(kvcondense::retrieve::SparQ{.channels = 16, .tokens = 64}, {.q_heads = 4, .head_dim = 128}, 4096);
  const double read = cache_factors("sparq(channels=16, tokens=64)", one, 4096).read;
  CHECK(read >= sparq.least(512) / dense * 0.99);
  CHECK(read <= sparq.most(512) / dense * 1.01);
  CHECK(read > 4 * 16 / 256.0);
  one.q_heads = one.kv_heads;
  CHECK(cache_factors("sparq(channels=16, tokens=64)", one, 4096).read < 0.1);
  CHECK(cache_factors("kivi2", m, 2048).read == cache_factors("kivi2", m, 2048).held);
  CHECK_THROWS_WITH(cache_factors("h3o", m, 4096), Catch::Contains("at byte 0"));
  CHECK_THROWS_WITH(cache_factors("dms", m, 4096), Catch::Contains("--of-16-bit"));
  m.head_dim = 512;
  CHECK_THROWS_WITH(cache_factors("exact", m, 4096), Catch::Contains("512"));
}

TEST_CASE("plan: the worked case of the deployment model, with and without a recipe", "[eval][plan]") {
  Options o = asked("yi-34b", "flops=312e12, bandwidth=2e12, memory=80e9, link=20e9");
  o.context = 4096;
  o.plan.of_16_bit = 0.25;
  const std::string text = plan(o);
  CAPTURE(text);
  // 34.39e9 parameters instead of the 34e9 that the worked case rounds to.
  CHECK(row(text, "cache of one user") == std::vector<std::string>{"1.01 GB", "252 MB"});
  CHECK(row(text, "users on 1 device") == std::vector<std::string>{"11", "44"});
  CHECK(row(text, "prefill") == std::vector<std::string>{"949 ms", "949 ms"});
  CHECK(row(text, "decode step, 1 user") == std::vector<std::string>{"34.9 ms", "34.5 ms"});
  CHECK(row(text, "change of users, out and in") == std::vector<std::string>{"101 ms", "25.2 ms"});
  for (const char* name : {"bytes of a decode step, 1 user", "tokens/s, all users", "dialogue of 3 rounds",
                           "FLOP per byte, decode attention", "decode attention, one layer",
                           "answer of 250 tokens, PFLOP equivalents", "tokens/s, cache on the host"}) {
    CAPTURE(name);
    const auto cells = row(text, name);
    REQUIRE(cells.size() == 2);
    CHECK(cells[0] != cells[1]);
  }
  o.plan.devices = 2;
  CHECK(row(plan(o), "users on 2 devices") == std::vector<std::string>{"90", "362"});
  o.plan.devices = 1, o.plan.weight_bits = 4;
  CHECK(row(plan(o), "users on 1 device") == std::vector<std::string>{"62", "249"});
  o.context = 50000, o.plan.weight_bits = 16;
  CHECK(row(plan(o), "users on 1 device") == std::vector<std::string>{"0", "3"});
  CHECK(row(plan(o), "tokens/s, all users")[0] == "-");
}

TEST_CASE("plan: every number of the request changes the answer", "[eval][plan]") {
  const Options o = asked("llama-3-8b", "a6000");
  const std::string text = plan(o);
  const auto differs = [&](auto change) {
    Options other = o;
    change(other);
    return plan(other) != text;
  };
  CHECK(differs([](Options& x) { x.context = 4096; }));
  CHECK(differs([](Options& x) { x.plan.generated = 100; }));
  CHECK(differs([](Options& x) { x.plan.rounds = 4; }));
  CHECK(differs([](Options& x) { x.plan.devices = 4; }));
  CHECK(differs([](Options& x) { x.plan.weight_bits = 8; }));
  CHECK(differs([](Options& x) { x.plan.on_chip = 8; }));
  CHECK(differs([](Options& x) { x.plan.gpu = "l40"; }));
  CHECK(differs([](Options& x) { x.plan.of_16_bit = 0.5; }));
  CHECK(differs([](Options& x) { x.recipes = {"int8"}; }));
}
