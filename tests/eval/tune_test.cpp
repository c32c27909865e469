#include <catch2/catch.hpp>
#include <set>

#include <eval/error.hpp>
#include <eval/sizing.hpp>
#include <eval/tune.hpp>
#include <kvcondense/any/builtin.hpp>
#include <kvcondense/any/recipe_text.hpp>

using namespace eval;

namespace {

const kvcondense::any::Registry& registry = kvcondense::any::builtin();

std::vector<Candidate> candidates(int n) {
  std::vector<Candidate> out;
  for (int i = 0; i < n; ++i) out.push_back(as_it_is("c" + std::to_string(i)));
  return out;
}

/// The number behind "c".
int number_of(const Candidate& c) { return std::stoi(c.text().substr(1)); }

/// Candidate i takes `bytes(i)` and loses `loss(i, rung)`.
template <class Bytes, class Loss>
Judge judged(double most, Bytes bytes, Loss loss) {
  return [=](const std::vector<Candidate>& all, index_t rung) {
    std::vector<Outcome> out;
    for (const Candidate& c : all) {
      const int i = number_of(c);
      out.push_back({"r" + std::to_string(i), "", bytes(i), bytes(i) <= most, static_cast<double>(loss(i, rung))});
    }
    return out;
  };
}

Options tiny() {
  Options o;
  o.model = KVCONDENSE_SOURCE_DIR "/examples/models/tinylm";
  o.recipes = {"sliding_window(window={tokens})", "kivi(bits={2|4|8}, group_size=32, residual_window=32)", "group_int(bits=4)", "dms", "keep_all"};
  o.context = 320, o.prefill = 288, o.windows = 2, o.documents = 0, o.rounds = 0, o.jobs = 1, o.quiet = true;
  o.tune.share = 50, o.tune.best = 2;
  return o;
}

}  // namespace

TEST_CASE("tune: halving keeps the best of every rung", "[eval][tune]") {
  std::vector<std::size_t> seen;
  const Judge judge = [&](const std::vector<Candidate>& all, index_t rung) {
    seen.push_back(all.size());
    // The first look misjudges by a little, and would never put 17 behind the first third.
    return judged(100, [](int) { return 50.0; }, [](int i, index_t r) { return std::abs(i - 17) + (r == 0 ? i % 3 : 0); })(all, rung);
  };
  const Search s = halve(candidates(90), 100, {.best = 4}, registry, judge);
  REQUIRE(seen == std::vector<std::size_t>{90, 30, 10});
  REQUIRE(s.tried == seen);
  REQUIRE(s.best.size() == 4);
  REQUIRE(s.best[0].outcome.recipe == "r17");
  REQUIRE(s.best[1].outcome.recipe == "r18");  // as good as 16, and before it since the first rung
  REQUIRE(s.best[2].outcome.recipe == "r16");
  REQUIRE(s.best[0].outcome.loss == 0);
}

TEST_CASE("tune: nothing above the bytes goes on, however good", "[eval][tune]") {
  const Search s = halve(candidates(30), 20, {}, registry, judged(20, [](int i) { return 1.0 * i; }, [](int i, index_t) { return -i; }));
  REQUIRE(s.best[0].outcome.recipe == "r20");
  REQUIRE(s.large == 9);
  for (const Finalist& f : s.best) REQUIRE(f.outcome.bytes_per_token <= 20);
}

TEST_CASE("tune: a knob that is turned to its default makes no other recipe", "[eval][tune]") {
  const Judge judge = [](const std::vector<Candidate>& all, index_t) {
    std::vector<Outcome> out;
    for (const Candidate& c : all) out.push_back({c.text(), "", 10, true, 0.5, number_of(c) < 2 ? "the same" : c.text()});
    return out;
  };
  const Search s = halve(candidates(3), 20, {}, registry, judge);
  REQUIRE(s.best.size() == 2);
  REQUIRE(s.best[0].outcome.recipe == "c0");
  REQUIRE(s.best[1].outcome.recipe == "c2");
}

TEST_CASE("tune: bytes that nothing reaches are an error that names the smallest", "[eval][tune]") {
  REQUIRE_THROWS_WITH(halve(candidates(9), 20, {}, registry, judged(20, [](int i) { return 40.0 - i; }, [](int, index_t) { return 0.0; })),
                      "no candidate takes at most 20.0 bytes per token; the smallest, r8, takes 32.0");
  const Judge refusing = [](const std::vector<Candidate>& all, index_t) { return std::vector<Outcome>(all.size(), {"", "needs gates", 0, false, 0}); };
  REQUIRE_THROWS_WITH(halve(candidates(2), 20, {}, registry, refusing), Catch::Contains("needs gates"));
}

TEST_CASE("tune: every candidate is a recipe, whatever stands in its holes", "[eval][tune]") {
  const std::vector<Candidate> all = all_candidates(registry);
  std::set<std::string> words;
  REQUIRE(all.size() > 200);
  for (const Candidate& c : all) {
    const std::string text = c.text();
    std::string filled = text;
    if (Sizer::has_hole(text)) {
      const Sizer sizer(text, 1024, nullptr);
      filled = sizer.filled(sizer.settings() / 2);
    }
    CAPTURE(text, filled);
    const auto read = kvcondense::any::parse(filled);
    INFO(read.message());
    REQUIRE(read);
    for (const Piece& p : c.stages) words.insert(p.word);
    for (const Candidate& t : turned(c, registry)) {
      REQUIRE(t.text() != text);
      if (!Sizer::has_hole(t.text())) REQUIRE(kvcondense::any::parse(t.text()));
    }
  }
  // Made from the registry: whatever evicts, merges, codes or reduces, and has a size.
  for (const char* word : {"snapkv", "h2o", "kvzip", "d2o", "tome", "kivi", "gear", "ggml", "pca", "online_pca", "ada", "hadamard"}) {
    CAPTURE(word);
    REQUIRE(words.count(word) == 1);
  }
}

TEST_CASE("tune: knobs of a candidate are turned one at a time, wrapped ones too", "[eval][tune]") {
  Piece ada = piece_of("ada", "floor=0.1");
  ada.inner.push_back(piece_of("snapkv", "tokens={tokens}, kernel=3"));
  std::vector<std::string> all;
  for (const Candidate& c : turned({{ada, piece_of("kivi", "bits=4")}}, registry)) all.push_back(c.text());
  const auto has = [&](const char* text) { return std::count(all.begin(), all.end(), text) == 1; };
  REQUIRE(has("ada(snapkv(tokens={tokens}, kernel=3), floor=0.5) + kivi(bits=4)"));
  REQUIRE(has("ada(snapkv(tokens={tokens}, kernel=15), floor=0.1) + kivi(bits=4)"));
  REQUIRE(has("ada(snapkv(tokens={tokens}, kernel=3, window=16), floor=0.1) + kivi(bits=4)"));
  REQUIRE(has("ada(snapkv(tokens={tokens}, kernel=3), floor=0.1) + kivi(bits=4, residual_window=16)"));
  REQUIRE_FALSE(has("ada(snapkv(tokens={tokens}, kernel=3), floor=0.1) + kivi(bits=4)"));
}

TEST_CASE("tune: on a model, within its bytes, and the same from the same seed", "[eval][tune]") {
  const Options o = tiny();
  const Tuned a = tune(o), b = tune(o);
  REQUIRE(a.bytes_per_token == 1024);
  REQUIRE(a.search.tried == std::vector<std::size_t>{5, 2, 2});
  REQUIRE(a.search.refused == 1);  // dms, which wants a gate
  REQUIRE(a.search.large == 1);    // keep_all
  REQUIRE(a.results.recipes.size() == 3);
  for (std::size_t i = 0; i < a.search.best.size(); ++i) {
    const RecipeResult& r = a.results.recipes[i + 1];
    CAPTURE(r.recipe);
    REQUIRE(r.recipe == a.search.best[i].outcome.recipe);
    REQUIRE(r.recipe.find('{') == std::string::npos);
    REQUIRE(r.bytes_per_token() <= a.bytes_per_token);
    REQUIRE(r.bytes_per_token() == a.search.best[i].outcome.bytes_per_token);
    REQUIRE(r.text.predictions == 2 * 32);
    REQUIRE(r.text.mean_kl() == a.search.best[i].outcome.loss);
    REQUIRE(r.mean_error() > 0);
  }
  REQUIRE(a.search.best[0].outcome.loss <= a.search.best[1].outcome.loss);
  nlohmann::ordered_json first = tuned_json(a), second = tuned_json(b);
  first.erase("seconds"), second.erase("seconds");
  REQUIRE(first == second);
  REQUIRE(first["tune"]["best"].size() == 2);
  REQUIRE(tuned_text(a).find("at most 1024.0 bytes per token, 50.0 % of 16 bits; candidates in each rung: 5, 2, 2") != std::string::npos);

  Options small = o;
  small.tune.share = 1;
  REQUIRE_THROWS_WITH(tune(small), Catch::Contains("no candidate takes at most 20.5 bytes per token; the smallest, "));

  Options misspelt = o;
  for (const auto& [text, why] : {std::pair("h2o(hevy={tokens})", "hevy"), std::pair("kivi(bits={2|4)", "no '}' ends it"), std::pair("h3o", "h3o")}) {
    misspelt.recipes = {"group_int(bits=4)", text};
    REQUIRE_THROWS_WITH(tune(misspelt), Catch::Contains(why));
  }
}

TEST_CASE("tune: its options", "[eval][tune]") {
  const auto parsed = [](std::vector<const char*> words) {
    words.insert(words.begin(), {"kvcondense-eval", "tune"});
    return parse_options(static_cast<int>(words.size()), words.data());
  };
  const Parsed p = parsed({"--model", "m", "--share", "25", "--best", "3"});
  REQUIRE(p.complaint.empty());
  REQUIRE(p.options.tuning);
  REQUIRE(p.options.tune.share == 25);
  REQUIRE(p.options.tune.best == 3);
  REQUIRE(p.options.context == 1024);
  REQUIRE(p.options.prefill == 960);
  REQUIRE(parsed({"--model", "m"}).complaint == "give --bytes-per-token B or --share PERCENT");
  REQUIRE(parsed({"--share", "25"}).complaint.find("give --model DIR or --qkv FILE") == 0);
  REQUIRE(parsed({"--model", "m", "--share", "25", "--bytes-per-token", "9"}).complaint.find("excludes") != std::string::npos);
  REQUIRE(parsed({"--qkv", "f", "--share", "25", "--windows", "3"}).complaint == "--windows belongs to --model, not to --qkv");
}
