#include <catch2/catch.hpp>

#include <eval/error.hpp>
#include <eval/sizing.hpp>

using namespace eval;

namespace {

/// The number behind the first '=' of a recipe.
double number_in(const std::string& recipe) { return std::stod(recipe.substr(recipe.find('=') + 1)); }

}  // namespace

TEST_CASE("sizing: holes are filled by expressions, parts and lists", "[eval][sizing]") {
  const Sizer tokens("h2o(heavy={tokens/2-4}, recent={tokens/2*2+1})", 100, nullptr);
  REQUIRE(tokens.settings() == 100);
  REQUIRE(tokens.filled(0) == "h2o(heavy=0, recent=1)");
  REQUIRE(tokens.filled(49) == "h2o(heavy=21, recent=51)");
  REQUIRE(Sizer("ratio(h2o, keep={part})", 8, nullptr).filled(3) == "ratio(h2o, keep=0.500000)");
  const Sizer list("a(x={8..24:8}, y={u|v|w})", 100, nullptr);
  REQUIRE(list.settings() == 3);
  REQUIRE(list.filled(2) == "a(x=24, y=w)");
}

TEST_CASE("sizing: what is no hole is named", "[eval][sizing]") {
  const auto [text, why] = GENERATE(table<std::string, std::string>({{"a(x={tokens)", "no '}' ends it"},
                                                                     {"a(x={slots})", "expected {tokens}"},
                                                                     {"a(x={tokens/0})", "expected {tokens}"},
                                                                     {"a(x={9..8})", "expected {tokens}"},
                                                                     {"a(x={tokens}, y={1|2})", "all holes of a recipe are one setting"},
                                                                     {"a(x={1|2|3}, y={1|2})", "all holes of a recipe are one setting"},
                                                                     {"a", "there is none"}}));
  REQUIRE_THROWS_WITH(Sizer(text, 100, nullptr), Catch::Contains(why));
}

TEST_CASE("sizing: the largest setting that fits, whatever the steps memory grows by", "[eval][sizing]") {
  int calls = 0;
  const double page = GENERATE(1.0, 16.0, 100.0);
  const MeasureBytes measure = [&](const std::string& r) {
    ++calls;
    return 7 + 0.5 * page * std::ceil(number_in(r) / page);
  };
  Sizer sizer("a(x={tokens})", 4096, measure);
  for (const double target : {60.0, 333.0, 1024.0, 2000.0}) {
    const SizedRecipe s = sizer.fit(target);
    CAPTURE(page, target, s.recipe);
    REQUIRE(s.reached);
    REQUIRE(s.note.empty());
    REQUIRE(s.bytes_per_token == measure(s.recipe));
    REQUIRE(s.bytes_per_token <= target);
    const double next = measure("=" + std::to_string(number_in(s.recipe) + 1));
    REQUIRE((next > target || s.bytes_per_token > 0.995 * target));
  }
  REQUIRE(calls < 4 * 20);
}

TEST_CASE("sizing: a list may go either way, and takes the largest cache that fits", "[eval][sizing]") {
  const auto bits = [](const std::string& r) { return 10 * number_in(r); };
  REQUIRE(Sizer("a(bits={1|2|4|8})", 64, bits).fit(50).recipe == "a(bits=4)");
  REQUIRE(Sizer("a(bits={8|4|2|1})", 64, bits).fit(50).recipe == "a(bits=4)");
  REQUIRE(Sizer("a(bits={8|4|2|1})", 64, bits).fit(20).setting == "3 of 4");
}

TEST_CASE("sizing: what cannot be reached is said", "[eval][sizing]") {
  Sizer sizer("a(x={tokens})", 100, [](const std::string& r) { return 40 + number_in(r); });
  const SizedRecipe small = sizer.fit(30);
  REQUIRE_FALSE(small.reached);
  REQUIRE(small.recipe == "a(x=1)");
  REQUIRE(small.note == "its smallest setting (tokens = 1) takes 41.0 bytes per token of 30.0");
  const SizedRecipe large = sizer.fit(300);
  REQUIRE_FALSE(large.reached);
  REQUIRE(large.recipe == "a(x=100)");
  REQUIRE(large.note == "its largest setting (tokens = 100) takes 140 bytes per token of 300");
}

TEST_CASE("sizing: settings that are refused are below the smallest", "[eval][sizing]") {
  const auto picky = [](const std::string& r) {
    if (number_in(r) < 33) throw Error("x is too small");
    return number_in(r);
  };
  Sizer sizer("a(x={tokens})", 100, picky);
  REQUIRE(sizer.fit(50).recipe == "a(x=50)");
  const SizedRecipe s = sizer.fit(20);
  REQUIRE_FALSE(s.reached);
  REQUIRE(s.recipe == "a(x=33)");
  REQUIRE_THROWS_WITH(Sizer("a(x={tokens})", 10, picky).fit(5), "x is too small (tokens = 10)");
}
