#include <kvcondense/merge/lookm.hpp>

#include "driver.hpp"

using namespace kvcondense;
using namespace kvcondense::test;

TEST_CASE("lookm: the oracle's sums by every kernel", "[merge][lookm]") {
  using Kernel = merge::LookM::Kernel;
  const auto o = merging_oracle("lookm_merges");
  const std::pair<Kernel, const char*> kernels[] = {{Kernel::average, "average"}, {Kernel::pivotal, "pivotal"},
                                                    {Kernel::weighted, "weighted"}, {Kernel::shared, "weighted_normalised_by_weights"}};
  for (const auto& k : kernels) {
    CAPTURE(k.second);
    auto d = merge_driver(one_head(2), merge::LookM{.kernel = k.first});
    FloatRows rows = rows_of(o["inputs"]["K_cons"]);
    for (const auto& row : o["inputs"]["K_ev"]) rows.push_back(row.get<Floats>());
    d.fill(0, rows, rows);
    d.head[0].kept = {0, 1};
    REQUIRE(d.step() == Status::ok);
    const auto to = o["expected"]["target"].get<std::vector<std::int32_t>>();
    REQUIRE(std::vector<std::int32_t>(d.head[0].to.begin() + 2, d.head[0].to.end()) == to);
    require_rows(d.head[0].key, rows_of(o["expected"][k.second]));
    require_rows(d.head[0].value, rows_of(o["expected"][k.second]));  // the same weights
  }
}

TEST_CASE("lookm: the filter drops what is less alike than the mean", "[merge][lookm]") {
  const FloatRows rows{{1, 0}, {1, 0.1f}, {1, 3}, {2, 0}};
  for (const bool only : {false, true}) {
    auto d = merge_driver(one_head(2), merge::LookM{.alike_only = only});
    d.fill(0, rows, rows);
    d.head[0].kept = {0};
    REQUIRE(d.step() == Status::ok);
    REQUIRE(d.head[0].to == std::vector<std::int32_t>{0, 0, only ? prim::dropped : 0, 0});
  }
}
