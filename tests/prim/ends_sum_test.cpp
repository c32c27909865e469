#include <cmath>
#include <random>
#include <vector>

#include <catch2/catch.hpp>

#include <kvcondense/cpu.hpp>
#include <support/guarded.hpp>

using namespace kvcondense;

TEST_CASE("ends_sum: sums the ends of every row, and all of it where they meet", "[prim][ends_sum]") {
  const std::vector<index_t> offset{0, 0, 1, 40, 75, 330};
  const std::vector<prim::Ends> ends{{3, 2}, {0, 0}, {5, 3}, {30, 30}, {0, 200}};
  std::vector<float> x(330);
  std::mt19937 random(3);
  std::normal_distribution<float> normal;
  for (float& v : x) v = normal(random);
  test::Guarded<float> sum(5, 9.0f);
  Context<Cpu> ctx;
  REQUIRE(prim::EndsSum<Cpu>::run(ctx, RaggedView<const float>{x.data(), offset.data(), 5}, ends.data(), sum.data()) == Status::ok);
  for (std::size_t h = 0; h < 5; ++h) {
    double want = 0;
    const index_t n = offset[h + 1] - offset[h];
    for (index_t j = 0; j < n; ++j)
      if (j < ends[h].prefix || j >= n - ends[h].suffix) want += static_cast<double>(x[static_cast<std::size_t>(offset[h] + j)]);
    REQUIRE(sum.data()[h] == Approx(want).margin(1e-4));
  }
  REQUIRE(sum.ok());
  REQUIRE((sum.data()[0] == 0.0f && sum.data()[1] == 0.0f));
}

TEST_CASE("ends_sum: NaN inside of the ends is seen, one between them is not", "[prim][ends_sum]") {
  const float x[] = {1.0f, std::nanf(""), 2.0f, 1.0f, 4.0f, std::nanf("")};
  const index_t offset[] = {0, 3, 6};
  const prim::Ends ends[] = {{1, 1}, {1, 1}};
  float sum[2];
  Context<Cpu> ctx;
  REQUIRE(prim::EndsSum<Cpu>::run(ctx, RaggedView<const float>{x, offset, 2}, ends, sum) == Status::ok);
  REQUIRE(sum[0] == 3.0f);
  REQUIRE(std::isnan(sum[1]));
}
