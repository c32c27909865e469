#include <catch2/catch.hpp>

#include <engine/sampling.hpp>
#include <engine/tokenizer.hpp>
#include <eval/induction_model.hpp>
#include <eval/session.hpp>
#include <eval/suite_run.hpp>

using namespace eval;

namespace {

constexpr auto no_tick = [](double) {};

InductionCounts induction(const std::string& recipe) {
  static const InductionModel model;
  const CacheShape shape = engine::cache_shape(model.model.config);
  return run_induction(model, make_session(read_recipe(recipe, shape, {}), shape), 1024, no_tick);
}

}  // namespace

TEST_CASE("suite: the written model answers everything from a full cache, and nothing that was dropped", "[eval][suite]") {
  const InductionCounts full = induction("keep_all");
  REQUIRE(full.all() == Counts{128, 128, 128, 128});
  for (const Counts& c : full.by_depth) REQUIRE(c.asked == 32);
  // Four values are near enough, and what was never seen is guessed as another model of these tokens guesses it.
  const InductionCounts sinks = induction("sink_window(sinks=4, recent=59)");
  REQUIRE(sinks.all().right == 18);
  const InductionCounts window = induction("sliding_window(window=128)");
  REQUIRE(window.by_depth[3].right == 32);
  REQUIRE(window.by_depth[0].right == 0);
}
