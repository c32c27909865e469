#include <cmath>
#include <random>
#include <string>
#include <vector>

#include <catch2/catch.hpp>

#include <kvcondense/quant/bit_search.hpp>

#include <support/oracle.hpp>

using namespace kvcondense;
using quant::BitChoices;

namespace {

std::vector<std::byte> room(1 << 20);

struct Table {
  index_t items, choices;
  std::vector<index_t> cost;
  std::vector<double> distortion;
  Table(index_t n, index_t c) : items(n), choices(c), cost(static_cast<std::size_t>(n * c)), distortion(cost.size()) {}
  BitChoices view() const {
    return {{cost.data(), {items, choices}, {choices, 1}}, {distortion.data(), {items, choices}, {choices, 1}}};
  }
  index_t total(const std::vector<std::int32_t>& choice) const {
    index_t sum = 0;
    for (index_t i = 0; i < items; ++i) sum += cost[static_cast<std::size_t>(i * choices + choice[static_cast<std::size_t>(i)])];
    return sum;
  }
};

/// The components of the worked example.
struct Components {
  nlohmann::json o = test::load_oracle("quantization.json", "Q_bit_allocation_dp");
  Table table{8, 8};
  Components() {
    for (std::size_t i = 0; i < 8; ++i)
      for (std::size_t c = 0; c < 8; ++c) {
        const auto bits = o.at("choices")[c].get<index_t>();
        table.cost[i * 8 + c] = bits;
        table.distortion[i * 8 + c] = o.at("lambda")[i].get<double>() * std::pow(4.0, -static_cast<double>(bits));
      }
  }
};

}  // namespace

TEST_CASE("bit_search: distortions of components are the worked example's, by both ways", "[quant][bit_search][oracle]") {
  const Components c;
  for (const index_t budget : {8, 12, 16, 24}) {
    const double want = c.o.at("solutions").at("budget" + std::to_string(budget)).at("distortion").get<double>();
    std::vector<std::int32_t> choice(8, -1), steps = choice;
    REQUIRE(quant::allocate_bits(c.table.view(), budget, choice, Scratch{room}) == Status::ok);
    REQUIRE(c.table.view().total(choice) == Approx(want).epsilon(1e-7));
    REQUIRE(c.table.total(choice) <= budget);
    REQUIRE(quant::allocate_bits_by_steps(c.table.view(), budget, steps) == Status::ok);
    REQUIRE(c.table.view().total(steps) == Approx(want).epsilon(1e-7));
    REQUIRE(c.table.total(steps) <= budget);
  }
}

TEST_CASE("bit_search: the front of layers is the worked example's", "[quant][bit_search][oracle]") {
  const auto o = test::load_oracle("quantization.json", "R_layerwise_pareto");
  const std::vector<std::string> pairs = {"K8V8", "K8V4", "K4V4", "K4V2", "K2V2"};
  Table t(3, 5);
  for (std::size_t l = 0; l < 3; ++l)
    for (std::size_t p = 0; p < 5; ++p) {
      t.cost[l * 5 + p] = o.at("bits_of_pair").at(pairs[p]).get<index_t>();
      t.distortion[l * 5 + p] = o.at("layers")[l].at("pairs").at(pairs[p]).get<double>();
    }
  std::vector<std::int32_t> choice(3);
  std::size_t at = 0;
  const auto& front = o.at("pareto_front");
  REQUIRE(quant::bit_front(t.view(), 24, choice, Scratch{room}, [&](index_t bits, double error) {
            REQUIRE(at < front.size());
            REQUIRE(static_cast<double>(bits) / 3 == Approx(front[at].at("avg_bits").get<double>()).epsilon(1e-5));
            REQUIRE(error == Approx(front[at].at("error").get<double>()).epsilon(1e-9));
            REQUIRE(t.view().total(choice) == Approx(error));
            REQUIRE(t.total(choice) == bits);
            for (std::size_t l = 0; l < 3; ++l) REQUIRE(pairs[static_cast<std::size_t>(choice[l])] == front[at].at("choice")[l].get<std::string>());
            ++at;
          }) == Status::ok);
  REQUIRE(at == front.size());
}

TEST_CASE("bit_search: no choice is better than what is found, by trying all", "[quant][bit_search]") {
  std::mt19937 random(3);
  std::uniform_int_distribution<index_t> bits(0, 6);
  std::uniform_real_distribution<double> error(0, 1);
  for (int run = 0; run < 60; ++run) {
    Table t(4, 3);
    for (auto& c : t.cost) c = bits(random);
    for (auto& d : t.distortion) d = error(random);
    for (index_t budget = 0; budget < 20; budget += 3) {
      double best = 1e9;
      for (int n = 0; n < 81; ++n) {
        const std::vector<std::int32_t> choice = {n % 3, n / 3 % 3, n / 9 % 3, n / 27};
        if (t.total(choice) <= budget) best = std::min(best, t.view().total(choice));
      }
      std::vector<std::int32_t> choice(4, -1), steps(4, -1);
      const Status s = quant::allocate_bits(t.view(), budget, choice, Scratch{room});
      REQUIRE(s == (best < 1e9 ? Status::ok : Status::out_of_range));
      REQUIRE(quant::allocate_bits_by_steps(t.view(), budget, steps) == s);
      if (s != Status::ok) {
        REQUIRE(choice == std::vector<std::int32_t>(4, -1));
        REQUIRE(steps == choice);
        continue;
      }
      REQUIRE(t.view().total(choice) == Approx(best));
      REQUIRE(t.total(choice) <= budget);
      REQUIRE(t.total(steps) <= budget);
      REQUIRE(t.view().total(steps) >= best - 1e-12);
    }
  }
}

TEST_CASE("bit_search: bad tables are refused", "[quant][bit_search]") {
  Table t(2, 2);
  t.cost = {1, 2, 1, 2}, t.distortion = {2, 1, 2, 1};
  std::vector<std::int32_t> choice(2, -1), longer(3);
  const auto both = [&](index_t budget, Status want) {
    REQUIRE(quant::allocate_bits(t.view(), budget, choice, Scratch{room}) == want);
    REQUIRE(quant::allocate_bits_by_steps(t.view(), budget, choice) == want);
    REQUIRE(quant::bit_front(t.view(), budget, choice, Scratch{room}, [](index_t, double) {}) == want);
  };
  both(1, Status::out_of_range);
  both(-1, Status::invalid_argument);
  t.cost[1] = -1;
  both(4, Status::invalid_argument);
  t.cost[1] = 2, t.distortion[0] = std::nan("");
  both(4, Status::invalid_argument);
  t.distortion[0] = -1;
  both(4, Status::invalid_argument);
  REQUIRE(choice == std::vector<std::int32_t>(2, -1));
  t.distortion[0] = 2;
  REQUIRE(quant::allocate_bits(t.view(), 4, longer, Scratch{room}) == Status::shape_mismatch);
  REQUIRE(quant::allocate_bits_by_steps(t.view(), 4, longer) == Status::shape_mismatch);
  Workspace exact;
  REQUIRE(exact.reserve(quant::bit_search_bytes(t.view(), 4)) == Status::ok);
  std::vector<std::byte> less(16);
  REQUIRE(quant::allocate_bits(t.view(), 4, choice, Scratch{less}) == Status::workspace_too_small);
  REQUIRE(quant::allocate_bits(t.view(), 4, choice, Scratch{exact.bytes()}) == Status::ok);
  REQUIRE(choice == std::vector<std::int32_t>{1, 1});
}
