#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include <catch2/catch.hpp>

#include <kvcondense/cpu.hpp>
#include <support/guarded.hpp>

using namespace kvcondense;

namespace {

constexpr float inf = std::numeric_limits<float>::infinity();

/// One block's softmax of deviations, in double, as the formula stands.
std::vector<double> block_scores(const float* block_rows, const float* next, index_t block, index_t dim) {
  std::vector<double> u;
  for (index_t j = 0; j < block; ++j) {
    std::vector<double> y;
    double mean = 0, square = 0;
    for (index_t c = 0; c < dim; ++c) {
      double lo = INFINITY, hi = -INFINITY;
      for (index_t i = 0; i < block; ++i) {
        lo = std::min(lo, static_cast<double>(next[i * dim + c]));
        hi = std::max(hi, static_cast<double>(next[i * dim + c]));
      }
      y.push_back((static_cast<double>(block_rows[j * dim + c]) - lo) / std::max(hi - lo, 1e-6));
      mean += y.back() / static_cast<double>(dim);
    }
    for (const double x : y) square += (x - mean) * (x - mean);
    u.push_back(std::sqrt(square / static_cast<double>(dim - 1)));
  }
  const double top = *std::max_element(u.begin(), u.end());
  double sum = 0;
  for (const double x : u) sum += std::exp(x - top);
  for (double& x : u) x = std::exp(x - top) / sum;
  return u;
}

}  // namespace

TEST_CASE("lag_spread: equals the plain formula, block by block, and touches nothing else", "[prim][lag_spread]") {
  const index_t block = GENERATE(3, 16, 17, 40), blocks = GENERATE(0, 1, 3), dim = GENERATE(2, 7, 64, 80, 128);
  CAPTURE(block, blocks, dim);
  const index_t first = 5, n = first + (blocks + 1) * block + 2, heads = 2;
  std::vector<float> rows(static_cast<std::size_t>(heads * n * dim));
  std::mt19937 random(7);
  std::normal_distribution<float> normal;
  for (float& x : rows) x = normal(random);
  const DenseRows dense(dense_view(static_cast<const float*>(rows.data()), heads, n, dim));
  const index_t offset[] = {0, n, 2 * n};
  test::Guarded<float> scores(static_cast<std::size_t>(heads * n), inf), spread(static_cast<std::size_t>(heads * n), -3.0f);
  for (index_t h = 0; h < heads; ++h) std::fill_n(scores.data() + h * n + first, blocks * block, 1.0f);
  Context<Cpu> ctx;
  REQUIRE(prim::LagSpread<Cpu>::add(ctx, dense, block, 2.0f, {spread.data(), offset, heads},
                                    {scores.data(), offset, heads}) == Status::ok);
  for (index_t h = 0; h < heads; ++h) {
    for (index_t b = 0; b < blocks; ++b) {
      const float* x = rows.data() + (h * n + first + b * block) * dim;
      const auto want = block_scores(x, x + block * dim, block, dim);
      for (index_t j = 0; j < block; ++j)
        REQUIRE(scores.data()[h * n + first + b * block + j] ==
                Approx(1.0 + 2.0 * want[static_cast<std::size_t>(j)]).epsilon(1e-5));
    }
    for (index_t j = 0; j < n; ++j)
      if (j < first || j >= first + blocks * block) {
        REQUIRE(scores.data()[h * n + j] == inf);
        REQUIRE(spread.data()[h * n + j] == -3.0f);
      }
  }
  REQUIRE((scores.ok() && spread.ok()));
}

TEST_CASE("lag_spread: constant channels, one channel and bad numbers do no harm to others", "[prim][lag_spread]") {
  const float nan = std::nanf("");
  // Blocks of two; channel 1 of the second block is constant and channel 2 holds a bad number.
  const float rows[4][3] = {{1.0f, 5.0f, 0.5f}, {nan, 5.0f, 0.5f}, {0.0f, 5.0f, nan}, {1.0f, 5.0f, 2.0f}};
  const DenseRows dense(dense_view(&rows[0][0], 1, 4, 3));
  const index_t offset[] = {0, 4};
  float scores[4] = {0.0f, 0.0f, inf, inf}, spread[4];
  Context<Cpu> ctx;
  REQUIRE(prim::LagSpread<Cpu>::add(ctx, dense, 2, 1.0f, {spread, offset, 1}, {scores, offset, 1}) == Status::ok);
  REQUIRE(scores[0] == 1.0f);  // alone in the softmax
  REQUIRE(std::isnan(scores[1]));

  const float narrow[4] = {3.0f, 1.0f, 2.0f, 4.0f};
  const DenseRows thin(dense_view(&narrow[0], 1, 4, 1));
  float flat[4] = {0.0f, 0.0f, inf, inf};
  REQUIRE(prim::LagSpread<Cpu>::add(ctx, thin, 2, 1.0f, {spread, offset, 1}, {flat, offset, 1}) == Status::ok);
  REQUIRE((flat[0] == 0.5f && flat[1] == 0.5f));
}
