#include <algorithm>
#include <catch2/catch.hpp>
#include <cmath>
#include <sstream>

#include <eval/json_report.hpp>
#include <eval/list.hpp>
#include <eval/plot.hpp>
#include <eval/table.hpp>
#include <kvcondense/any/builtin.hpp>
#include <kvcondense/any/tools.hpp>

using namespace eval;

namespace {

RecipeResult one(const std::string& recipe, std::size_t bytes, double kl) {
  RecipeResult r;
  r.recipe = r.canonical = recipe;
  r.report.tokens = 100;
  r.report.exact_bytes = bytes;
  r.report.dense_bytes = 1000;
  r.slots = {{10, 20}, {30, 40}};
  r.layer_error = {0.1, 0.3};
  r.text.predictions = 4;
  r.text.agreements = 3;
  r.text.kl = 4 * kl;
  r.text.bits = 6;
  r.recall.add(10, 1000, true);
  r.recall.add(600, 1000, false);
  r.speed = {50, 2, 0.1};
  return r;
}

Results three() {
  Results r;
  r.setting.source = "model";
  r.setting.text = "text";
  r.setting.recall = "recall";
  r.setting.layers = 2;
  r.setting.windows = 1;
  r.setting.chunk = 64;
  r.setting.rounds = 3;
  r.recipes = {one("full cache", 1000, 0), one("a(x=1) + <b>", 500, 0.01),
               one("a(x=2) + <b>", 250, 0.2)};
  return r;
}

std::size_t count(const std::string& text, const std::string& what) {
  std::size_t n = 0;
  for (std::size_t at = text.find(what); at != std::string::npos; at = text.find(what, at + 1)) ++n;
  return n;
}

}  // namespace

TEST_CASE("short numbers: significant digits, no needless exponent", "[eval][report]") {
  const auto [value, text] = GENERATE(table<double, std::string>({{0, "0"},
                                                                  {1.5213, "1.5"},
                                                                  {0.0443, "0.044"},
                                                                  {0.00032, "0.00032"},
                                                                  {27e-6, "2.7e-05"},
                                                                  {123.4, "123"}}));
  REQUIRE(short_number(value, 2) == text);
}

TEST_CASE("table: one line per recipe, columns in line", "[eval][report]") {
  std::istringstream lines(table(three()));
  std::vector<std::string> all;
  for (std::string line; std::getline(lines, line);) all.push_back(line);
  REQUIRE(all.size() == 4);
  for (const std::string& line : all) REQUIRE(line.size() == all[0].size());
  REQUIRE(all[0] ==
          "recipe        B/token  of 16 bit     slots  attn error     KL  top-1 %  bits/byte  "
          "recall %  by depth %  tokens/s     of full");
  REQUIRE(all[2] ==
          "a(x=1) + <b>        5      0.500  10/25/40        0.20  0.010     75.0      1.500   "
          "100/-/0   -/0/-/100        50  2.00x +-5%");
}

TEST_CASE("table: without text, recall or timing their columns are gone", "[eval][report]") {
  Results r = three();
  r.setting.text = r.setting.recall = "";
  for (RecipeResult& x : r.recipes) x.speed = {};
  const std::string text = table(r);
  REQUIRE(text.substr(0, text.find('\n')) ==
          "recipe        B/token  of 16 bit     slots  attn error");
}

TEST_CASE("report: bytes are all that is held, dead ones once", "[eval][report]") {
  RecipeResult r = one("x", 600, 0);
  r.report.coded_bytes = 200;
  r.report.side_bytes = 90;
  r.report.fixed_bytes = 10;
  r.report.dead_bytes = 50;  // of the pages above
  REQUIRE(r.bytes_per_token() == 9.0);
  REQUIRE(to_json(three())["recipes"][0]["report"].contains("dead_bytes"));
}

TEST_CASE("legend: a line for every column, none for others", "[eval][report]") {
  Results r = three();
  const bool timed = GENERATE(true, false), text = GENERATE(true, false);
  if (!text) r.setting.text = r.setting.recall = "";
  if (!timed)
    for (RecipeResult& x : r.recipes) x.speed = {};
  const std::string all = legend(r);
  for (const char* column : {"B/token", "of 16 bit", "slots", "attn error"})
    REQUIRE(count(all, std::string("  ") + column) == 1);
  for (const char* column : {"KL", "top-1 %", "bits/byte", "recall %", "by depth %"})
    REQUIRE(count(all, std::string("  ") + column + " ") == (text ? 1 : 0));
  REQUIRE(count(all, "  tokens/s") == (timed ? 1 : 0));
}

TEST_CASE("heading: says what times were taken on, and when a model is out of its depth",
          "[eval][report]") {
  Results r = three();
  r.setting.context = 4096;
  r.setting.documents = 1;
  REQUIRE(count(heading(r), "timed on one thread of ") == 1);
  REQUIRE(count(heading(r), "1 document,") == 1);
  REQUIRE(count(heading(r), "note:") == 0);
  r.setting.max_positions = 2048;
  REQUIRE(count(heading(r), "note: the model was made for 2048 tokens") == 1);
  for (RecipeResult& x : r.recipes) x.speed = {};
  REQUIRE(count(heading(r), "timed") == 0);
}

TEST_CASE("json: every recipe with every number", "[eval][report]") {
  const auto j = to_json(three());
  REQUIRE(j["format"] == 1);
  REQUIRE_FALSE(j["host"]["compiler"].get<std::string>().empty());
  REQUIRE(j["recipes"].size() == 3);
  const auto& r = j["recipes"][1];
  REQUIRE(r["recipe"] == "a(x=1) + <b>");
  REQUIRE(r["bytes_per_token"] == 5.0);
  REQUIRE(r["ratio"] == 0.5);
  REQUIRE(r["attention_error"] == Approx(0.2));
  REQUIRE(r["attention_error_by_layer"].size() == 2);
  REQUIRE(r["kl_nats"] == Approx(0.01));
  REQUIRE(r["top1_agreement"] == 0.75);
  REQUIRE(r["bits_per_byte"] == 1.5);
  REQUIRE(r["recall"]["all"] == 0.5);
  REQUIRE(r["recall"]["by_distance"][2]["asked"] == 1);
  REQUIRE(r["recall"]["by_distance"][0]["below"] == 256);
  REQUIRE(r["recall"]["by_depth"].size() == 4);
  REQUIRE(r["recall"]["by_depth"][3]["right"] == 1);
  REQUIRE(r["slots_by_layer_and_head"][1][0] == 30);
  REQUIRE(r["speed"]["of_full"] == 2.0);
  REQUIRE(j["setting"]["text"] == "text");
  REQUIRE(j["setting"]["chunk"] == 64);
  REQUIRE(j["setting"]["rounds"] == 3);
}

TEST_CASE("short recipes: fields go, stages stay", "[eval][report]") {
  const auto [recipe, brief] = GENERATE(table<std::string, std::string>({
      {"kivi2", "kivi2"},
      {"h2o(heavy=256, recent=256)", "h2o"},
      {"ada(snapkv(tokens=512,window=32), floor=0.2) + kivi4(group=32)", "ada(snapkv) + kivi4"},
      {"mx(format=fp4)", "mx(fp4)"},
      {"twice(kivi4, bits=3)", "twice(kivi4, 3)"},
      {"h2o(heavy=9) + hadamard(group_int(bits=4, group=32))", "h2o + hadamard(group_int(4))"},
      {"smooth_attention(kivi(group_size=32, bits=2), least=1)", "smooth_attention(kivi(2))"},
      {"ratio(keep=0.25, snapkv(window=32)) + int8", "ratio(snapkv) + int8"},
  }));
  REQUIRE(short_recipe(recipe) == brief);
}

TEST_CASE("plot: a mark and a label for every recipe, text escaped", "[eval][report]") {
  const Results r = three();
  const std::string svg = plot_svg(r);
  REQUIRE(svg == plot_svg(r));
  REQUIRE(svg.starts_with("<svg "));
  REQUIRE(svg.ends_with("</svg>\n"));
  REQUIRE(count(svg, "<path ") == 4 + r.recipes.size());  // the legend has four kinds
  REQUIRE(count(svg, "a(x=1) + &lt;b&gt;") == 1);         // two recipes would share a shorter label
  REQUIRE(count(svg, "<b>") == 0);
  REQUIRE(count(svg, ">full cache<") == 1);
  REQUIRE(count(svg, "nan") == 0);
  REQUIRE(count(svg, "<text") == count(svg, "</text>"));
}

TEST_CASE("plot: few, equal or odd points still make a chart", "[eval][report]") {
  Results r = three();
  r.recipes.resize(1);
  REQUIRE(count(plot_svg(r), "nan") == 0);
  r.recipes.push_back(one("odd", 0, 1e300));
  r.recipes.push_back(one("no number", 500, std::nan("")));
  r.recipes.push_back(one("endless", 500, HUGE_VAL));
  const std::string svg = plot_svg(r);
  REQUIRE(count(svg, "nan") == 0);
  REQUIRE(count(svg, "inf") == 0);
  REQUIRE(count(svg, "class=\"grid\"") < 40);
  r.recipes.clear();
  REQUIRE(plot_svg(r).ends_with("</svg>\n"));
}

TEST_CASE("list: one line per method, its word first", "[eval][report]") {
  std::istringstream lines(list_methods());
  std::vector<kvcondense::any::Tool> methods;
  for (const kvcondense::any::Entry* e : kvcondense::any::builtin().entries())
    methods.push_back({e->word, e->room, e->summary, e->source, e->backends});
  for (const kvcondense::any::Tool& t : kvcondense::any::tools()) methods.push_back(t);
  std::size_t n = 0;
  for (std::string line; std::getline(lines, line); ++n) {
    CAPTURE(line);
    REQUIRE(n < methods.size());
    REQUIRE(line.starts_with(methods[n].word));
    for (const std::string_view part : {methods[n].summary, methods[n].backends, methods[n].source,
                                        std::string_view(to_string(methods[n].room))})
      REQUIRE(line.find(part) != std::string::npos);
  }
  REQUIRE(n == methods.size());
}

TEST_CASE("about: a method's fields with defaults", "[eval][report]") {
  const std::string text = describe_method("h2o");
  REQUIRE(text.starts_with("h2o: "));
  REQUIRE(text.find("heavy") != std::string::npos);
  REQUIRE(text.find("256") != std::string::npos);
  REQUIRE(describe_method("roofline").find("kvcondense/cost/roofline.hpp") != std::string::npos);
  REQUIRE(describe_method("kivi").find("\n  group_size or group ") != std::string::npos);
  const std::pair<const char*, const char*> unknown[] = {
      {"H2O", "h2o"}, {"StreamingLLM", "streaming_llm"}, {"Roofline", "roofline"}};
  for (const auto& [word, meant] : unknown)
    REQUIRE_THROWS_WITH(describe_method(word), std::string("unknown method '") + word +
                                                   "'; did you mean '" + meant +
                                                   "'? --list names them all");
  REQUIRE_THROWS_WITH(describe_method("something_else"),
                      "unknown method 'something_else'; --list names them all");
}

TEST_CASE("table: what a recipe reads has columns where one reads a part", "[eval][report]") {
  Results r = three();
  REQUIRE(table(r).find("mass %") == std::string::npos);
  REQUIRE(legend(r).find("mass %") == std::string::npos);
  REQUIRE_FALSE(to_json(r)["recipes"][1].contains("read"));
  r.recipes[1].reads = {2, 0.5, 1.8};
  REQUIRE(table(r).find("read %") != std::string::npos);
  REQUIRE(table(r).find("25.0") != std::string::npos);
  REQUIRE(table(r).find("90.0") != std::string::npos);
  REQUIRE(legend(r).find("mass %") != std::string::npos);
  REQUIRE(to_json(r)["recipes"][1]["read"]["mass_share"].get<double>() == Approx(0.9));
  REQUIRE_FALSE(to_json(r)["recipes"][0].contains("read"));
}
