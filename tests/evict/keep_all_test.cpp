#include <catch2/catch.hpp>

#include <evict/driver.hpp>
#include <kvcondense/evict/keep_all.hpp>

using namespace kvcondense;
using namespace kvcondense::test;

TEST_CASE("keep_all: no step fires", "[evict][keep_all]") {
  auto d = drive({.kv_heads = 1}, evict::KeepAll{});
  for (const Phase phase : {Phase::prefill_chunk, Phase::prefill_end, Phase::decode}) {
    REQUIRE(d.step(40, phase) == Status::ok);
    REQUIRE(!d.fired);
  }
  REQUIRE(d.held[0].size() == 120);
  REQUIRE(evict::KeepAll{}.validate(d.shape) == Status::ok);
}
