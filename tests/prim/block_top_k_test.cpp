#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <vector>

#include <catch2/catch.hpp>

#include <kvcondense/cpu.hpp>
#include <support/row_choice.hpp>

using namespace kvcondense;

namespace {

constexpr float inf = std::numeric_limits<float>::infinity();
using test::Slots;

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
  test::require_choices(
      static_cast<std::uint32_t>(block), 200,
      [](const test::Draw& draw) {
        const index_t settled = draw(0, 6), open = draw(0, 25), tail = draw(0, 9), n = settled + open + tail;
        std::vector<float> row(static_cast<std::size_t>(n), inf);
        for (index_t i = settled; i < settled + open; ++i)  // few values: many ties
          row[static_cast<std::size_t>(i)] = draw(0, 9) == 0 ? std::nanf("") : static_cast<float>(draw(-2, 3));
        return row;
      },
      [&](const std::vector<float>& row, prim::Ends ends, index_t total) { return dealt(row, ends, block, total); },
      [&](auto scores, const prim::Ends* ends, const index_t* total, auto slots, index_t* count, index_t* nan) {
        Context<Cpu> ctx;
        return prim::BlockTopK<Cpu>::run(ctx, scores, ends, block, total, slots, count, nan);
      });
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

TEST_CASE("ends: never overlap, never leave the row, and numbers below nothing are nothing", "[prim][block_top_k]") {
  const auto same = [](prim::Ends a, index_t prefix, index_t suffix) { return a.prefix == prefix && a.suffix == suffix; };
  REQUIRE(same(prim::Ends{3, 4}.within(10), 3, 4));
  REQUIRE(same(prim::Ends{3, 4}.within(5), 3, 2));
  REQUIRE(same(prim::Ends{3, 4}.within(2), 2, 0));
  REQUIRE(same(prim::Ends{-3, 4}.within(10), 0, 4));
  REQUIRE(same(prim::Ends{3, -4}.within(10), 3, 0));
}
