#include <limits>

#include <kvcondense/merge/tome.hpp>

#include "driver.hpp"

using namespace kvcondense;
using namespace kvcondense::test;

TEST_CASE("tome: the oracle's pairs, means and sizes", "[merge][tome]") {
  const auto o = merging_oracle("tome_bipartite");
  auto d = merge_driver(one_head(2), merge::ToMe{.tokens = 4, .slack = 0, .sinks = 0, .recent = 0});
  const auto x = rows_of(o["inputs"]["X"]);
  d.fill(0, x, x);
  Floats& sizes = d.head[0].lane[at(d.traits.sizes)];
  for (std::size_t j = 0; j < 6; ++j) sizes[j] = std::log(o["inputs"]["size"][j].get<float>());
  REQUIRE(d.step() == Status::ok);
  // Slots stay in order here; the oracle lists what did not fold first.
  const auto origin = o["expected"]["output_origin"].get<Ints>();
  const auto rows = rows_of(o["expected"]["X_out"]);
  const auto bias = o["expected"]["log_size_bias"].get<Floats>();
  for (std::size_t i = 0; i < origin.size(); ++i) {
    const auto at_slot = std::find(d.head[0].token.begin(), d.head[0].token.end(), origin[i]) - d.head[0].token.begin();
    REQUIRE(at_slot < 4);
    require_rows({d.head[0].key[at(at_slot)]}, {rows[i]});
    REQUIRE(d.head[0].lane[at(d.traits.bias)][at(at_slot)] == Approx(bias[i]).margin(1e-6));
  }
}

TEST_CASE("tome: half of what is looked at folds in a step, protected slots never", "[merge][tome]") {
  auto d = merge_driver(one_head(2), merge::ToMe{.tokens = 12, .slack = 2, .sinks = 3, .recent = 5});
  FloatRows x;
  for (index_t j = 0; j < 60; ++j) x.push_back({std::cos(0.1f * static_cast<float>(j)), std::sin(0.1f * static_cast<float>(j))});
  d.fill(0, x, x);
  REQUIRE(d.step() == Status::ok);
  REQUIRE(d.head[0].token.size() == 60 - 26);
  d.phase = Phase::decode;
  for (const std::size_t want : {21u, 14u, 14u}) {  // 13 and 7 pairs of 26 and 13 slots; then within the slack
    REQUIRE(d.step() == Status::ok);
    REQUIRE(d.head[0].token.size() == want);
  }
  for (const index_t token : {0, 1, 2, 55, 56, 57, 58, 59})
    REQUIRE(std::count(d.head[0].token.begin(), d.head[0].token.end(), token) == 1);
  double tokens = 0;
  for (const float s : d.head[0].lane[at(d.traits.sizes)]) tokens += std::exp(s);
  REQUIRE(tokens == Approx(60));
  constexpr index_t most = std::numeric_limits<index_t>::max();
  for (const merge::ToMe& m : {merge::ToMe{.tokens = 36}, merge::ToMe{.slack = -1}, merge::ToMe{.sinks = -1}, merge::ToMe{.recent = -1},
                               merge::ToMe{.sinks = most, .recent = most}, merge::ToMe{.tokens = -most}})
    REQUIRE(m.validate(one_head(2)) == Status::invalid_argument);
}

TEST_CASE("tome: a budget and a slack without end are never exceeded", "[merge][tome]") {
  constexpr index_t most = std::numeric_limits<index_t>::max();
  const index_t offset[] = {0, 5};
  StepView<Cpu> view;
  view.shape = one_head(2), view.offset = offset;
  for (const Phase phase : {Phase::decode, Phase::prefill_end}) {
    view.phase = phase;
    REQUIRE_FALSE(merge::Pairs{.tokens = most, .slack = most}.fires(view));
    REQUIRE_FALSE(merge::Pairs{.tokens = 5, .slack = 0}.fires(view));
    REQUIRE(merge::Pairs{.tokens = 4, .slack = 0}.fires(view));
  }
}
