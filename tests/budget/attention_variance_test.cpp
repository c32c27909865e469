#include <cmath>
#include <vector>

#include <catch2/catch.hpp>

#include <kvcondense/budget/attention_variance.hpp>

using namespace kvcondense;

TEST_CASE("attention_variance: nothing varies where there is nothing to compare", "[budget][attention_variance]") {
  const float sums[] = {1, 2, 3};
  REQUIRE(budget::attention_variance(sums, 3, 1, budget::VarianceForm::mean) == 0.0);
  REQUIRE(budget::attention_variance(sums, 0, 3, budget::VarianceForm::normalised) == 0.0);
  REQUIRE(budget::attention_variance(sums, 1, 3, budget::VarianceForm::mean) == 1.0);
  REQUIRE(budget::attention_variance(sums, 1, 3, budget::VarianceForm::normalised) == 0.0);
}

TEST_CASE("attention_variance: ratios share what is kept, each within its bounds", "[budget][attention_variance]") {
  const double numbers[] = {0.0, 1.0, 60.0, 700.0};
  double ratio[4];
  budget::variance_ratios(numbers, 0.3, 0.01, ratio);
  const double e = std::exp(-1.0);
  REQUIRE(ratio[0] == Approx(std::min(1.0, 1.2 / (1 + e))));
  REQUIRE(ratio[1] == Approx(1.2 * e / (1 + e)));
  REQUIRE((ratio[2] == 0.01 && ratio[3] == 0.01));
  budget::variance_ratios(numbers, 0.9, 0.0, ratio);
  REQUIRE(ratio[0] == 1.0);  // cut, and nobody gets the rest
}
