#include <catch2/catch.hpp>
#include <vector>

#include <eval/options.hpp>
#include <eval/session.hpp>

using namespace eval;

namespace {

Parsed parse(std::vector<const char*> words) {
  words.insert(words.begin(), "kvcondense-eval");
  return parse_options(static_cast<int>(words.size()), words.data());
}

}  // namespace

TEST_CASE("options: what is given arrives", "[eval][options]") {
  const Parsed p =
      parse({"--model", "m", "--recipe", "h2o + kivi2", "--recipe", "int8", "--context", "64"});
  REQUIRE(p.complaint.empty());
  REQUIRE(p.options.model == "m");
  REQUIRE(p.options.recipes == std::vector<std::string>{"h2o + kivi2", "int8"});
  REQUIRE(p.options.context == 64);
  REQUIRE(p.options.command ==
          "kvcondense-eval --model m --recipe 'h2o + kivi2' --recipe int8 --context 64");
}

TEST_CASE("options: the demo needs nothing", "[eval][options]") {
  const Parsed p = parse({"demo", "--out", "o"});
  REQUIRE(p.complaint.empty());
  REQUIRE(p.options.model.ends_with("/examples/models/tinylm"));
  REQUIRE(p.options.model_name == "examples/models/tinylm");
  REQUIRE(p.options.command == "kvcondense-eval demo --out o");
  REQUIRE(parse({"demo", "--model", "m"}).options.model_name.empty());
  REQUIRE(p.options.plot == "o/demo.svg");
  REQUIRE(p.options.json == "o/demo.json");
}

TEST_CASE("options: plan needs a shape and a device, and no model", "[eval][options]") {
  const Parsed p = parse({"plan", "--model-shape", "llama-3-8b", "--gpu", "a6000", "--context", "131072", "--recipe", "kivi2",
                          "--of-16-bit", "0.1", "--devices", "2"});
  REQUIRE(p.complaint.empty());
  REQUIRE(p.options.planning);
  REQUIRE(p.options.plan.model_shape == "llama-3-8b");
  REQUIRE(p.options.context == 131072);
  REQUIRE(p.options.recipes == std::vector<std::string>{"kivi2"});
  REQUIRE(p.options.plan.of_16_bit == 0.1);
  REQUIRE(p.options.plan.devices == 2);
  REQUIRE(parse({"plan", "--help"}).help.find("--gpu") != std::string::npos);
  REQUIRE(!parse({"plan", "--gpu", "a6000"}).complaint.empty());
  REQUIRE(parse({"--context", "5", "plan", "--gpu", "a6000", "--model-shape", "x"}).complaint ==
          "--context: options of plan go behind it; plan --help lists them");
}

TEST_CASE("options: calibrate takes what a method of its own has, and nothing else", "[eval][options]") {
  const auto with = [](std::vector<const char*> more) {
    std::vector<const char*> words{"calibrate", "--model", "m", "--out", "o", "--method"};
    words.insert(words.end(), more.begin(), more.end());
    return parse(words);
  };
  const Parsed p = with({"commvq", "--stages", "5", "--words", "32", "--steps", "7"});
  REQUIRE(p.complaint.empty());
  REQUIRE(p.options.calibrate);
  REQUIRE((p.options.calibration.stages == 5 && p.options.calibration.words == 32 && p.options.calibration.steps == 7));
  REQUIRE(with({"aquakv"}).complaint.empty());
  for (const char* option : {"--stages", "--words"})
    REQUIRE(with({"aquakv", option, "8"}).complaint == "--stages and --words belong to --method commvq");
  REQUIRE(!with({"commvq", "--words", "257"}).complaint.empty());
  REQUIRE(!with({"commvq", "--stages", "129"}).complaint.empty());
  const Parsed a = with({"a2ats", "--codes", "100", "--distance", "77", "--steps", "3"});
  REQUIRE(a.complaint.empty());
  REQUIRE((a.options.calibration.codes == 100 && a.options.calibration.distance == 77));
  const Parsed m = with({"magicpig", "--tables", "20", "--bits", "7", "--seed", "3"});
  REQUIRE(m.complaint.empty());
  REQUIRE((m.options.calibration.tables == 20 && m.options.calibration.bits == 7));
  for (const char* method : {"loki", "infinigen", "qfilters"}) {
    REQUIRE(with({method}).complaint.empty());
    REQUIRE(with({method, "--codes", "8"}).complaint == "--codes and --distance belong to --method a2ats");
    REQUIRE(with({method, "--bits", "8"}).complaint == "--tables and --bits belong to --method magicpig");
  }
  REQUIRE(with({"lorc", "--weighing", "plain"}).complaint == "--weighing belongs to --method weight_svd");
  REQUIRE(with({"lorc", "--paired"}).complaint == "--kv-heads, --paired and --checkpoint belong to --method kv_heads_svd");
  REQUIRE(with({"magicpig", "--windows", "4"}).complaint == "--windows does nothing beside --method magicpig: planes are random");
  REQUIRE(!with({"magicpig", "--bits", "17"}).complaint.empty());
  REQUIRE(!with({"magicpig", "--tables", "1"}).complaint.empty());
  REQUIRE(!with({"a2ats", "--codes", "65537"}).complaint.empty());
  REQUIRE(with({"nothing"}).complaint.find("commvq") != std::string::npos);
}

TEST_CASE("options: help is no complaint", "[eval][options]") {
  REQUIRE(parse({"--help"}).complaint.empty());
  REQUIRE(parse({"--help"}).help.find("--recipe") != std::string::npos);
  REQUIRE(parse({"demo", "--help"}).help.find("Usage: kvcondense-eval demo ") != std::string::npos);
}

TEST_CASE("options: a line of help is an option and its meaning", "[eval][options]") {
  const std::string help = parse({"--help"}).help;
  REQUIRE(help.find("--model DIR         Directory") != std::string::npos);
  REQUIRE(help.find("Excludes") == std::string::npos);
  REQUIRE(help.find("\n\n\n") == std::string::npos);
}

TEST_CASE("options: the largest seed is one", "[eval][options]") {
  const Parsed p = parse({"--model", "m", "--seed", "18446744073709551615"});
  REQUIRE(p.complaint.empty());
  REQUIRE(p.options.seed == 18446744073709551615u);
}

TEST_CASE("options: the version is no complaint", "[eval][options]") {
  REQUIRE(parse({"--version"}).complaint.empty());
  REQUIRE(parse({"--version"}).help.starts_with("kvcondense-eval "));
}

TEST_CASE("options: the reported command can be pasted into a shell", "[eval][options]") {
  const Parsed p = parse({"--model", "it's here", "--recipe", "a b"});
  REQUIRE(p.options.command == R"(kvcondense-eval --model 'it'\''s here' --recipe 'a b')");
}

TEST_CASE("options: what cannot be is said in one line", "[eval][options]") {
  using Words = std::vector<const char*>;
  const auto [words, complaint] = GENERATE(table<Words, std::string>({
      {Words{}, "give --model DIR or --qkv FILE (or --list, or the subcommand demo)"},
      {Words{"--bogus", "5"}, "unknown option --bogus; --help lists them all"},
      {Words{"bogus"}, "unexpected argument 'bogus'; --help says what is expected"},
      {Words{"--model"}, "--model needs DIR behind it"},
      {Words{"--model", "m", "--model", "n"}, "--model is given more than once"},
      {Words{"--model", "m", "--seed", "-1"},
       "--seed: expected a whole number from 0 to 18446744073709551615, not '-1'"},
      {Words{"--model", "m", "--seed", "18446744073709551616"},
       "--seed: expected a whole number from 0 to 18446744073709551615, not "
       "'18446744073709551616'"},
      {Words{"--model", "m", "--json", ""}, "--json: its value is empty"},
      {Words{"--model", "m", "--recall", "r", "--documents", "0"},
       "--recall and --documents 0 exclude each other"},
      {Words{"--model", "m", "--question", "9"}, "--question belongs to --ask inside or --ask later"},
      {Words{"--qkv", "f", "--ask", "later"}, "--ask belongs to --model, not to --qkv"},
      {Words{"--context", "64", "demo"},
       "--context: options of demo go behind it; demo --help lists them"},
      {Words{"--model", "m", "--qkv", "f"}, "--model excludes --qkv"},
      {Words{"--qkv", "f", "--text", "t"}, "--text belongs to --model, not to --qkv"},
      {Words{"--qkv", "f", "--windows", "2"}, "--windows belongs to --model, not to --qkv"},
      {Words{"--model", "m", "--dump-qkv", "f", "--recipe", "int8"},
       "--recipe does nothing beside --dump-qkv"},
      {Words{"--model", "m", "--json", "f", "--plot", "./x/../f"},
       "--json and --plot name the same file"},
      {Words{"--qkv", "f", "--dump", "f"}, "--qkv and --dump name the same file"},
      {Words{"--model", "m", "--context", "1"},
       "--context: expected a whole number from 2 to 4194304, not '1'"},
      {Words{"--model", "m", "--context", "1e3"},
       "--context: expected a whole number from 2 to 4194304, not '1e3'"},
      {Words{"--model", "m", "--context", "8", "--prefill", "8"},
       "--prefill 8 must be below --context 8"},
      {Words{"--model", "m", "--prefill", "8", "--last-pass", "8"},
       "--last-pass 8 must be below --prefill 8"},
  }));
  REQUIRE(parse(words).complaint == complaint);
}

TEST_CASE("default recipes: a cache of any length accepts them", "[eval][options]") {
  const index_t context = GENERATE(2, 16, 100, 2048, 100000);
  CAPTURE(context);
  for (const std::string& recipe : default_recipes(context))
    REQUIRE_NOTHROW(
        read_recipe(recipe, {.layers = 2, .q_heads = 6, .kv_heads = 2, .head_dim = 64}, {}));
}

TEST_CASE("recipes: a wrong one is refused with its byte", "[eval][options]") {
  REQUIRE_THROWS_WITH(
      read_recipe("h2o(hevy=3)", {}, {}),
      "recipe 'h2o(hevy=3)': at byte 4: h2o has no field 'hevy'; did you mean 'heavy'?");
}

TEST_CASE("options: identify-heads takes what it needs, behind its word", "[eval][options]") {
  const Parsed p = parse({"identify-heads", "--model", "m", "--out", "o.json", "--l1", "0.2", "--recent", "32"});
  REQUIRE(p.complaint.empty());
  REQUIRE(p.options.identify);
  REQUIRE(p.options.model == "m");
  REQUIRE(p.options.probe.out == "o.json");
  REQUIRE(p.options.probe.l1 == 0.2);
  REQUIRE(p.options.probe.recent == 32);
  REQUIRE(p.options.probe.sinks == 64);
  REQUIRE_FALSE(parse({"--model", "m", "--heads", "h.json"}).options.identify);
  REQUIRE(parse({"identify-heads", "--help"}).help.find("--probe N=0") != std::string::npos);
  const auto refused = [](std::vector<const char*> words, const char* part) {
    const std::string said = parse(std::move(words)).complaint;
    INFO(said);
    REQUIRE(said.find(part) != std::string::npos);
  };
  refused({"identify-heads", "--model", "m"}, "--out");
  refused({"identify-heads", "--out", "o"}, "--model");
  refused({"--model", "m", "identify-heads", "--out", "o"}, "--model");
  refused({"identify-heads", "--model", "m", "--out", "o", "--l1", "-1"}, "--l1");
  refused({"identify-heads", "--model", "m", "--out", "o", "--l1", "nan"}, "--l1");
  refused({"identify-heads", "--model", "m", "--out", "o", "--evict", "1.5"}, "--evict");
  refused({"identify-heads", "--model", "m", "--out", "o", "--repeats", "1"}, "--repeats");
  refused({"identify-heads", "--model", "m", "--out", "o", "--recipe", "h2o"}, "--recipe");
  refused({"identify-heads", "--model", "m", "--out", "t", "--text", "t"}, "same file");
  refused({"--model", "m", "--heads", "h", "--json", "h"}, "same file");
  refused({"--model", "m", "--heads", "h", "--dump-qkv", "q"}, "--heads");
}

TEST_CASE("options: suite needs nothing, and its window is mostly read at once", "[eval][options]") {
  const Parsed p = parse({"suite"});
  REQUIRE(p.complaint.empty());
  REQUIRE(p.options.run_suite);
  REQUIRE(p.options.model_name == "examples/models/tinylm");
  REQUIRE(p.options.context == 1024);
  REQUIRE(p.options.prefill == 960);
  REQUIRE(p.options.windows == 4);
  REQUIRE(p.options.documents == 0);
  const Options o = parse({"suite", "--share", "50", "--share", "12.5", "--recipes", "f", "--keys", "3", "--no-induction", "--context", "512"}).options;
  REQUIRE(o.suite.shares == std::vector<double>{50, 12.5});
  REQUIRE(o.suite.recipes_file == "f");
  REQUIRE(o.suite.keys == 3);
  REQUIRE_FALSE(o.suite.induction);
  REQUIRE(o.prefill == 480);
  REQUIRE(parse({"suite", "--qkv", "d"}).options.model.empty());
  const Parsed joined = parse({"suite", "--join", "a.json", "--join", "b.json", "--out", "d"});
  REQUIRE(joined.complaint.empty());
  REQUIRE(joined.options.suite.join == std::vector<std::string>{"a.json", "b.json"});
  REQUIRE(parse({"suite", "--join", "a.json", "--seed", "2"}).complaint.find("--seed does not go with --join") != std::string::npos);
  REQUIRE(parse({"suite", "--help"}).help.find("--share PERCENT") != std::string::npos);
  const auto refused = [](std::vector<const char*> words, const char* part) {
    const std::string said = parse(std::move(words)).complaint;
    INFO(said);
    REQUIRE(said.find(part) != std::string::npos);
  };
  refused({"suite", "--share", "0"}, "--share");
  refused({"suite", "--share", "half"}, "--share");
  refused({"suite", "--qkv", "d", "--needles", "1"}, "--needles belongs to --model");
  refused({"suite", "--ask", "later"}, "--ask");
  refused({"--model", "m", "suite"}, "--model");
}
