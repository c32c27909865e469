#include <cmath>
#include <numeric>

#include <evict/properties.hpp>
#include <kvcondense/budget/attention_variance.hpp>
#include <kvcondense/budget/head_table.hpp>
#include <kvcondense/budget/variance.hpp>
#include <kvcondense/evict/h2o.hpp>
#include <kvcondense/evict/knorm.hpp>
#include <support/oracle.hpp>

using namespace kvcondense;
using namespace kvcondense::test;

namespace {

/// Column sums of one layer of the oracle's attention, head by head.
std::vector<float> column_sums(const nlohmann::json& layer) {
  std::vector<float> sums;
  for (const auto& head : layer)
    for (std::size_t j = 0; j < head[0].size(); ++j) {
      double s = 0;
      for (const auto& row : head) s += row[j].get<double>();
      sums.push_back(static_cast<float>(s));
    }
  return sums;
}

Ints per_layer(const std::vector<float>& numbers, index_t tokens, index_t budget, double least = 0.01) {
  const auto layers = static_cast<index_t>(numbers.size());
  Ints kept;
  for (index_t l = 0; l < layers; ++l) {
    auto d = drive({.layers = layers}, budget::Variance{evict::H2O{.heavy = budget - 2, .recent = 2}, least, LayerTable{numbers.data(), layers}});
    d.layer = l;
    REQUIRE(d.step(tokens, Phase::prefill_end, [](index_t h, index_t t) { return number(1, h, t); }) == Status::ok);
    kept.push_back(static_cast<index_t>(d.held[0].size()));
    REQUIRE(kept.back() == d.budget[0]);
  }
  return kept;
}

}  // namespace

TEST_CASE("variance: numbers and ratios of layers equal the oracle, in both forms", "[budget][variance]") {
  const auto oracle = load_oracle("merging_lowrank.json", "d2o_layer_budget");
  const auto& want = oracle["expected"];
  const auto check = [&](budget::VarianceForm form, const char* score, const char* ratio) {
    std::vector<double> numbers, ratios(2);
    for (std::size_t l = 0; l < 2; ++l) {
      const auto sums = column_sums(oracle["inputs"]["A"][l]);
      numbers.push_back(budget::attention_variance(sums.data(), 3, 4, form));
      REQUIRE(numbers.back() == Approx(want[score][l].get<double>()).epsilon(1e-6));
    }
    const auto clamp = oracle["params"]["clamp"];
    budget::variance_ratios(numbers, oracle["params"]["rho"], clamp[0], ratios.data());
    for (std::size_t l = 0; l < 2; ++l) REQUIRE(ratios[l] == Approx(want[ratio][l].get<double>()).epsilon(1e-6));
    // The budget gives each layer its ratio of the tokens.
    const std::vector<float> table(numbers.begin(), numbers.end());
    const Ints kept = per_layer(table, 1000, 400);
    REQUIRE(kept[0] + kept[1] == 800);
    for (std::size_t l = 0; l < 2; ++l) REQUIRE(std::abs(static_cast<double>(kept[l]) - 1000 * ratios[l]) < 1.0);
  };
  check(budget::VarianceForm::normalised, "layer_score_reference_code", "ratio_reference_code");
  check(budget::VarianceForm::mean, "layer_score_raw_mean_variance", "ratio_raw_mean_variance");
}

TEST_CASE("variance: what bounds take from a layer goes to the others, and the total is exact", "[budget][variance]") {
  REQUIRE(per_layer({0, 0, 0}, 100, 20) == Ints{20, 20, 20});
  REQUIRE(per_layer({0, 50, 50}, 100, 40) == Ints{100, 10, 10});
  REQUIRE(per_layer({0, 700, 700}, 30, 10) == Ints{26, 2, 2});  // recent stays
  REQUIRE(per_layer({0, 700, 700}, 1000, 100, 0.05) == Ints{200, 50, 50});
  REQUIRE(per_layer({0, 700, 700}, 1000, 100, 0.2) == Ints{100, 100, 100});
  REQUIRE(per_layer({1, 2, 3}, 12, 20) == Ints{12, 12, 12});
  for (index_t tokens = 21; tokens < 400; tokens += 13) {
    const Ints kept = per_layer({0.3f, 1.4f, 0.0f, 2.5f, 0.9f}, tokens, 20);
    REQUIRE(std::accumulate(kept.begin(), kept.end(), index_t{0}) == 100);
  }
}

TEST_CASE("variance: keeps the promises", "[budget][variance]") {
  const float numbers[] = {0.6f, 0.1f, 0.5f, 0.3f};
  const LayerTable table{numbers, 4};
  check_promises(budget::Variance{evict::Knorm{.tokens = 24, .recent = 4}, 0.01, table},
                 budget::Variance{evict::Knorm{.tokens = 400, .recent = 4}, 0.01, table});
}

TEST_CASE("variance: what does not fit the model is refused", "[budget][variance]") {
  float numbers[] = {0.6f, 0.1f};
  const auto with = [&](double least) { return budget::Variance{evict::Knorm{}, least, LayerTable{numbers, 2}}; };
  REQUIRE(with(0.01).validate({.layers = 2}) == Status::ok);
  REQUIRE(with(0.01).validate({.layers = 3}) == Status::shape_mismatch);
  REQUIRE(budget::Variance<evict::Knorm>{}.validate({.layers = 2}) == Status::missing_input);
  REQUIRE(std::string(budget::Variance<evict::Knorm>{}.missing()) == "variance");
  for (const double bad : {-0.1, 1.1, std::nan("")}) REQUIRE(with(bad).validate({.layers = 2}) == Status::invalid_argument);
  for (const float bad : {-0.1f, 701.0f, std::nanf("")}) {
    numbers[1] = bad;
    REQUIRE(with(0.01).validate({.layers = 2}) == Status::invalid_argument);
  }
}

TEST_CASE("variance: what triggers expect is the budget within one slot, for shares of heads too", "[budget][variance]") {
  const float numbers[] = {0.3f, 1.4f, 0.0f, 2.5f, 0.9f};
  float shares[10];
  for (index_t i = 0; i < 10; ++i) shares[i] = (1.0f + static_cast<float>(i % 4)) / 24.0f;
  const evict::H2O base{.heavy = 30, .recent = 4};
  for (const index_t tokens : {34, 40, 60, 90, 2000})
    for (index_t l = 0; l < 5; ++l) {
      const CacheShape shape{.layers = 5, .q_heads = 2, .kv_heads = 2};
      const auto check = [&](const auto& policy) {
        auto d = drive(shape, policy);
        d.layer = l;
        REQUIRE(d.step(tokens, Phase::prefill_end, [](index_t h, index_t t) { return number(1, h, t); }) == Status::ok);
        const index_t offset[] = {0, tokens, 2 * tokens};
        StepView<Cpu> view;
        view.shape = shape, view.layer = l, view.seen = view.appended = tokens, view.offset = offset;
        for (index_t h = 0; h < 2; ++h) {
          const index_t told = d.pipeline.allocate.expects(view, h, d.pipeline.protect.of(view, h).within(tokens));
          CAPTURE(tokens, l, h, told);
          REQUIRE(std::abs(told - d.budget[at(h)]) <= 1);
        }
      };
      check(budget::Variance{base, 0.01, LayerTable{numbers, 5}});
      check(budget::Variance{base, 0.3, LayerTable{numbers, 5}});
      check(budget::HeadTableBudget{base, 1.2, HeadTable{shares, 5, 2}});
    }
}
