#include <catch2/catch.hpp>

#include <evict/driver.hpp>
#include <kvcondense/evict/sink_window.hpp>

using namespace kvcondense;
using namespace kvcondense::test;

TEST_CASE("sink_window: what a query sees and what stays equal the oracle at every token", "[evict][sink_window]") {
  const auto oracle = eviction_oracle("streaming_llm");
  const evict::SinkWindow policy{.recent = oracle["params"]["recent_size"], .sinks = oracle["params"]["start_size"]};
  auto d = drive({}, policy);
  for (const auto& step : oracle["trace"]) {
    REQUIRE(with_new(d.held, d.seen, 1)[0] == step["visible_tokens"].get<Ints>());
    REQUIRE(d.step(1, Phase::decode) == Status::ok);
    REQUIRE(d.held[0] == step["cache_after"].get<Ints>());
  }
}

TEST_CASE("sink_window: room is made before new tokens of a turn", "[evict][sink_window]") {
  const auto oracle = eviction_oracle("streaming_llm");
  const evict::SinkWindow policy{.recent = 3, .sinks = 2};
  for (const auto& c : oracle["evict_for_space"]) {
    auto d = drive({}, policy);
    REQUIRE(d.step(c["cached"], Phase::decode) == Status::ok);
    d.inputs.incoming = c["num_coming"];
    REQUIRE(d.step(0, Phase::turn) == Status::ok);
    REQUIRE(d.held[0] == c["kept"].get<Ints>());
  }
  for (index_t coming = 0; coming < 4; ++coming) {  // room enough: nothing leaves
    auto d = drive({}, policy);
    REQUIRE(d.step(5 - coming, Phase::decode) == Status::ok);
    d.inputs.incoming = coming;
    REQUIRE(d.step(0, Phase::turn) == Status::ok);
    REQUIRE(d.held[0].size() == at(5 - coming));
  }
}

TEST_CASE("sink_window: sizes out of range are refused", "[evict][sink_window]") {
  REQUIRE(evict::SinkWindow{.recent = 0}.validate({}) == Status::invalid_argument);
  REQUIRE(evict::SinkWindow{.sinks = -1}.validate({}) == Status::invalid_argument);
  REQUIRE(evict::SinkWindow{.recent = 1, .sinks = 0}.validate({}) == Status::ok);
}
