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

using test::Slots;

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
  test::require_choices(
      static_cast<std::uint32_t>(chunk), 300,
      [](const test::Draw& draw) {
        std::vector<float> row(static_cast<std::size_t>(draw(0, 40)));
        for (float& x : row) x = draw(0, 9) == 0 ? std::nanf("") : static_cast<float>(draw(-3, 3));
        return row;
      },
      [&](const std::vector<float>& row, prim::Ends ends, index_t total) { return chosen(row, ends, chunk, total); },
      [&](auto scores, const prim::Ends* ends, const index_t* total, auto slots, index_t* count, index_t* nan) {
        Context<Cpu> ctx;
        return prim::ChunkTopK<Cpu>::run(ctx, scores, ends, chunk, total, slots, count, nan);
      });
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
