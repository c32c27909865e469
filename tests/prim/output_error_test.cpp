#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <random>
#include <vector>

#include <catch2/catch.hpp>

#include <kvcondense/cpu.hpp>
#include <support/guarded.hpp>

using namespace kvcondense;

namespace {

using Slots = std::vector<std::int32_t>;

struct Case {
  index_t n, dim;
  std::vector<float> values, weights;
  prim::Ends ends{};

  Case(index_t n_, index_t dim_, std::uint32_t seed) : n(n_), dim(dim_) {
    std::mt19937 random(seed);
    std::normal_distribution<float> normal;
    for (index_t i = 0; i < n * dim; ++i) values.push_back(normal(random));
    for (index_t i = 0; i < n; ++i) weights.push_back(std::abs(normal(random)));
  }

  double value(index_t j, index_t d) const { return static_cast<double>(values[static_cast<std::size_t>(j * dim + d)]); }
  double weight(index_t j) const { return static_cast<double>(weights[static_cast<std::size_t>(j)]); }

  /// The output over `live`, in double.
  std::vector<double> output(const Slots& live, bool plain) const {
    std::vector<double> x(static_cast<std::size_t>(dim), 0.0);
    double all = 0;
    for (const auto j : live) {
      const double w = plain ? 1.0 : weight(j);
      all += w;
      for (index_t d = 0; d < dim; ++d) x[static_cast<std::size_t>(d)] += w * value(j, d);
    }
    for (double& e : x) e /= all;
    return x;
  }
  double error(const Slots& live, std::int32_t j, bool fast) const {
    const auto x = output(live, fast);
    double all = 0, square = 0;
    for (const auto i : live) all += weight(i);
    for (index_t d = 0; d < dim; ++d) square += std::pow(x[static_cast<std::size_t>(d)] - value(j, d), 2);
    return weight(j) / (all - weight(j)) * std::sqrt(square);
  }
  Slots candidates() const {
    Slots all(static_cast<std::size_t>(n - ends.size()));
    std::iota(all.begin(), all.end(), static_cast<std::int32_t>(ends.prefix));
    return all;
  }

  Slots all() const {
    Slots every(static_cast<std::size_t>(n));
    std::iota(every.begin(), every.end(), 0);
    return every;
  }

  std::vector<float> run(prim::HeadOutput of) const {
    const DenseRows rows(dense_view<const float>(values.data(), 1, n, dim));
    const index_t offset[] = {0, n};
    test::Guarded<float> scores(weights.size());
    std::copy(weights.begin(), weights.end(), scores.data());
    Context<Cpu> ctx;
    REQUIRE(prim::OutputError<Cpu>::run(ctx, rows, &ends, of, {scores.data(), offset, 1}) == Status::ok);
    REQUIRE(scores.ok());
    return {scores.data(), scores.data() + n};
  }
  Slots drop(prim::HeadOutput of, index_t total, index_t* nan = nullptr) const {
    const DenseRows rows(dense_view<const float>(values.data(), 1, n, dim));
    const index_t offset[] = {0, n};
    test::Guarded<float> left(weights.size());
    test::Guarded<std::int32_t> slots(weights.size());
    index_t count = -1;
    Context<Cpu> ctx;
    REQUIRE(prim::OutputError<Cpu>::drop(ctx, rows, {weights.data(), offset, 1}, &ends, of, &total, {left.data(), offset, 1},
                                         {slots.data(), offset, 1}, &count, nan) == Status::ok);
    REQUIRE((left.ok() && slots.ok()));
    return {slots.data(), slots.data() + count};
  }
};

}  // namespace

TEST_CASE("output_error: is what the output moves by, measured without the slot", "[prim][output_error]") {
  for (const index_t n : {2, 3, 17, 100})
    for (const index_t dim : {1, 64, 80, 96, 128}) {
      Case c(n, dim, 5);
      if (n > 10) c.ends = {3, 4};
      for (const bool of_ends : {false, true}) {
        const auto got = c.run({.ends = of_ends}), fast = c.run({true, of_ends});
        const Slots live = of_ends ? c.all() : c.candidates();
        const auto whole = c.output(live, false);
        for (const auto j : c.candidates()) {
          Slots rest = live;
          std::erase(rest, j);
          const auto without = c.output(rest, false);
          double square = 0;
          for (std::size_t d = 0; d < whole.size(); ++d) square += std::pow(whole[d] - without[d], 2);
          REQUIRE(static_cast<double>(got[static_cast<std::size_t>(j)]) == Approx(std::sqrt(square)).epsilon(1e-4).margin(1e-6));
          REQUIRE(static_cast<double>(fast[static_cast<std::size_t>(j)]) == Approx(c.error(live, j, true)).epsilon(1e-4).margin(1e-6));
        }
        for (index_t j = 0; j < n; ++j)
          if (j < c.ends.prefix || j >= n - c.ends.suffix) REQUIRE(got[static_cast<std::size_t>(j)] == c.weights[static_cast<std::size_t>(j)]);
      }
    }
}

TEST_CASE("output_error: drops one after the other as the plain search does", "[prim][output_error]") {
  for (const prim::HeadOutput of : {prim::HeadOutput{}, {true, false}, {false, true}, {true, true}})
    for (std::uint32_t seed = 0; seed < 20; ++seed) {
      Case c(6 + static_cast<index_t>(seed) * 2, 8, seed);
      c.ends = {static_cast<index_t>(seed % 3), static_cast<index_t>(seed % 2)};
      Slots live = c.candidates(), held = c.all();
      for (index_t total = c.n; total >= c.ends.size(); --total) {
        CAPTURE(of.fast, of.ends, seed, total);
        REQUIRE(c.drop(of, total) == held);
        const Slots& made_of = of.ends ? held : live;
        const auto error = [&](std::int32_t j) { return c.error(made_of, j, of.fast); };
        const auto least = std::min_element(live.begin(), live.end(), [&](auto a, auto b) { return error(a) < error(b); });
        if (least == live.end()) break;
        std::erase(held, *least);
        live.erase(least);
      }
      REQUIRE(static_cast<index_t>(c.drop(of, -3).size()) == c.ends.size());
    }
}

TEST_CASE("output_error: slots that stay are seen or not, and may turn the choice", "[prim][output_error]") {
  Case c(4, 1, 1);
  c.values = {0.0f, 1.0f, -4.0f, 10.0f}, c.weights = {1.0f, 1.0f, 1.0f, 7.0f}, c.ends = {0, 1};
  // The first three alone have the output -1, and the first is nearest to it. With the fourth it is 6.7, and the second is.
  REQUIRE(c.run({}) == std::vector<float>{0.5f, 1.0f, 1.5f, 7.0f});
  REQUIRE(c.drop({}, 3) == Slots{1, 2, 3});
  for (std::size_t j = 0; j < 3; ++j) REQUIRE(c.run({.ends = true})[j] == Approx((6.7 - static_cast<double>(c.values[j])) / 9.0));
  REQUIRE(c.drop({.ends = true}, 3) == Slots{0, 2, 3});
}

TEST_CASE("output_error: bad numbers at the ends are in no sum, stay, and are not counted", "[prim][output_error]") {
  Case c(20, 4, 3);
  c.ends = {2, 2};
  Case clean = c;
  clean.weights[1] = clean.weights[18] = 0.0f;  // has no part either
  c.weights[1] = std::numeric_limits<float>::quiet_NaN();
  c.values[4 * 18 + 2] = std::numeric_limits<float>::infinity();
  const auto got = c.run({.ends = true}), want = clean.run({.ends = true});
  for (std::size_t j = 2; j < 18; ++j) REQUIRE(got[j] == want[j]);
  REQUIRE(std::isnan(got[1]));
  REQUIRE(got[18] == c.weights[18]);
  index_t nan = 0;
  REQUIRE(c.drop({.ends = true}, 12, &nan) == clean.drop({.ends = true}, 12));
  REQUIRE(nan == 0);
}

TEST_CASE("output_error: bad numbers have no part in the output and leave first", "[prim][output_error]") {
  Case c(20, 4, 3), clean = c;
  c.weights[4] = std::numeric_limits<float>::quiet_NaN();
  c.values[4 * 11 + 2] = std::numeric_limits<float>::infinity();
  const auto got = c.run({});
  REQUIRE((std::isnan(got[4]) && std::isnan(got[11])));
  for (std::size_t j = 0; j < 20; ++j)
    if (j != 4 && j != 11) REQUIRE(std::isfinite(got[j]));
  index_t nan = 0;
  Slots want;
  for (std::int32_t j = 0; j < 20; ++j)
    if (j != 4 && j != 11) want.push_back(j);
  REQUIRE(c.drop({}, 18, &nan) == want);
  REQUIRE(nan == 2);
  want.insert(want.begin() + 4, 4);
  REQUIRE(c.drop({.fast = true}, 19) == want);  // of two the larger slot leaves
  REQUIRE(clean.drop({}, 20, &nan).size() == 20);
  REQUIRE(nan == 2);
}

TEST_CASE("output_error: no weight is no error, one slot alone is no trouble", "[prim][output_error]") {
  Case c(5, 3, 3);
  std::fill(c.weights.begin(), c.weights.end(), 0.0f);
  REQUIRE(c.run({}) == std::vector<float>(5, 0.0f));
  REQUIRE(c.drop({}, 2) == Slots{0, 1});
  Case one(1, 3, 3);
  REQUIRE(std::isfinite(one.run({})[0]));
  REQUIRE(one.drop({}, 0).empty());
  Case none(0, 3, 3);
  REQUIRE(none.run({.fast = true}).empty());
}
