#include <kvcondense/merge/cam.hpp>

#include <kvcondense/core/random.hpp>

#include "driver.hpp"

using namespace kvcondense;
using namespace kvcondense::test;

TEST_CASE("cam: the oracle's value goes to both targets when the draw says so", "[merge][cam]") {
  const auto o = merging_oracle("cam");
  int seen[2] = {};
  for (index_t seed = 0; seed < 24; ++seed) {
    auto d = merge_driver(one_head(2), merge::CaM{.targets = 2, .seed = seed});
    const auto v = rows_of(o["inputs"]["V"]);
    d.fill(0, v, v);
    d.head[0].lane[0] = o["inputs"]["accumulated_attention"].get<Floats>();
    d.head[0].kept = {0, 1, 3, 4};
    REQUIRE(d.step() == Status::ok);
    const std::uint64_t key = random_bits(random_bits(static_cast<std::uint64_t>(seed), 0), 0);
    const bool merges = random_uniform(key, 2) < o["expected"]["p"].get<double>();
    REQUIRE(d.head[0].folded == merges);
    ++seen[merges];
    require_rows(d.head[0].value, rows_of(o["expected"]["V_after"][merges ? "draw_0.2_merged" : "draw_0.5_not_merged"]));
    REQUIRE(d.head[0].key == FloatRows{v[0], v[1], v[3], v[4]});
  }
  REQUIRE(seen[0] > 4);
  REQUIRE(seen[1] > 2);
}

TEST_CASE("cam: no attention at all passes nothing, some beside none passes surely", "[merge][cam]") {
  const FloatRows v{{1, 1}, {2, 0}, {4, 4}, {0, 2}, {2, 2}};
  for (const float own : {0.0f, 0.5f}) {
    auto d = merge_driver(one_head(2), merge::CaM{.targets = 8});
    d.fill(0, v, v);
    d.head[0].lane[0] = {1, 1, own, 0, 0};
    d.head[0].kept = {0, 1, 3, 4};
    REQUIRE(d.step() == Status::ok);
    REQUIRE(d.head[0].folded == (own > 0.0f));
    // Two targets are left of eight, so each gets half.
    require_rows(d.head[0].value, own > 0.0f ? FloatRows{{1, 1}, {2, 0}, {2, 4}, {4, 4}} : FloatRows{{1, 1}, {2, 0}, {0, 2}, {2, 2}});
  }
}

TEST_CASE("cam: many tokens spread over many targets as the formula says", "[merge][cam]") {
  const index_t n = 60, dim = 3, fan = 5;
  std::vector<FloatRows> all;
  FloatRows v;
  for (index_t j = 0; j < n; ++j) v.push_back({static_cast<float>(j % 7), static_cast<float>(j), 1.0f});
  auto d = merge_driver(one_head(dim), merge::CaM{.targets = fan, .mass = merge::Mass::log_count});
  d.fill(0, v, v);
  for (index_t j = 0; j < n; ++j) d.head[0].lane[0][at(j)] = j % 3 == 0 ? 1.0f : 100.0f;  // what leaves passes surely
  for (index_t j = 0; j < n; j += 3) d.head[0].kept.push_back(j);
  REQUIRE(d.step() == Status::ok);
  const Ints stay = d.head[0].stay;
  std::vector<std::vector<double>> want;
  std::vector<double> tokens(stay.size(), 1.0);
  for (const index_t j : stay) want.emplace_back(v[at(j)].begin(), v[at(j)].end());
  for (index_t j = 0; j < n; ++j) {
    if (j % 3 == 0) continue;
    const std::size_t first = at(j / 3 + 1), last = std::min(first + at(fan), stay.size());
    for (std::size_t t = first; t < last; ++t) {
      for (std::size_t c = 0; c < 3; ++c) want[t][c] += static_cast<double>(v[at(j)][c]) / static_cast<double>(last - first);
      tokens[t] += 1.0 / static_cast<double>(last - first);
    }
  }
  for (std::size_t t = 0; t < want.size(); ++t) {
    for (std::size_t c = 0; c < 3; ++c) REQUIRE(d.head[0].value[t][c] == Approx(want[t][c]).epsilon(1e-5));
    REQUIRE(std::exp(d.head[0].lane[at(d.traits.sizes)][t]) == Approx(tokens[t]).epsilon(1e-5));
  }
  REQUIRE(merge::CaM{.targets = 0}.validate(one_head(2)) == Status::invalid_argument);
  REQUIRE(merge::CaM{.seed = -1}.validate(one_head(2)) == Status::invalid_argument);
}
