#include <limits>

#include <kvcondense/merge/centroid.hpp>

#include "driver.hpp"

using namespace kvcondense;
using namespace kvcondense::test;

TEST_CASE("centroid: the oracle's pairs inside chunks", "[merge][centroid]") {
  const auto o = merging_oracle("chunked_soft_matching");
  auto d = merge_driver(one_head(2), merge::Centroid{.tokens = 6, .chunk = 4, .slack = 0, .sinks = 0, .recent = 0});
  d.fill(0, rows_of(o["inputs"]["K"]), rows_of(o["inputs"]["V"]));
  REQUIRE(d.step() == Status::ok);
  const auto want = o["expected"];
  require_rows(d.head[0].key, rows_of(want["K_out"]));
  require_rows(d.head[0].value, rows_of(want["V_out"]));
  Ints last;
  for (const auto& members : want["members"]) last.push_back(members.back().get<index_t>());
  REQUIRE(d.head[0].token == last);
  for (std::size_t i = 0; i < 6; ++i)
    REQUIRE(std::exp(d.head[0].lane[at(d.traits.bias)][i]) == Approx(want["count"][i].get<double>()));
}

TEST_CASE("centroid: no pair crosses a chunk", "[merge][centroid]") {
  auto d = merge_driver(one_head(2), merge::Centroid{.tokens = 20, .chunk = 6, .slack = 0, .sinks = 2, .recent = 3});
  FloatRows x;
  for (index_t j = 0; j < 41; ++j) x.push_back({static_cast<float>((j * 7) % 5) - 2.0f, 1.0f});
  d.fill(0, x, x);
  REQUIRE(d.step() == Status::ok);
  index_t folded = 0;
  for (index_t j = 0; j < 41; ++j) {
    const index_t to = d.head[0].to[at(j)];
    REQUIRE(to >= 0);
    if (to == j) continue;
    REQUIRE((j - 2) / 6 == (to - 2) / 6);
    ++folded;
  }
  REQUIRE(folded == 18);  // three per whole chunk of 36 slots
  REQUIRE(merge::Centroid{.chunk = 1}.validate(one_head(2)) == Status::invalid_argument);
  REQUIRE(merge::Centroid{.tokens = 68}.validate(one_head(2)) == Status::invalid_argument);
  constexpr index_t most = std::numeric_limits<index_t>::max();
  REQUIRE(merge::Centroid{.sinks = most, .recent = most}.validate(one_head(2)) == Status::invalid_argument);
  REQUIRE(merge::Centroid{.chunk = most}.validate(one_head(2)) == Status::invalid_argument);
}
