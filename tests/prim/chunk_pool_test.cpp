#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include <catch2/catch.hpp>

#include <kvcondense/cpu.hpp>
#include <support/guarded.hpp>

using namespace kvcondense;
using prim::ChunkReduce;

TEST_CASE("chunk_pool: every place gets the sum or mean of its chunk, the ends nothing", "[prim][chunk_pool]") {
  const index_t chunk = GENERATE(1, 2, 5, 8, 100);
  const ChunkReduce reduce = GENERATE(ChunkReduce::sum, ChunkReduce::mean);
  const prim::Ends ends = GENERATE(prim::Ends{0, 0}, prim::Ends{3, 2}, prim::Ends{0, 40});
  CAPTURE(chunk, ends.prefix, ends.suffix);
  const index_t lengths[] = {0, 1, 9, 10, 33};
  std::vector<index_t> offset{0};
  for (const index_t n : lengths) offset.push_back(offset.back() + n);
  std::mt19937 random(5);
  std::normal_distribution<float> normal;
  std::vector<float> before(static_cast<std::size_t>(offset.back()));
  for (float& x : before) x = normal(random);
  before[12] = std::nanf("");
  test::Guarded<float> scores(before.size());
  std::copy(before.begin(), before.end(), scores.data());
  const std::vector<prim::Ends> skip(5, ends);
  Context<Cpu> ctx;
  REQUIRE(prim::ChunkPool<Cpu>::run(ctx, skip.data(), reduce, chunk, {scores.data(), offset.data(), 5}) == Status::ok);
  for (std::size_t h = 0; h < 5; ++h) {
    const prim::Ends e = ends.within(lengths[h]);
    for (index_t j = 0; j < lengths[h]; ++j) {
      const float got = scores.data()[offset[h] + j], was = before[static_cast<std::size_t>(offset[h] + j)];
      if (std::isnan(was)) {
        REQUIRE(std::isnan(got));
        continue;
      }
      if (j < e.prefix || j >= lengths[h] - e.suffix) {
        REQUIRE(got == was);
        continue;
      }
      double sum = 0, terms = 0;
      for (index_t i = e.prefix; i < lengths[h] - e.suffix; ++i) {
        const float x = before[static_cast<std::size_t>(offset[h] + i)];
        if ((i - e.prefix) / chunk == (j - e.prefix) / chunk && !std::isnan(x)) sum += static_cast<double>(x), ++terms;
      }
      REQUIRE(got == Approx(reduce == ChunkReduce::sum ? sum : sum / terms).margin(1e-5));
    }
  }
  REQUIRE(scores.ok());
}

TEST_CASE("chunk_pool: chunks of nothing are refused", "[prim][chunk_pool]") {
  const index_t offset[] = {0, 1};
  float score = 3.0f;
  Context<Cpu> ctx;
  REQUIRE(prim::ChunkPool<Cpu>::run(ctx, nullptr, ChunkReduce::sum, 0, {&score, offset, 1}) == Status::invalid_argument);
  REQUIRE(score == 3.0f);
}
