#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <string>
#include <vector>

#include <evict/driver.hpp>
#include <kvcondense/budget/prefix_mass_search.hpp>
#include <kvcondense/core/random.hpp>

using namespace kvcondense;
using namespace kvcondense::test;

namespace {

struct Found {
  Status status;
  Ints forget;
  budget::PrefixMassLevel level;
};

Found find(const std::vector<std::vector<float>>& rows, const budget::PrefixMassSearch& search) {
  std::vector<std::span<const float>> importance;
  index_t tokens = 0;
  for (const auto& r : rows) importance.emplace_back(r), tokens += static_cast<index_t>(r.size());
  Workspace work;
  REQUIRE(work.reserve(budget::prefix_mass_bytes(static_cast<index_t>(rows.size()), tokens)) == Status::ok);
  Found f{Status::ok, Ints(rows.size(), -1), {}};
  f.status = budget::find_prefix_mass(importance, search, f.forget.data(), Scratch(work.bytes()), &f.level);
  return f;
}

index_t sum(const Ints& x) { return std::accumulate(x.begin(), x.end(), index_t{0}); }

}  // namespace

TEST_CASE("prefix_mass_search: the bisection takes the oracle's steps to the oracle's layers", "[budget][prefix_mass_search]") {
  const auto oracle = eviction_oracle("prefixkv");
  auto rows = oracle["importance_sorted_desc"].get<std::vector<std::vector<float>>>();
  const auto& p = oracle["params"];
  budget::PrefixMassSearch search{.evict = p["evict_ratio"], .protect = p["protect"], .tolerance = p["tolerance"]};
  const Found all = find(rows, search);
  REQUIRE(all.status == Status::ok);
  REQUIRE(all.forget == oracle["forget_int"].get<Ints>());
  REQUIRE(all.level.level == oracle["p"].get<double>());
  REQUIRE(all.level.steps == static_cast<index_t>(oracle["search"].size()));
  for (std::size_t i = 0; i < oracle["search"].size(); ++i) {
    search.most_steps = static_cast<index_t>(i + 1);
    const Found f = find(rows, search);
    REQUIRE(f.level.level == oracle["search"][i]["p"].get<double>());
    REQUIRE(f.level.forgotten == oracle["search"][i]["count"].get<index_t>());
  }
  search.most_steps = 64;
  for (auto& row : rows) std::rotate(row.begin(), row.begin() + 3, row.end());  // any order
  REQUIRE(find(rows, search).forget == all.forget);
}

TEST_CASE("prefix_mass_search: a layer keeps one token more above each of the oracle's cumulative sums", "[budget][prefix_mass_search]") {
  const auto oracle = eviction_oracle("prefixkv");
  const auto rows = oracle["importance_sorted_desc"].get<std::vector<std::vector<float>>>();
  for (std::size_t l = 0; l < rows.size(); ++l) {
    const auto n = static_cast<double>(rows[l].size());
    std::vector<double> step;  // the level above which k + 1 tokens stay: what a search for half a token less closes in on
    for (double k = 1; k < n; ++k)
      step.push_back(find({rows[l]}, {.evict = (n - k - 0.5) / n, .protect = 0, .tolerance = 0.25}).level.level);
    for (std::size_t k = 0; k < step.size(); ++k) REQUIRE(step[k] == Approx(oracle["cumulative"][l][k].get<double>()).margin(2e-6));
    for (const auto& [level, retained] : oracle["pure_threshold_retained"].items()) {
      const double p = std::stod(level);
      REQUIRE(1 + std::count_if(step.begin(), step.end(), [&](double s) { return s < p - 1e-5; }) == retained[l].get<std::ptrdiff_t>());
    }
  }
}

TEST_CASE("prefix_mass_search: totals are exact for any importance, and the protected tokens stay", "[budget][prefix_mass_search]") {
  for (std::uint64_t seed = 0; seed < 60; ++seed) {
    std::vector<std::vector<float>> rows;
    std::uint64_t draw = 0;
    const auto uniform = [&] { return random_uniform(seed, draw++); };
    const auto layers = static_cast<std::size_t>(1 + 20 * uniform());
    index_t tokens = 0, room = 0;
    const index_t protect = seed % 4 == 0 ? 0 : 2;
    for (std::size_t l = 0; l < layers; ++l) {
      rows.emplace_back();
      const index_t n = seed % 2 == 0 ? 64 : static_cast<index_t>(200 * uniform());
      for (index_t j = 0; j < n; ++j) rows.back().push_back(seed % 3 == 0 ? std::floor(3 * uniform()) : std::exp(9 * uniform()));
      if (seed % 7 == 0 && n > 3) rows.back()[2] = std::nanf(""), rows.back()[3] = -1.0f;
      tokens += n, room += std::max<index_t>(0, n - protect);
    }
    for (const double evict : {0.0, 0.1, 0.5, 0.8, 0.99, 1.0}) {
      CAPTURE(seed, layers, tokens, evict);
      const Found f = find(rows, {.evict = evict, .protect = protect});
      REQUIRE(f.status == Status::ok);
      REQUIRE(f.level.steps <= 64);
      REQUIRE(sum(f.forget) == std::min(room, static_cast<index_t>(std::floor(evict * static_cast<double>(tokens) + 1e-6))));
      for (std::size_t l = 0; l < layers; ++l)
        REQUIRE((f.forget[l] >= 0 && f.forget[l] <= std::max<index_t>(0, static_cast<index_t>(rows[l].size()) - protect)));
    }
  }
}

TEST_CASE("prefix_mass_search: a search out of range is refused", "[budget][prefix_mass_search]") {
  const std::vector<std::vector<float>> rows{{1, 2, 3}};
  REQUIRE(find(rows, {.evict = -0.1}).status == Status::invalid_argument);
  REQUIRE(find(rows, {.evict = 1.1}).status == Status::invalid_argument);
  REQUIRE(find(rows, {.evict = std::nan("")}).status == Status::invalid_argument);
  REQUIRE(find(rows, {.evict = 0.5, .protect = -1}).status == Status::invalid_argument);
  REQUIRE(find(rows, {.evict = 0.5, .most_steps = -1}).status == Status::invalid_argument);
  const std::span<const float> row(rows[0]);
  Workspace work;
  const std::size_t all = budget::prefix_mass_bytes(1, 3);
  REQUIRE(work.reserve(all) == Status::ok);
  index_t forget = -1;
  for (std::size_t less = 1; less <= all; ++less)
    REQUIRE(budget::find_prefix_mass(std::span(&row, 1), {}, &forget, Scratch(work.bytes().first(all - less))) == Status::workspace_too_small);
  REQUIRE(forget == -1);
  REQUIRE(budget::find_prefix_mass(std::span(&row, 1), {}, &forget, Scratch(work.bytes().first(all))) == Status::ok);
  REQUIRE(forget == 1);  // half of three tokens
}

TEST_CASE("prefix_mass_search: no step, a layer without importance, numbers that are none", "[budget][prefix_mass_search]") {
  const float inf = std::numeric_limits<float>::infinity();
  const Found none = find({{4, 3, 2, 1, 1, 1}}, {.evict = 0.5, .protect = 0, .most_steps = 0});
  REQUIRE(none.level.steps == 0);
  REQUIRE(none.level.forgotten == 5);  // at level 0 a layer keeps one token
  REQUIRE(none.forget == Ints{3});     // and is scaled to the half that was asked for
  const Found dead = find({{0, 0, 0, 0}, {1, 1, 1, 1}}, {.evict = 0.5, .protect = 0});
  REQUIRE(dead.status == Status::ok);
  REQUIRE(sum(dead.forget) == 4);
  const Found odd = find({{inf, 2, -inf, 1}, {3, 2, 1, 0}}, {.evict = 0.5, .protect = 1}), plain = find({{0, 2, 0, 1}, {3, 2, 1, 0}}, {.evict = 0.5, .protect = 1});
  REQUIRE(odd.forget == plain.forget);  // counts as 0
}
