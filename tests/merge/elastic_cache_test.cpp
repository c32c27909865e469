#include <kvcondense/merge/elastic_cache.hpp>

#include "driver.hpp"

using namespace kvcondense;
using namespace kvcondense::test;

TEST_CASE("elastic_cache: the oracle's buckets and means", "[merge][elastic_cache]") {
  const auto o = merging_oracle("elastic_cache");
  const auto k = rows_of(o["inputs"]["K"]);
  auto d = merge_driver(one_head(2), merge::ElasticCache{.sinks = o["params"]["start"], .newest = o["params"]["protect_last"]});
  d.fill(0, k, k);
  d.head[0].kept = o["expected"]["kept"].get<Ints>();
  REQUIRE(d.step() == Status::ok);
  for (const auto& [token, anchor] : o["expected"]["nearest_anchor"].items())
    REQUIRE(d.head[0].to[at(std::stol(token))] == anchor.get<std::int32_t>());
  require_rows(d.head[0].key, rows_of(o["expected"]["K_kept"]));
  require_rows(d.head[0].value, rows_of(o["expected"]["K_kept"]));
}

TEST_CASE("elastic_cache: first and newest tokens are anchors where the fields say so, and nothing folds while text is generated",
          "[merge][elastic_cache]") {
  const FloatRows x{{1, 0}, {2, 0}, {3, 0}, {4, 0}, {5, 0}, {6, 0}};
  const auto links = [&](index_t sinks, index_t newest, Phase phase) {
    auto d = merge_driver(one_head(2), merge::ElasticCache{.sinks = sinks, .newest = newest});
    d.fill(0, x, x);
    d.head[0].kept = {0, 3, 5};
    d.phase = phase;
    REQUIRE(d.step() == Status::ok);
    return std::vector<std::int32_t>{d.head[0].to[1], d.head[0].to[2], d.head[0].to[4]};
  };
  REQUIRE(links(1, 1, Phase::prefill_end) == std::vector<std::int32_t>{3, 3, 3});
  REQUIRE(links(0, 1, Phase::prefill_chunk) == std::vector<std::int32_t>{0, 3, 3});
  REQUIRE(links(4, 0, Phase::prefill_end) == std::vector<std::int32_t>{5, 5, 5});
  REQUIRE(links(9, 9, Phase::prefill_end) == std::vector<std::int32_t>(3, prim::dropped));
  REQUIRE(links(1, 1, Phase::decode) == std::vector<std::int32_t>(3, prim::dropped));
  REQUIRE(merge::ElasticCache{.sinks = -1}.validate(one_head(2)) == Status::invalid_argument);
  REQUIRE(merge::ElasticCache{.newest = -1}.validate(one_head(2)) == Status::invalid_argument);
}
