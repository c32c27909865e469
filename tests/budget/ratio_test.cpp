#include <evict/properties.hpp>
#include <kvcondense/budget/ratio.hpp>
#include <kvcondense/evict/h2o.hpp>
#include <kvcondense/evict/sink_window.hpp>
#include <kvcondense/evict/snapkv.hpp>
#include <kvcondense/evict/tova.hpp>

using namespace kvcondense;
using namespace kvcondense::test;

TEST_CASE("ratio: a product just below an integer counts as that integer", "[budget][ratio]") {
  const auto oracle = eviction_oracle("rounding_pitfalls");
  for (const auto& c : oracle["cases"]) {
    auto d = drive({}, budget::Ratio{evict::Tova{}, 1.0 - c["ratio"].get<double>()});
    REQUIRE(d.step(c["n"], Phase::prefill_end, [](index_t, index_t) { return 0.1; }) == Status::ok);
    REQUIRE(static_cast<index_t>(d.held[0].size()) == c["intended"].get<index_t>());
  }
}

TEST_CASE("ratio: never below min_keep, never above what was seen", "[budget][ratio]") {
  for (index_t n = 0; n < 70; ++n)
    for (const double keep : {1e-9, 0.1, 1.0 / 3.0, 0.5, 0.999, 1.0}) {
      const index_t b = evict::Ratio{keep, 2}.of(n);
      REQUIRE(b >= std::min<index_t>(2, n));
      REQUIRE(b <= n);
      if (keep == 1.0) REQUIRE(b == n);
    }
}

TEST_CASE("ratio: firing at every step keeps the same part of all that was seen", "[budget][ratio]") {
  auto d = drive({}, budget::Ratio{evict::SinkWindow{.sinks = 2}, 0.25});
  for (index_t t = 1; t <= 200; ++t) {
    REQUIRE(d.step(1, Phase::decode) == Status::ok);
    REQUIRE(static_cast<index_t>(d.held[0].size()) == std::max(std::min<index_t>(t, 3), t / 4));
  }
}

TEST_CASE("ratio: keeps its promises", "[budget][ratio]") {
  check_promises(budget::Ratio{evict::SnapKV{.window = 8}, 0.08}, budget::Ratio{evict::SnapKV{.window = 8}, 1.0});
  check_promises(budget::Ratio{evict::H2O{.recent = 8}, 0.08}, budget::Ratio{evict::H2O{.recent = 8}, 1.0});
}

TEST_CASE("ratio: parts that are none are refused", "[budget][ratio]") {
  for (const double keep : {0.0, -0.5, 1.5, std::nan("")})
    REQUIRE(budget::Ratio{evict::Tova{}, keep}.validate({}) == Status::invalid_argument);
  REQUIRE(budget::Ratio{evict::Tova{}, 0.5, 0}.validate({}) == Status::invalid_argument);
  REQUIRE(budget::Ratio{evict::Tova{.tokens = 0}, 0.5}.validate({}) == Status::invalid_argument);
  REQUIRE(budget::Ratio{evict::Tova{}, 1.0}.validate({}) == Status::ok);
}
