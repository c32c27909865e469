#include <kvcondense/merge/value_merge.hpp>

#include "driver.hpp"

using namespace kvcondense;
using namespace kvcondense::test;

TEST_CASE("value_merge: the oracle's weights and values", "[merge][value_merge]") {
  const auto o = merging_oracle("merge_on_evict_value");
  auto d = merge_driver(one_head(2), merge::ValueMerge{.least = -1.0f});
  const auto k = rows_of(o["inputs"]["K"]);
  d.fill(0, k, rows_of(o["inputs"]["V"]));
  d.head[0].kept = o["inputs"]["keep"].get<Ints>();
  REQUIRE(d.step() == Status::ok);
  REQUIRE(d.head[0].to == std::vector<std::int32_t>{0, 1, 0, 1, 0});
  require_rows(d.head[0].value, rows_of(o["expected"]["V_out"]));
  REQUIRE(d.head[0].key == FloatRows{k[0], k[1]});
  // Weights are divided by 1 + their sum.
  const auto w = o["expected"]["weights"].get<Floats>();
  REQUIRE(d.weights_value[0][2] / d.weights_value[0][0] == Approx(w[0]).epsilon(1e-5));
  REQUIRE(d.weights_value[0][3] / d.weights_value[0][1] == Approx(w[1]).epsilon(1e-5));
  REQUIRE(d.weights_value[0][4] == Approx(0).margin(1e-6));
}

TEST_CASE("value_merge: a threshold and a part choose who folds", "[merge][value_merge]") {
  const FloatRows k{{1, 0}, {1, 0.2f}, {1, 0.4f}, {1, 0.8f}, {-1, 0.1f}}, v(5, {1.0f, 1.0f});
  const auto folded = [&](float least, double part) {
    auto d = merge_driver(one_head(2), merge::ValueMerge{.least = least, .part = part});
    d.fill(0, k, v);
    d.head[0].kept = {0};
    REQUIRE(d.step() == Status::ok);
    return d.head[0].folded;
  };
  REQUIRE(folded(0.0f, 1.0) == 3);
  REQUIRE(folded(0.9f, 1.0) == 2);
  REQUIRE(folded(0.0f, 0.5) == 2);
  REQUIRE(folded(0.0f, 0.0) == 0);
  REQUIRE(merge::ValueMerge{.least = 1.5f}.validate(one_head(2)) == Status::invalid_argument);
  REQUIRE(merge::ValueMerge{.part = -0.5}.validate(one_head(2)) == Status::invalid_argument);
}
