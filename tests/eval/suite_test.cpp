#include <catch2/catch.hpp>
#include <fstream>
#include <set>
#include <sstream>

#include <engine/tokenizer.hpp>
#include <eval/error.hpp>
#include <eval/induction_model.hpp>
#include <eval/sizing.hpp>
#include <eval/suite_join.hpp>
#include <eval/suite_plot.hpp>
#include <eval/suite_rank.hpp>
#include <eval/suite_report.hpp>
#include <kvcondense/any/builtin.hpp>

#include "dump_files.hpp"

using namespace eval;
using eval::test::TempFile;

namespace {

constexpr auto no_tick = [](double) {};

InductionCounts induction(const std::string& recipe) {
  static const InductionModel model;
  const CacheShape shape = engine::cache_shape(model.model.config);
  return run_induction(model, make_session(read_recipe(recipe, shape, {}), shape), 1024, no_tick);
}

/// The shipped model and few short documents.
Options small(std::vector<std::string> recipes) {
  Options o;
  o.model = KVCONDENSE_SOURCE_DIR "/examples/models/tinylm";
  o.recipes = std::move(recipes);
  o.context = 384, o.prefill = 360, o.windows = 1, o.documents = 0, o.rounds = 0, o.jobs = 1;
  o.quiet = true;
  o.suite.shares = {50};
  o.suite.needles = 1, o.suite.depths = 2, o.suite.lengths = 1, o.suite.dialogues = 1, o.suite.keys = 3;
  o.suite.plans = 1, o.suite.lines = 4, o.suite.texts = 1, o.suite.continued = 8;
  o.suite.induction = false;
  return o;
}

std::string numbers(SuiteResults results) {
  results.seconds = 0;
  return suite_json(results).dump();
}

std::size_t count(const std::string& text, const std::string& what) {
  std::size_t n = 0;
  for (std::size_t at = text.find(what); at != std::string::npos; at = text.find(what, at + 1)) ++n;
  return n;
}

/// Every element that is opened is closed, in order.
bool well_formed(const std::string& svg) {
  std::vector<std::string> open;
  for (std::size_t at = svg.find('<'); at != std::string::npos; at = svg.find('<', at + 1)) {
    const std::size_t end = svg.find('>', at);
    if (end == std::string::npos || svg.find('<', at + 1) < end) return false;
    const std::string inside = svg.substr(at + 1, end - at - 1);
    if (inside.starts_with('/')) {
      if (open.empty() || open.back() != inside.substr(1)) return false;
      open.pop_back();
    } else if (!inside.ends_with('/')) {
      open.push_back(inside.substr(0, inside.find(' ')));
    }
  }
  return open.empty();
}

}  // namespace

TEST_CASE("suite: the written model answers everything from a full cache, and nothing that was dropped", "[eval][suite]") {
  const InductionCounts full = induction("keep_all");
  REQUIRE(full.all() == Counts{128, 128, 128, 128});
  for (const Counts& c : full.by_depth) REQUIRE(c.asked == 32);
  // As many as the paper model of tests/retrieve answers with the same tokens left.
  REQUIRE(induction("sink_window(sinks=4, recent=59)").all().right == 18);
  const InductionCounts window = induction("sliding_window(window=128)");
  REQUIRE(window.by_depth[3].right == 32);
  REQUIRE(window.by_depth[0].right == 0);
}

TEST_CASE("suite: documents hold their values where they should", "[eval][suite]") {
  std::string text;
  for (int i = 0; i < 64; ++i) text += "  this line speaks of word" + std::string(1, static_cast<char>('a' + i % 26)) + std::string(1, static_cast<char>('a' + i / 26)) + "\n";
  TextMaker maker(text, 7), again(text, 7), other(text, 8);
  const Haystack h = maker.haystack(900, {0.1, 0.5, 0.9});
  REQUIRE(h.text.size() <= 900);
  REQUIRE(h.text.size() > 800);
  REQUIRE(h.needles.size() == 3);
  for (std::size_t i = 0; i < 3; ++i) {
    const Needle& n = h.needles[i];
    REQUIRE(h.text.substr(static_cast<std::size_t>(n.at), 4) == n.value);
    REQUIRE(count(h.text, n.definition()) == 1);
    REQUIRE(static_cast<double>(n.at) / 900 == Approx(0.1 + 0.4 * static_cast<double>(i)).margin(0.12));
  }
  REQUIRE(again.haystack(900, {0.1, 0.5, 0.9}).text == h.text);
  REQUIRE(other.haystack(900, {0.1, 0.5, 0.9}).text != h.text);
  REQUIRE_THROWS_WITH(maker.haystack(40, {0.1, 0.5, 0.9}), Catch::Contains("has no room for 3 values"));
  REQUIRE_THROWS_WITH(TextMaker("short", 1), Catch::Contains("documents for recall need 32 of both"));
}

TEST_CASE("suite: every task is counted, and the same seed gives the same numbers on any number of threads", "[eval][suite]") {
  Options o = small({"sink_window(sinks=4, recent={tokens-4})"});
  const SuiteResults one = run_suite(o);
  REQUIRE(one.rows.size() == 2);
  REQUIRE(one.left_out.empty());
  const SuiteRow &full = one.rows[0], &window = one.rows[1];
  REQUIRE(full.needles.all() == Counts{2, 2, 8, 8});
  REQUIRE(full.life.of_requests() == Counts{3, 3, 12, 12});
  REQUIRE(full.life.of_turns().asked == 3);
  REQUIRE(full.life.snapshot_bytes > 0);
  REQUIRE(full.plan.all().asked == 4);
  for (const Counts& c : full.plan.by_quarter) REQUIRE(c.asked == 1);
  REQUIRE(full.continuation.same == 8);
  REQUIRE(full.result.text.kl == 0.0);
  // Half of the bytes: the oldest value of the longest document is gone.
  REQUIRE(window.share == 50);
  REQUIRE(window.result.report.ratio() <= 0.5);
  REQUIRE(window.result.report.ratio() > 0.3);
  REQUIRE(window.needles.cells[0][0] != full.needles.cells[0][0]);
  REQUIRE(window.life.of_requests().right < 3);
  REQUIRE(window.result.text.kl > 0.0);
  REQUIRE(window.family == "evict");
  o.jobs = 3;
  REQUIRE(numbers(run_suite(o)) == numbers(one));
  o.seed = 2, o.suite.dialogues = o.suite.plans = o.suite.texts = 0;
  REQUIRE(run_suite(o).rows[0].result.text.bits != full.result.text.bits);
  for (const Picture& p : suite_pictures(one)) {
    CAPTURE(p.file);
    REQUIRE(p.svg.starts_with("<svg "));
    REQUIRE(well_formed(p.svg));
    REQUIRE(count(p.svg, "nan") == 0);
    REQUIRE(count(p.svg, "prefers-color-scheme") == 1);
    REQUIRE(count(p.svg, "sink_window") > 0);
  }
  REQUIRE(suite_pictures(one).size() == 3);
  const std::string md = suite_markdown(one, {"a.svg"});
  REQUIRE(count(md, "\n| ") == 3);
  REQUIRE(md.find("![a](a.svg)") != std::string::npos);

  // What was written says the same when it is read again, and joined with itself; another run is refused.
  const auto written = suite_json(one);
  const SuiteResults again = read_suite(written, "a"), both = join_suites({again, again}, {"a", "b"});
  REQUIRE(suite_markdown(again, {"a.svg"}) == md);
  REQUIRE(suite_json(again) == written);
  REQUIRE(suite_json(both)["recipes"] == written["recipes"]);
  REQUIRE(both.rows.size() == 2);
  REQUIRE(both.setting.command == one.setting.command + "\n" + one.setting.command);
  const auto pictures = suite_pictures(one), pictures_again = suite_pictures(again);
  REQUIRE(pictures.size() == pictures_again.size());
  for (std::size_t i = 0; i < pictures.size(); ++i) REQUIRE(pictures[i].svg == pictures_again[i].svg);
  SuiteResults other = again;
  other.rows[1].share = 25;
  REQUIRE(join_suites({again, other}, {"a", "b"}).rows.size() == 3);
  other.setting.seed = 2;
  REQUIRE_THROWS_WITH(join_suites({again, other}, {"a", "b"}), "b: of another run than a: seed differs");
  auto older = written;
  older["version"] = "0.0.1", older["host"]["processor"] = "another";
  REQUIRE_THROWS_WITH(join_suites({again, read_suite(older, "b")}, {"a", "b"}), "b: of another run than a: version differs");
  older["version"] = written["version"];
  REQUIRE(join_suites({again, read_suite(older, "b")}, {"a", "b"}).rows.size() == 2);  // no times, so any machine
  older["setting"]["rounds"] = 1;
  REQUIRE_THROWS_WITH(join_suites({read_suite(older, "b"), again}, {"b", "a"}), Catch::Contains(" differs"));
  auto broken = written;
  broken["recipes"][1].erase("report");
  REQUIRE_THROWS_WITH(read_suite(broken, "a"), Catch::StartsWith("a: not what suite writes: ") && Catch::Contains("report"));
  REQUIRE_THROWS_WITH(read_suite({{"tool", "another"}}, "a"), "a: no suite.json");
  broken = written;
  broken["recipes"][1]["long_answer"]["by_quarter"].erase(0);
  REQUIRE_THROWS_WITH(read_suite(broken, "a"), "a: 3 parts where there are 4");
}

TEST_CASE("suite: the best for their bytes come first in the tables", "[eval][suite]") {
  SuiteResults r;
  r.setting.text = "a text";
  const auto add = [&](const char* name, std::size_t bytes, double kl, index_t right) {
    SuiteRow row;
    row.result.recipe = row.line = name;
    row.result.report.exact_bytes = bytes;
    row.result.text.predictions = 1, row.result.text.kl = kl;
    row.plan.by_quarter[0] = {4, right, 4, right};
    row.needles.cells = {{{2, 1, 2, 1}}};
    r.rows.push_back(row);
  };
  add("full cache", 100, 0, 4);
  add("large", 50, 0.1, 2);
  add("worse", 50, 0.2, 2);
  add("beaten", 40, 0.3, 0);
  add("small", 20, 0.3, 1);
  add("smallest", 10, 0.5, 2);
  REQUIRE(recall_of(r.rows[4]) == Approx((0.25 + 0.5) / 2));
  REQUIRE_FALSE(has_recall(SuiteRow{}));
  Rows all;
  for (const SuiteRow& row : r.rows) all.push_back(&row);
  const auto names = [](const Rows& rows) {
    std::string text;
    for (const SuiteRow* row : rows) text += row->line + " ";
    return text;
  };
  REQUIRE(names(front_of(all, [&](const SuiteRow& row) { return error_of(r, row); })) == "smallest small large full cache ");
  REQUIRE(names(front_of(all, [](const SuiteRow& row) { return -recall_of(row); })) == "smallest full cache ");
  REQUIRE(was_asked_all(r, r.rows[4]));
  // Who was not asked the hardest task is no winner.
  add("failed", 5, 0.01, 4);
  r.rows.back().needles.cells.clear();
  REQUIRE_FALSE(was_asked_all(r, r.rows.back()));
  r.lengths = {1024}, r.request.depths = 1;
  REQUIRE(suite_pictures(r).size() == 3);
  const std::string md = suite_markdown(r, {});
  const std::size_t least = md.find("## The least that predictions move"), whole = md.find("## All");
  REQUIRE(least < whole);
  REQUIRE(count(md.substr(least, whole - least), "`beaten`") == 0);
  REQUIRE(count(md.substr(least, whole - least), "`small`") == 1);
  REQUIRE(count(md.substr(least, whole - least), "`failed`") == 0);
  REQUIRE(count(md.substr(whole), "`beaten`") == 1);
}

TEST_CASE("suite: pages of fewer slots waste less of a short context", "[eval][suite]") {
  Options o = small({"sink_window(sinks=4, recent=36)"});
  o.suite.needles = o.suite.dialogues = o.suite.plans = o.suite.texts = 0;
  const SuiteResults large = run_suite(o);
  o.page_slots = 8;
  const SuiteResults fine = run_suite(o);
  REQUIRE(fine.rows[1].result.report.bytes() < large.rows[1].result.report.bytes());
  REQUIRE(fine.rows[1].result.text.kl == large.rows[1].result.text.kl);
  REQUIRE(suite_json(fine)["setting"]["page_slots"] == 8);
}

TEST_CASE("suite: what does not suit the cache is left out by name, what is misspelt is an error", "[eval][suite]") {
  Options o = small({"pca(keep={part}, value_keep={part})", "kivi(bits=4)", "sink_window(sinks=300, recent={tokens})"});
  o.suite.needles = o.suite.dialogues = o.suite.plans = o.suite.texts = 0;
  const SuiteResults r = run_suite(o);
  REQUIRE(r.rows.size() == 2);
  REQUIRE(r.left_out.size() == 2);
  REQUIRE(r.left_out[0].why.find("--bases FILE") != std::string::npos);
  INFO(r.left_out[1].why);
  REQUIRE(r.left_out[1].why.find("its smallest setting (tokens = 1)") != std::string::npos);
  REQUIRE(suite_markdown(r, {}).find("What did not run") != std::string::npos);
  REQUIRE(suite_pictures(r).size() == 2);
  o.recipes = {"h2o(heavi={tokens})"};
  REQUIRE_THROWS_WITH(run_suite(o), Catch::Contains("heavi"));
  o.recipes = {"pca"};
  REQUIRE_THROWS_WITH(run_suite(o), Catch::Contains("no recipe can run here"));
}

TEST_CASE("suite: lines of a file are families and recipes", "[eval][suite]") {
  const auto lines = parse_recipe_lines("# study\n\n evict: h2o(heavy={tokens}) # half\nmx(format={fp4|int8})\n", "f");
  REQUIRE(lines.size() == 2);
  REQUIRE(lines[0].family == "evict");
  REQUIRE(lines[0].recipe == "h2o(heavy={tokens})");
  REQUIRE(lines[1].family.empty());
  REQUIRE(rooms_of("ada(snapkv(tokens=9)) + kivi4") == "budget + quant");
  REQUIRE_THROWS_WITH(parse_recipe_lines("a: \n", "f"), "f: line 1: no recipe behind 'a:'");
  REQUIRE_THROWS_WITH(parse_recipe_lines("# only\n", "f"), "f: no recipe in it");
}

TEST_CASE("suite: the study names every method, and every line of it can be read", "[eval][suite]") {
  std::ifstream file(KVCONDENSE_SOURCE_DIR "/bench/eval/study.txt");
  std::stringstream text;
  text << file.rdbuf();
  const CacheShape shape{.layers = 4, .q_heads = 6, .kv_heads = 2, .head_dim = 64};
  std::string all;
  for (const RecipeLine& l : parse_recipe_lines(text.str(), "study.txt")) {
    CAPTURE(l.recipe);
    all += " " + l.recipe + " ";
    const std::string filled = Sizer::has_hole(l.recipe) ? [&] {
      const Sizer sizer(l.recipe, 1024, nullptr);
      return sizer.filled(sizer.settings() / 4);
    }() : l.recipe;
    try {
      (void)read_recipe(filled, shape, {});
    } catch (const Refused& refused) {  // arrays that a file gives, and nothing else
      REQUIRE(std::string(refused.what()).find("ModelFacts::") != std::string::npos);
    }
  }
  const std::set<std::string_view> nothing{"keep_all", "exact", "read_all", "absolute", "reindex"};
  for (const kvcondense::any::Entry* e : kvcondense::any::builtin().entries()) {
    CAPTURE(e->word);
    REQUIRE((nothing.contains(e->word) || all.find(" " + std::string(e->word)) != std::string::npos || all.find(std::string(e->word) + "(") != std::string::npos));
  }
}

TEST_CASE("suite: a dump is the attention's part of it", "[eval][suite]") {
  const TempFile dump("suite.safetensors");
  Options o = small({});
  o.context = 480, o.prefill = 400;
  o.dump_qkv = dump.path();
  OutputFile(dump.path()).write(dump_qkv(o));
  Options from = small({"sliding_window(window={tokens})", "kvzip"});
  from.model.clear(), from.qkv = dump.path(), from.prefill = 0;
  from.suite.shares = {50};
  const SuiteResults r = run_suite(from);
  REQUIRE(r.rows.size() == 2);
  REQUIRE(r.setting.prefill == 450);
  REQUIRE(r.rows[1].result.mean_error() > 0.0);
  REQUIRE(r.rows[1].result.report.ratio() <= 0.5);
  REQUIRE(r.left_out.size() == 1);
  REQUIRE(r.left_out[0].line == "kvzip");
  REQUIRE(suite_pictures(r).size() == 2);
  REQUIRE(suite_markdown(r, {}).find("| KL |") == std::string::npos);
}
