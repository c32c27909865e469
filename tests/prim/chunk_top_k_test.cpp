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

/// Chunks sorted by their best score, whole ones taken while there is room for a full one.
Slots chosen(const std::vector<float>& scores, prim::Ends ends, index_t chunk, index_t total) {
  const auto n = static_cast<index_t>(scores.size());
  Slots all(static_cast<std::size_t>(n));
  std::iota(all.begin(), all.end(), 0);
  if (total >= n) return all;
  ends = ends.within(n);
  struct Chunk {
    double best;
    Slots slots;
  };
  std::vector<Chunk> chunks;
  Slots kept;
  for (std::int32_t i = 0; i < n; ++i) {
    if (i < ends.prefix || i >= n - ends.suffix) {
      kept.push_back(i);
      continue;
    }
    if ((i - ends.prefix) % chunk == 0) chunks.push_back({-INFINITY, {}});
    const float s = scores[static_cast<std::size_t>(i)];
    if (s > chunks.back().best) chunks.back().best = static_cast<double>(s);
    chunks.back().slots.push_back(i);
  }
  std::stable_sort(chunks.begin(), chunks.end(), [](const Chunk& a, const Chunk& b) { return a.best > b.best; });
  const auto places = static_cast<std::size_t>(std::max<index_t>(0, total - ends.size()) / chunk);
  for (std::size_t c = 0; c < std::min(places, chunks.size()); ++c)
    kept.insert(kept.end(), chunks[c].slots.begin(), chunks[c].slots.end());
  std::sort(kept.begin(), kept.end());
  return kept;
}

}  // namespace

TEST_CASE("chunk_top_k: equals sorting the chunks", "[prim][chunk_top_k]") {
  const index_t chunk = GENERATE(1, 2, 3, 7, 60);
  std::mt19937 random(static_cast<std::uint32_t>(chunk));
  const auto draw = [&](index_t lo, index_t hi) { return std::uniform_int_distribution<index_t>(lo, hi)(random); };
  for (int round = 0; round < 300; ++round) {
    std::vector<float> numbers;
    std::vector<index_t> offset{0}, total;
    std::vector<prim::Ends> ends;
    std::vector<Slots> want;
    index_t bad = 0;
    for (int h = 0; h < 3; ++h) {
      const index_t n = draw(0, 40);
      std::vector<float> row(static_cast<std::size_t>(n));
      for (float& x : row) x = draw(0, 9) == 0 ? std::nanf("") : static_cast<float>(draw(-3, 3));
      ends.push_back({draw(0, 4), draw(0, 4)});
      total.push_back(draw(0, n + 2));
      want.push_back(chosen(row, ends.back(), chunk, total.back()));
      const prim::Ends e = ends.back().within(n);
      if (total.back() < n)
        for (index_t i = e.prefix; i < n - e.suffix; ++i) bad += std::isnan(row[static_cast<std::size_t>(i)]);
      numbers.insert(numbers.end(), row.begin(), row.end());
      offset.push_back(static_cast<index_t>(numbers.size()));
    }
    test::Guarded<std::int32_t> slots(numbers.size());
    index_t count[3], nan = 0;
    Context<Cpu> ctx;
    REQUIRE(prim::ChunkTopK<Cpu>::run(ctx, {numbers.data(), offset.data(), 3}, ends.data(), chunk, total.data(),
                                      {slots.data(), offset.data(), 3}, count, &nan) == Status::ok);
    for (std::size_t h = 0; h < 3; ++h) {
      CAPTURE(round, h);
      REQUIRE(Slots(slots.data() + offset[h], slots.data() + offset[h] + count[h]) == want[h]);
    }
    REQUIRE(nan == bad);
    REQUIRE(slots.ok());
  }
}

TEST_CASE("chunk_top_k: a chunk of nothing but NaN leaves before one of -inf", "[prim][chunk_top_k]") {
  constexpr float inf = std::numeric_limits<float>::infinity();
  const float nan = std::nanf(""), scores[] = {nan, nan, -inf, nan};
  const index_t offset[] = {0, 4}, total[] = {2};
  std::int32_t slots[4];
  index_t count = 0;
  Context<Cpu> ctx;
  REQUIRE(prim::ChunkTopK<Cpu>::run(ctx, {scores, offset, 1}, nullptr, 2, total, {slots, offset, 1}, &count) == Status::ok);
  REQUIRE((count == 2 && slots[0] == 2 && slots[1] == 3));
}

TEST_CASE("chunk_top_k: chunks of nothing are refused", "[prim][chunk_top_k]") {
  const float score = 1.0f;
  const index_t offset[] = {0, 1}, total[] = {0};
  std::int32_t slot = 7;
  index_t count = 9;
  Context<Cpu> ctx;
  REQUIRE(prim::ChunkTopK<Cpu>::run(ctx, {&score, offset, 1}, nullptr, 0, total, {&slot, offset, 1}, &count) ==
          Status::invalid_argument);
  REQUIRE((slot == 7 && count == 9));
}
