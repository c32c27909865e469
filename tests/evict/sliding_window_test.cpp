#include <catch2/catch.hpp>

#include <evict/driver.hpp>
#include <kvcondense/evict/sliding_window.hpp>

using namespace kvcondense;
using namespace kvcondense::test;

TEST_CASE("sliding_window: a step leaves the last window tokens", "[evict][sliding_window]") {
  const auto oracle = eviction_oracle("sliding_window");
  auto d = drive({.q_heads = 2, .kv_heads = 2},
                 evict::SlidingWindow{.window = oracle["params"]["window"]});
  for (index_t t = 0; t < 9; ++t) {
    REQUIRE(d.step(1, t == 0 ? Phase::prefill_end : Phase::decode) == Status::ok);
    if (const auto visible = oracle["visible"].find(std::to_string(t)); visible != oracle["visible"].end())
      for (const auto& head : d.held) REQUIRE(head == visible->get<Ints>());
  }
}

TEST_CASE("sliding_window: chunks of a prefill are trimmed too", "[evict][sliding_window]") {
  auto d = drive({}, evict::SlidingWindow{.window = 3});
  REQUIRE(d.step(10, Phase::prefill_chunk) == Status::ok);
  REQUIRE(d.held[0] == Ints{7, 8, 9});
}

TEST_CASE("sliding_window: a window that is not positive is refused", "[evict][sliding_window]") {
  REQUIRE(evict::SlidingWindow{.window = 0}.validate({}) == Status::invalid_argument);
  REQUIRE(evict::SlidingWindow{.window = 1}.validate({}) == Status::ok);
}
