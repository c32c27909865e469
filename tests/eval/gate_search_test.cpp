#include <algorithm>

#include <catch2/catch.hpp>

#include <eval/gate_search.hpp>
#include <support/oracle.hpp>

using namespace eval;

namespace {

double loss(const std::vector<std::vector<double>>& products, index_t heads, const std::vector<double>& gate, double l1) {
  double scale = 0, sum = 0, all = 0;
  for (std::size_t l = 0; l < products.size(); ++l)
    for (index_t a = 0; a < heads; ++a) {
      scale += products[l][static_cast<std::size_t>(a * heads + a)];
      for (index_t b = 0; b < heads; ++b)
        sum += (1 - gate[l * static_cast<std::size_t>(heads) + static_cast<std::size_t>(a)]) *
               (1 - gate[l * static_cast<std::size_t>(heads) + static_cast<std::size_t>(b)]) *
               products[l][static_cast<std::size_t>(a * heads + b)];
    }
  for (const double g : gate) all += g;
  return (scale > 0 ? sum / scale : 0) + l1 * all / static_cast<double>(gate.size());
}

}  // namespace

TEST_CASE("gate search: heads that do not touch each other have gates in closed form", "[eval][gate_search]") {
  // One head per layer: the minimum of share * (1 - a)^2 + l1 / 4 * a is a = 1 - l1 / (8 * share).
  const std::vector<std::vector<double>> products{{80.0}, {15.0}, {4.9}, {0.1}};
  const double l1 = 0.2;
  const Gates g = search_gates(products, 1, {.l1 = l1, .steps = 100000});
  for (std::size_t i = 0; i < 4; ++i)
    REQUIRE(g.gate[i] == Approx(std::max(0.0, 1 - l1 / (8 * products[i][0] / 100))).margin(1e-6));
  REQUIRE(g.gate[3] == 0.0);
  REQUIRE(g.steps < 100000);
  REQUIRE(g.loss == Approx(loss(products, 1, g.gate, l1)));
}

// The oracle's `distill` and `total` are on a scale of their own, the mean square of a whole model's last hidden states: what
// is searched here is scaled by the gaps themselves, so the two terms are looked at one by one.
TEST_CASE("gate search: a gate mixes as the oracle does, and the price is of the mean gate", "[eval][gate_search][oracle]") {
  const auto oracle = kvcondense::test::load_oracle("eviction.json", "duo");
  const auto& mix = oracle["mix"];
  const double alpha = mix["alpha"];
  double gap = 0, error = 0;
  for (std::size_t d = 0; d < 2; ++d) {
    const double full = mix["full"][d], streaming = mix["streaming"][d], out = mix["out"][d];
    gap += (streaming - full) * (streaming - full), error += (out - full) * (out - full);
  }
  const Gates one = search_gates({{gap}}, 1, {.l1 = 2 * (1 - alpha), .steps = 100000});  // whose best gate is alpha
  REQUIRE(one.gate[0] == Approx(alpha).margin(1e-6));
  REQUIRE(one.loss == Approx(error / gap + 2 * (1 - alpha) * alpha));

  // Gaps that make the oracle's gates the best ones: the shares of all squares are as 1 / (1 - gate).
  std::vector<std::vector<double>> products;
  std::vector<double> want;
  double l1 = 0, squares = 0;
  for (const auto& layer : oracle["gates"])
    for (const double gate : layer) want.push_back(gate), products.push_back({1 / (1 - gate)}), l1 += 1 / (1 - gate);
  l1 = 2 * static_cast<double>(want.size()) / l1;
  const Gates all = search_gates(products, 1, {.l1 = l1, .steps = 1000000});
  for (std::size_t i = 0; i < want.size(); ++i) {
    REQUIRE(all.gate[i] == Approx(want[i]).margin(1e-5));
    squares += l1 / (2 * static_cast<double>(want.size())) * (1 - want[i]);  // of its share times (1 - gate)^2
  }
  REQUIRE(all.loss == Approx(squares + l1 * oracle["loss"]["l1"].get<double>()));
}

TEST_CASE("gate search: heads whose gaps cancel need no gate, and no change of a gate helps", "[eval][gate_search]") {
  const std::vector<std::vector<double>> products{{1.0, -1.0, 0.0, -1.0, 1.0, 0.0, 0.0, 0.0, 0.5}, {2.0, 1.5, 0.3, 1.5, 2.0, 0.1, 0.3, 0.1, 0.2}};
  const Gates g = search_gates(products, 3, {.l1 = 0.05, .steps = 100000});
  REQUIRE(g.gate[0] < 0.01);
  REQUIRE(g.gate[1] < 0.01);
  REQUIRE(g.gate[2] > 0.9);
  const double best = loss(products, 3, g.gate, 0.05);
  REQUIRE(g.loss == Approx(best));
  for (std::size_t i = 0; i < 6; ++i)
    for (const double by : {-0.05, 0.05}) {
      auto other = g.gate;
      other[i] = std::clamp(other[i] + by, 0.0, 1.0);
      REQUIRE(loss(products, 3, other, 0.05) >= best - 1e-9);
    }
}

TEST_CASE("gate search: without a price all gates stay open, without gaps or steps nothing is found", "[eval][gate_search]") {
  const std::vector<std::vector<double>> products{{2.0, 0.5, 0.5, 1.0}}, none{{0, 0, 0, 0}};
  REQUIRE(search_gates(products, 2, {.l1 = 0}).gate == std::vector<double>{1, 1});
  REQUIRE(search_gates(none, 2, {.l1 = 0.05}).gate == std::vector<double>{0, 0});
  REQUIRE(search_gates(products, 2, {.l1 = 0.05, .steps = 0}).gate == std::vector<double>{1, 1});
  REQUIRE(search_gates(products, 2, {.l1 = 1000}).gate == std::vector<double>{0, 0});
}
