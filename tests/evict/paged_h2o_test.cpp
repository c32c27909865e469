#include <algorithm>
#include <cmath>

#include <evict/properties.hpp>
#include <kvcondense/evict/paged_h2o.hpp>

using namespace kvcondense;
using namespace kvcondense::test;

namespace {

using evict::PagedH2O;

/// The rule on lists, in double: one layer.
struct Naive {
  PagedH2O p;
  Ints token;
  std::vector<double> sum, rows;

  void step(index_t first, index_t appended, const std::function<double(index_t)>& mass) {
    for (index_t i = 0; i < appended; ++i) token.push_back(first + i), sum.push_back(0), rows.push_back(0);
    const auto n = static_cast<index_t>(token.size());
    const index_t counted = p.window == 0 ? appended : std::min(p.window, appended);
    for (index_t j = 0; j < n; ++j) {
      double most = -INFINITY;
      for (index_t i = j; i < std::min(n, j + p.width); ++i) most = std::max(most, mass(token[at(i)]));
      sum[at(j)] += most;
      rows[at(j)] += static_cast<double>(std::min(counted, n - j));
    }
    if (n <= p.start + p.evictable + p.recent + p.page - 1) return;
    std::vector<std::pair<double, index_t>> pages;  // the worst first, of equals the one behind
    for (index_t g = p.start / p.page; g < n / p.page - p.recent / p.page; ++g) {
      double score = 0;
      for (index_t j = g * p.page; j < (g + 1) * p.page; ++j) score += p.per_row ? sum[at(j)] / rows[at(j)] : sum[at(j)];
      pages.emplace_back(score, -g);
    }
    std::sort(pages.begin(), pages.end());
    pages.resize(pages.size() - at(p.evictable / p.page));
    std::vector<index_t> gone;
    for (const auto& [score, g] : pages) gone.push_back(-g);
    std::sort(gone.rbegin(), gone.rend());
    for (const index_t g : gone) {
      const auto cut = [&](auto& list) { list.erase(list.begin() + g * p.page, list.begin() + (g + 1) * p.page); };
      cut(token), cut(sum), cut(rows);
    }
  }
};

}  // namespace

TEST_CASE("paged_h2o: pages equal the oracle in both forms", "[evict][paged_h2o]") {
  const auto oracle = eviction_oracle("paged_h2o");
  const auto& params = oracle["params"];
  const index_t page = params["block"], start = params["start"], recent = params["recent"], most = params["max_cache"];
  for (const bool per_row : {true, false}) {
    auto d = drive({.q_heads = 2}, PagedH2O{.page = page, .start = start, .evictable = most - start - recent,
                                            .recent = recent, .window = 1, .width = 1, .per_row = per_row});
    d.seen = oracle["resident_tokens"].get<index_t>() - 1;
    const auto sums = oracle["accumulated"].get<std::vector<float>>();
    const auto rows = oracle["lifetime"].get<std::vector<std::uint32_t>>();
    for (index_t t = 0; t < d.seen; ++t) {
      d.held[0].push_back(t);
      d.lane[0][0].push_back(t < start ? 9.0f : sums[at(t - start)]);
      d.lane[1][0].push_back(prim::exposure_mark(t < start ? 1 : rows[at(t - start)] - 1, 0));  // this step is the last of its rows
    }
    REQUIRE(d.step(1, Phase::decode, [&](index_t, index_t t) { return t == 11 ? sums.back() : 0.0f; }) == Status::ok);
    Ints want;
    for (const index_t g : oracle[per_row ? "norm_sum" : "sum"]["kept_pages"])
      for (index_t j = 0; j < page; ++j) want.push_back(g * page + j);
    REQUIRE(d.held[0] == want);
    REQUIRE(d.lane[1][0].size() == want.size());
  }
}

TEST_CASE("paged_h2o: prompts in chunks and decoding follow the rule on lists", "[evict][paged_h2o]") {
  const index_t page = GENERATE(1, 4, 5), window = GENERATE(0, 3), width = GENERATE(1, 4);
  const bool per_row = GENERATE(false, true);
  CAPTURE(page, window, width, per_row);
  const PagedH2O p{.page = page, .start = 2 * page, .evictable = 3 * page, .recent = page, .window = window, .width = width, .per_row = per_row};
  auto d = drive({.q_heads = 6, .kv_heads = 3}, p);
  Naive naive{p, {}, {}, {}};
  for (std::uint32_t step = 0; step < 60; ++step) {
    const index_t first = d.seen, n = step < 4 ? 1 + static_cast<index_t>(20 * number(step, 0, 0)) : 1;
    const auto draw = [step](index_t h, index_t t) { return std::exp(3 * number(step, h, t)); };
    REQUIRE(d.step(n, step < 3 ? Phase::prefill_chunk : step == 3 ? Phase::prefill_end : Phase::decode, draw) == Status::ok);
    naive.step(first, n, [&](index_t t) { return draw(0, t) + draw(1, t) + draw(2, t); });
    for (index_t h = 0; h < 3; ++h) REQUIRE(d.held[at(h)] == naive.token);
    REQUIRE(static_cast<index_t>(naive.token.size()) < 7 * page);
  }
}

TEST_CASE("paged_h2o: equal pages keep the one in front", "[evict][paged_h2o]") {
  auto d = drive({}, PagedH2O{.page = 2, .start = 2, .evictable = 4, .recent = 2, .window = 1, .width = 1, .per_row = false});
  REQUIRE(d.step(13, Phase::prefill_end, [](index_t, index_t) { return 0.5; }) == Status::ok);
  REQUIRE(d.held[0] == Ints{0, 1, 2, 3, 4, 5, 10, 11, 12});
}

TEST_CASE("paged_h2o: a number that is none is left out of its page", "[evict][paged_h2o]") {
  auto d = drive({}, PagedH2O{.page = 2, .start = 0, .evictable = 2, .recent = 2, .window = 1, .width = 1, .per_row = false});
  const PerToken mass = [](index_t, index_t t) { return t == 2 ? std::nan("") : t == 3 ? 9.0 : 0.5; };
  REQUIRE(d.step(6, Phase::prefill_end, mass) == Status::ok);
  REQUIRE(d.held[0] == Ints{2, 3, 4, 5});
  REQUIRE(d.nan == 1);
}

TEST_CASE("paged_h2o: every knob has its say", "[evict][paged_h2o]") {
  const auto kept = [](const PagedH2O& p) {
    auto d = drive({}, p);
    for (std::uint32_t i = 0; i < 20; ++i)
      REQUIRE(d.step(i == 0 ? 40 : 1, i == 0 ? Phase::prefill_end : Phase::decode,
                     [i](index_t, index_t t) { return std::exp(4 * number(i, 0, t)); }) == Status::ok);
    return d.held;
  };
  const PagedH2O usual{.page = 4, .start = 4, .evictable = 16, .recent = 4};
  for (const PagedH2O& other : {PagedH2O{.page = 2, .start = 4, .evictable = 16, .recent = 4}, {.page = 4, .start = 0, .evictable = 16, .recent = 4},
                                {.page = 4, .start = 4, .evictable = 12, .recent = 4}, {.page = 4, .start = 4, .evictable = 16, .recent = 8},
                                {.page = 4, .start = 4, .evictable = 16, .recent = 4, .width = 1},
                                {.page = 4, .start = 4, .evictable = 16, .recent = 4, .window = 0},
                                {.page = 4, .start = 4, .evictable = 16, .recent = 4, .per_row = false}})
    REQUIRE(kept(other) != kept(usual));
}

TEST_CASE("paged_h2o: heads of different lengths are refused", "[evict][paged_h2o]") {
  auto d = drive({.q_heads = 2, .kv_heads = 2}, PagedH2O{});
  d.held[1].push_back(0);
  for (auto& l : d.lane) l[1].push_back(0.0f);
  REQUIRE(d.step(1, Phase::decode, [](index_t, index_t) { return 1.0; }) == Status::not_supported);
}

TEST_CASE("paged_h2o: sizes out of range are refused", "[evict][paged_h2o]") {
  REQUIRE(PagedH2O{}.validate({}) == Status::ok);
  for (const PagedH2O& bad : {PagedH2O{.page = 0}, {.page = -1}, {.page = 48}, {.start = -32}, {.start = 33}, {.evictable = 0},
                              {.evictable = 100}, {.recent = -32}, {.recent = 1}, {.window = -1}, {.width = 0}, {.width = 65}})
    REQUIRE(bad.validate({}) == Status::invalid_argument);
  constexpr index_t large = index_t{1} << 31;  // more would not be counted
  for (const PagedH2O& bad : {PagedH2O{.page = 2 * large, .start = 0, .evictable = 2 * large, .recent = 0}, {.start = large + 32}, {.evictable = large + 32}, {.recent = large + 32}})
    REQUIRE(bad.validate({}) == Status::invalid_argument);
  REQUIRE(PagedH2O{.page = 1, .start = 0, .evictable = 1, .recent = 0, .window = 0, .width = 1}.validate({}) == Status::ok);
}
