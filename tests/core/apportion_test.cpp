#include <cmath>
#include <numeric>
#include <vector>

#include <catch2/catch.hpp>

#include <kvcondense/core/apportion.hpp>
#include <kvcondense/core/random.hpp>

using namespace kvcondense;

namespace {

using Ints = std::vector<index_t>;

struct Shares {
  Status status = Status::ok;
  Ints share;
};

Shares divide(index_t total, const std::vector<double>& weight, const Ints& least, const Ints& most) {
  const auto n = static_cast<index_t>(weight.size());
  Workspace work;
  REQUIRE(work.reserve(apportion_bytes(n)) == Status::ok);
  Shares r{Status::ok, Ints(weight.size(), -1)};
  const auto of = [](const auto& list) { return [&list](index_t i) { return list[static_cast<std::size_t>(i)]; }; };
  r.status = apportion(n, total, of(weight), of(least), of(most), r.share.data(), Scratch(work.bytes()));
  return r;
}

index_t sum(const Ints& x) { return std::accumulate(x.begin(), x.end(), index_t{0}); }

}  // namespace

TEST_CASE("apportion: largest remainders, the first of equals", "[core][apportion]") {
  const Ints none(4, 0), lots(4, 1000);
  REQUIRE(divide(10, {1, 1, 1, 1}, none, lots).share == Ints{3, 3, 2, 2});
  REQUIRE(divide(10, {4, 3, 2, 1}, none, lots).share == Ints{4, 3, 2, 1});
  REQUIRE(divide(10, {0.16, 0.26, 0.26, 0.32}, none, lots).share == Ints{2, 3, 2, 3});  // 1.6 2.6 2.6 3.2
  REQUIRE(divide(0, {1, 2, 3, 4}, none, lots).share == none);
  REQUIRE(divide(7, {0.1, 0.2, 0.3, 0.1}, none, lots).share == Ints{1, 2, 3, 1});
}

TEST_CASE("apportion: bounds hold, and what they take is shared in proportion", "[core][apportion]") {
  REQUIRE(divide(12, {8, 2, 1, 1}, {0, 0, 0, 0}, {4, 100, 100, 100}).share == Ints{4, 4, 2, 2});
  REQUIRE(divide(12, {8, 2, 1, 1}, {0, 0, 3, 0}, {4, 100, 100, 100}).share == Ints{4, 3, 3, 2});  // 10 / 3, 5 / 3
  REQUIRE(divide(100, {8, 2, 1, 1}, {0, 0, 0, 0}, {4, 5, 6, 7}).share == Ints{4, 5, 6, 7});
  REQUIRE(divide(1, {8, 2, 1, 1}, {2, 2, 2, 2}, {4, 5, 6, 7}).share == Ints{2, 2, 2, 2});
}

TEST_CASE("apportion: weights that are no positive numbers count for nothing while others have room", "[core][apportion]") {
  const double inf = INFINITY, nan = std::nan("");
  REQUIRE(divide(9, {0, -3, nan, 1}, Ints(4, 0), Ints(4, 100)).share == Ints{0, 0, 0, 9});
  REQUIRE(divide(9, {0, -3, inf, 1}, Ints(4, 0), {100, 1, 100, 6}).share == Ints{1, 1, 1, 6});
  REQUIRE(divide(9, {0, 0, 0, 0}, Ints(4, 0), Ints(4, 100)).share == Ints{3, 2, 2, 2});
}

TEST_CASE("apportion: any weights and bounds give an exact total near the real shares", "[core][apportion]") {
  std::uint64_t draw = 0;
  const auto uniform = [&] { return static_cast<double>(random_uniform(5, draw++)); };
  for (int round = 0; round < 3000; ++round) {
    const auto n = static_cast<std::size_t>(1 + 40 * uniform());
    std::vector<double> weight;
    Ints least, most;
    index_t lo = 0, hi = 0;
    for (std::size_t i = 0; i < n; ++i) {
      weight.push_back(round % 3 == 0 ? std::floor(4 * uniform()) : std::exp(12 * uniform()));
      least.push_back(round % 2 == 0 ? 0 : static_cast<index_t>(20 * uniform()));
      most.push_back(round % 5 == 0 ? 1000000 : least.back() + static_cast<index_t>(200 * uniform()));
      lo += least.back(), hi += most.back();
    }
    const auto total = lo + static_cast<index_t>(uniform() * static_cast<double>(std::min<index_t>(hi, 5000) - lo));
    CAPTURE(round, n, total);
    const Shares got = divide(total, weight, least, most);
    REQUIRE(got.status == Status::ok);
    REQUIRE(sum(got.share) == std::clamp(total, lo, hi));
    for (std::size_t i = 0; i < n; ++i) {
      REQUIRE((got.share[i] >= least[i] && got.share[i] <= most[i]));
      // Who is not at a bound gets, within one place, what its weight says against everyone else.
      for (std::size_t j = 0; j < n; ++j)
        if (weight[i] > 0 && weight[j] > 0 && got.share[i] > least[i] + 1 && got.share[j] < most[j])
          REQUIRE(static_cast<double>(got.share[i] - 1) / weight[i] <= static_cast<double>(got.share[j] + 1) / weight[j] * (1 + 1e-9));
    }
  }
}

TEST_CASE("apportion: totals that a double cannot hold are exact", "[core][apportion]") {
  for (const index_t total : {(index_t{1} << 58) + 1, (index_t{1} << 58) - 1, (index_t{1} << 59) + 77, (index_t{3} << 56) - 129})
    for (std::size_t units = 2; units < 9; ++units)
      for (const bool full : {false, true}) {
        std::vector<double> weight;
        for (std::size_t i = 0; i < units; ++i) weight.push_back(1.0 + 0.37 * static_cast<double>(i));
        Ints most(units, index_t{1} << 59);
        if (full) most[0] = (total / 10) & ~index_t{1023};  // a double holds it
        CAPTURE(total, units, full);
        const Shares got = divide(total, weight, Ints(units, 0), most);
        REQUIRE(sum(got.share) == std::min(total, sum(most)));
        for (std::size_t i = 0; i < units; ++i) REQUIRE(got.share[i] <= most[i]);
      }
}

TEST_CASE("apportion: a scratch that is too small is refused, no units are no work", "[core][apportion]") {
  std::byte little[128], more[1000], nearly[1700];
  index_t share[100] = {-1};
  const auto one = [](index_t) { return 1.0; };
  const auto bound = [](index_t) { return index_t{9}; };
  REQUIRE(apportion(100, 5, one, bound, bound, share, Scratch(little)) == Status::workspace_too_small);
  REQUIRE(apportion(100, 5, one, bound, bound, share, Scratch(more)) == Status::workspace_too_small);
  REQUIRE(apportion(100, 5, one, bound, bound, share, Scratch(nearly)) == Status::workspace_too_small);
  REQUIRE(share[0] == -1);
  REQUIRE(apportion(0, 5, one, bound, bound, share, Scratch(little)) == Status::ok);
}
