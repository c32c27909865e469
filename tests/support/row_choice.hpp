#pragma once

#include <cmath>
#include <functional>
#include <random>
#include <vector>

#include <catch2/catch.hpp>

#include <kvcondense/cpu.hpp>
#include <support/guarded.hpp>

namespace kvcondense::test {

using Slots = std::vector<std::int32_t>;
using Draw = std::function<index_t(index_t lo, index_t hi)>;

/// A word that keeps places of rows of scores, against one that takes its contract by the letter: random
/// rows, ends and totals, three rows a call.
///
/// row(draw) -> scores;  want(scores, ends, total) -> places;  word(scores, ends, total, slots, count, nan) -> Status
template <class Row, class Want, class Word>
void require_choices(std::uint32_t seed, int rounds, Row&& make_row, Want&& choose, Word&& word) {
  std::mt19937 random(seed);
  const Draw draw = [&](index_t lo, index_t hi) { return std::uniform_int_distribution<index_t>(lo, hi)(random); };
  for (int round = 0; round < rounds; ++round) {
    std::vector<float> numbers;
    std::vector<index_t> offset{0}, total;
    std::vector<prim::Ends> ends;
    std::vector<Slots> want;
    index_t bad = 0;
    for (int h = 0; h < 3; ++h) {
      const std::vector<float> row = make_row(draw);
      const auto n = static_cast<index_t>(row.size());
      ends.push_back({draw(0, 4), draw(0, 4)});
      total.push_back(draw(0, n + 2));
      want.push_back(choose(row, ends.back(), total.back()));
      const prim::Ends e = ends.back().within(n);
      if (total.back() < n)
        for (index_t i = e.prefix; i < n - e.suffix; ++i) bad += std::isnan(row[static_cast<std::size_t>(i)]);
      numbers.insert(numbers.end(), row.begin(), row.end());
      offset.push_back(static_cast<index_t>(numbers.size()));
    }
    Guarded<std::int32_t> slots(numbers.size());
    index_t count[3], nan = 0;
    const RaggedView<const float> scores{numbers.data(), offset.data(), 3};
    REQUIRE(word(scores, ends.data(), total.data(), RaggedView<std::int32_t>{slots.data(), offset.data(), 3}, count, &nan) ==
            Status::ok);
    for (std::size_t h = 0; h < 3; ++h) {
      CAPTURE(round, h);
      REQUIRE(Slots(slots.data() + offset[h], slots.data() + offset[h] + count[h]) == want[h]);
    }
    REQUIRE(nan == bad);
    REQUIRE(slots.ok());
  }
}

}  // namespace kvcondense::test
