#include <kvcondense/merge/d2o.hpp>

#include "driver.hpp"

using namespace kvcondense;
using namespace kvcondense::test;

namespace {

/// The oracle's kept slots, then those that leave.
template <class M>
auto set_up(const M& method, const nlohmann::json& in) {
  auto d = merge_driver(one_head(2), method);
  FloatRows k = rows_of(in["K_cons"]), v = rows_of(in["V_cons"]);
  for (const auto& row : in["K_ev"]) k.push_back(row.get<Floats>());
  for (const auto& row : in["V_ev"]) v.push_back(row.get<Floats>());
  d.fill(0, k, v);
  d.head[0].kept = {0, 1, 2};
  return d;
}

}  // namespace

TEST_CASE("d2o: the oracle's targets, threshold and sums", "[merge][d2o]") {
  const auto o = merging_oracle("d2o_merge");
  const auto& want = o["expected"];
  for (const bool exponential : {false, true}) {
    auto d = set_up(merge::D2O{.exponential = exponential}, o["inputs"]);
    REQUIRE(d.step() == Status::ok);
    REQUIRE(d.head[0].to == std::vector<std::int32_t>{0, 1, 2, 0, 1, prim::dropped});
    REQUIRE(d.head[0].folded == 2);
    REQUIRE(d.head[0].state[0] == Approx(want["tau_initial"].get<double>()).epsilon(1e-6));
    require_rows(d.head[0].key, rows_of(want[exponential ? "K_exp_normalised" : "K_reference_code"]));
    require_rows(d.head[0].value, rows_of(want[exponential ? "V_exp_normalised" : "V_reference_code"]));
  }
}
