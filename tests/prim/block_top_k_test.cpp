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

constexpr float inf = std::numeric_limits<float>::infinity();
using Slots = std::vector<std::int32_t>;

/// What stays, by the words of the contract: deal places one by one to blocks that still have slots.
Slots dealt(const std::vector<float>& scores, prim::Ends ends, index_t block, index_t total) {
  const auto n = static_cast<index_t>(scores.size());
  Slots kept(static_cast<std::size_t>(n));
  std::iota(kept.begin(), kept.end(), 0);
  if (total >= n) return kept;
  ends = ends.within(n);
  Slots run;
  for (std::int32_t i = 0; i < n; ++i)
    if (i >= ends.prefix && i < n - ends.suffix && scores[static_cast<std::size_t>(i)] != inf) run.push_back(i);
  std::vector<Slots> blocks;
  for (std::size_t i = 0; i < run.size(); ++i) {
    if (i % static_cast<std::size_t>(block) == 0) blocks.emplace_back();
    blocks.back().push_back(run[i]);
  }
  const auto rank = [&](std::int32_t i) {
    const float s = scores[static_cast<std::size_t>(i)];
    return std::isnan(s) ? -inf : s;
  };
  for (Slots& b : blocks)  // best last
    std::sort(b.begin(), b.end(), [&](auto x, auto y) { return rank(x) != rank(y) ? rank(x) < rank(y) : x > y; });
  for (index_t left = total - (n - static_cast<index_t>(run.size())); left > 0;) {
    bool any = false;
    for (Slots& b : blocks)
      if (left > 0 && !b.empty()) run.erase(std::find(run.begin(), run.end(), b.back())), b.pop_back(), --left, any = true;
    if (!any) break;
  }
  for (const auto gone : run) kept.erase(std::find(kept.begin(), kept.end(), gone));
  return kept;
}

}  // namespace

TEST_CASE("block_top_k: equals dealing places one by one", "[prim][block_top_k]") {
  const index_t block = GENERATE(1, 2, 3, 5, 8, 100);
  std::mt19937 random(static_cast<std::uint32_t>(block));
  const auto draw = [&](index_t lo, index_t hi) { return std::uniform_int_distribution<index_t>(lo, hi)(random); };
  for (int round = 0; round < 200; ++round) {
    std::vector<float> numbers;
    std::vector<index_t> offset{0}, total;
    std::vector<prim::Ends> ends;
    std::vector<Slots> want;
    index_t bad = 0;
    for (int h = 0; h < 3; ++h) {
      const index_t settled = draw(0, 6), open = draw(0, 25), tail = draw(0, 9), n = settled + open + tail;
      std::vector<float> row(static_cast<std::size_t>(n), inf);
      for (index_t i = settled; i < settled + open; ++i)  // few values: many ties
        row[static_cast<std::size_t>(i)] = draw(0, 9) == 0 ? std::nanf("") : static_cast<float>(draw(-2, 3));
      ends.push_back({draw(0, 4), draw(0, 4)});
      total.push_back(draw(0, n + 2));
      want.push_back(dealt(row, ends.back(), block, total.back()));
      if (total.back() < n) {
        const prim::Ends e = ends.back().within(n);
        for (index_t i = e.prefix; i < n - e.suffix; ++i) bad += std::isnan(row[static_cast<std::size_t>(i)]);
      }
      numbers.insert(numbers.end(), row.begin(), row.end());
      offset.push_back(static_cast<index_t>(numbers.size()));
    }
    test::Guarded<std::int32_t> slots(numbers.size());
    index_t count[3], nan = 0;
    Context<Cpu> ctx;
    REQUIRE(prim::BlockTopK<Cpu>::run(ctx, {numbers.data(), offset.data(), 3}, ends.data(), block, total.data(),
                                      {slots.data(), offset.data(), 3}, count, &nan) == Status::ok);
    for (std::size_t h = 0; h < 3; ++h) {
      CAPTURE(round, h);
      REQUIRE(Slots(slots.data() + offset[h], slots.data() + offset[h] + count[h]) == want[h]);
    }
    REQUIRE(nan == bad);
    REQUIRE(slots.ok());
  }
}

TEST_CASE("block_top_k: blocks of nothing are refused", "[prim][block_top_k]") {
  const index_t offset[] = {0, 1}, total[] = {0};
  const float score = 1.0f;
  std::int32_t slot = 7;
  index_t count = 9;
  Context<Cpu> ctx;
  REQUIRE(prim::BlockTopK<Cpu>::run(ctx, {&score, offset, 1}, nullptr, 0, total, {&slot, offset, 1}, &count) ==
          Status::invalid_argument);
  REQUIRE((slot == 7 && count == 9));
}
