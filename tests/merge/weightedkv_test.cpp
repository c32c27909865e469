#include <kvcondense/merge/weightedkv.hpp>

#include "driver.hpp"

using namespace kvcondense;
using namespace kvcondense::test;

TEST_CASE("weightedkv: the oracle's two evictions, one after the other", "[merge][weightedkv]") {
  const auto o = merging_oracle("weightedkv");
  auto d = merge_driver(one_head(2), merge::WeightedKV{});
  d.fill(0, rows_of(o["inputs"]["K"]), rows_of(o["inputs"]["V"]));
  d.head[0].lane[0] = o["inputs"]["avg_attention"].get<Floats>();
  for (float& a : d.head[0].lane[0]) a *= 4.0f;
  d.head[0].lane[1] = Floats(5, prim::exposure_mark(4, 0));  // the mean over four rows
  for (const index_t token : o["inputs"]["evict_order"]) {
    d.head[0].kept.clear();
    for (std::size_t j = 0; j < d.head[0].token.size(); ++j)
      if (d.head[0].token[j] != token) d.head[0].kept.push_back(static_cast<index_t>(j));
    REQUIRE(d.step() == Status::ok);
  }
  REQUIRE(d.head[0].token == o["expected"]["kept"].get<Ints>());
  REQUIRE(d.head[0].key == rows_of(o["expected"]["K"]));
  require_rows(d.head[0].value, rows_of(o["expected"]["V"]));
}

TEST_CASE("weightedkv: without attention the kept value stays, and the last token has no next one", "[merge][weightedkv]") {
  auto d = merge_driver(one_head(2), merge::WeightedKV{});
  const FloatRows x{{1, 2}, {3, 4}, {5, 6}, {7, 8}};
  d.fill(0, x, x);
  d.head[0].kept = {0, 2};
  REQUIRE(d.step() == Status::ok);
  REQUIRE(d.head[0].to == std::vector<std::int32_t>{0, 2, 2, prim::dropped});
  REQUIRE(d.head[0].value == FloatRows{{1, 2}, {5, 6}});
}
