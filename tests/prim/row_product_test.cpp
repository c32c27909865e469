#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include <catch2/catch.hpp>

#include <kvcondense/cpu.hpp>
#include <support/guarded.hpp>

using namespace kvcondense;

TEST_CASE("row_product: equals the plain sum of products with the direction of the head", "[prim][row_product]") {
  const index_t heads = GENERATE(1, 3);
  const index_t slots = GENERATE(0, 1, 63, 64, 65, 257);
  const index_t dim = GENERATE(1, 7, 64, 80, 256);
  const index_t newest = GENERATE(0, 5, 1000);
  CAPTURE(heads, slots, dim, newest);
  std::vector<float> rows(static_cast<std::size_t>(heads * slots * dim)), directions(static_cast<std::size_t>(heads * dim));
  std::mt19937 random(7);
  std::normal_distribution<float> normal;
  for (float& x : rows) x = normal(random);
  for (float& x : directions) x = normal(random);
  const DenseRows dense(dense_view(static_cast<const float*>(rows.data()), heads, slots, dim));
  std::vector<index_t> offset;
  for (index_t h = 0; h <= heads; ++h) offset.push_back(h * slots);
  test::Guarded<float> out(static_cast<std::size_t>(heads * slots), 9.0f);
  Context<Cpu> ctx;
  REQUIRE(prim::RowProduct<Cpu>::run(ctx, dense, newest, directions.data(), -2.0f, {out.data(), offset.data(), heads}) == Status::ok);
  for (index_t r = 0; r < heads * slots; ++r) {
    double sum = 0, sizes = 0;
    for (index_t d = 0; d < dim; ++d) {
      const double x = static_cast<double>(rows[static_cast<std::size_t>(r * dim + d)]) * static_cast<double>(directions[static_cast<std::size_t>(r / slots * dim + d)]);
      sum += x, sizes += std::fabs(x);
    }
    const bool old = r % slots < slots - newest;
    REQUIRE(std::fabs(static_cast<double>(out.data()[r]) - (old ? 9.0 : -2.0 * sum)) <= 1e-6 * sizes);
  }
  REQUIRE(out.ok());
}

TEST_CASE("row_product: a row with a bad number has a bad product, its neighbours have not", "[prim][row_product]") {
  constexpr float inf = std::numeric_limits<float>::infinity();
  const float rows[4][2] = {{3.0f, 4.0f}, {std::nanf(""), 0.0f}, {inf, 1.0f}, {1.0f, -1.0f}};
  const float direction[] = {2.0f, 0.5f};
  const DenseRows dense(dense_view(&rows[0][0], 1, 4, 2));
  const index_t offset[] = {0, 4};
  float out[4];
  Context<Cpu> ctx;
  REQUIRE(prim::RowProduct<Cpu>::run(ctx, dense, 4, direction, 1.0f, {out, offset, 1}) == Status::ok);
  REQUIRE(out[0] == 8.0f);
  REQUIRE(std::isnan(out[1]));
  REQUIRE(out[2] == inf);
  REQUIRE(out[3] == 1.5f);
}
