#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include <catch2/catch.hpp>

#include <kvcondense/cpu.hpp>
#include <support/guarded.hpp>

using namespace kvcondense;

TEST_CASE("row_norm: equals the plain root of the sum of squares", "[prim][row_norm]") {
  const index_t heads = GENERATE(1, 3);
  const index_t slots = GENERATE(0, 1, 15, 16, 17, 257);
  const index_t dim = GENERATE(1, 7, 64, 80, 256);
  const index_t newest = GENERATE(0, 5, 1000);
  CAPTURE(heads, slots, dim, newest);
  std::vector<float> rows(static_cast<std::size_t>(heads * slots * dim));
  std::mt19937 random(7);
  std::normal_distribution<float> normal;
  for (float& x : rows) x = normal(random);
  const DenseRows dense(dense_view(static_cast<const float*>(rows.data()), heads, slots, dim));
  std::vector<index_t> offset;
  for (index_t h = 0; h <= heads; ++h) offset.push_back(h * slots);
  test::Guarded<float> out(static_cast<std::size_t>(heads * slots), 9.0f);
  Context<Cpu> ctx;
  REQUIRE(prim::RowNorm<Cpu>::run(ctx, dense, newest, -1.0f, {out.data(), offset.data(), heads}) == Status::ok);
  for (index_t r = 0; r < heads * slots; ++r) {
    double square = 0;
    for (index_t d = 0; d < dim; ++d) square += std::pow(static_cast<double>(rows[static_cast<std::size_t>(r * dim + d)]), 2);
    const bool old = r % slots < slots - newest;
    REQUIRE(out.data()[r] == Approx(old ? 9.0 : -std::sqrt(square)).epsilon(1e-5));
  }
  REQUIRE(out.ok());
}

TEST_CASE("row_norm: a row with a bad number is infinitely long", "[prim][row_norm]") {
  constexpr float inf = std::numeric_limits<float>::infinity();
  const float rows[4][2] = {{3.0f, 4.0f}, {std::nanf(""), 0.0f}, {inf, 1.0f}, {-inf, inf}};
  const DenseRows dense(dense_view(&rows[0][0], 1, 4, 2));
  const index_t offset[] = {0, 4};
  float out[4];
  Context<Cpu> ctx;
  REQUIRE(prim::RowNorm<Cpu>::run(ctx, dense, 4, -2.0f, {out, offset, 1}) == Status::ok);
  REQUIRE(out[0] == -10.0f);
  for (int i = 1; i < 4; ++i) REQUIRE(out[i] == -inf);
}
