#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include <catch2/catch.hpp>

#include <kvcondense/cpu.hpp>
#include <support/guarded.hpp>

using namespace kvcondense;
using prim::Anchor;

namespace {

/// Cosines of `slots` rows to their anchor in double, as the formula stands.
std::vector<double> cosines(const float* rows, index_t slots, index_t dim, Anchor anchor) {
  const auto length = [&](auto* x) {
    double square = 0;
    for (index_t d = 0; d < dim; ++d) square += static_cast<double>(x[d]) * static_cast<double>(x[d]);
    return std::sqrt(square);
  };
  std::vector<double> mean(static_cast<std::size_t>(dim)), out;
  for (index_t j = 0; j < slots; ++j)
    for (index_t d = 0; d < dim; ++d)
      mean[static_cast<std::size_t>(d)] += static_cast<double>(rows[j * dim + d]) /
                                           (anchor == Anchor::mean_direction ? length(rows + j * dim) : 1.0);
  for (index_t j = 0; j < slots; ++j) {
    double dot = 0;
    for (index_t d = 0; d < dim; ++d) dot += static_cast<double>(rows[j * dim + d]) * mean[static_cast<std::size_t>(d)];
    const double anchor_length = length(mean.data());
    out.push_back(anchor_length < 1e-6 ? 0.0 : dot / length(rows + j * dim) / anchor_length);
  }
  return out;
}

}  // namespace

TEST_CASE("row_direction: equals the plain cosine to the mean", "[prim][row_direction]") {
  const index_t heads = GENERATE(1, 3);
  const index_t slots = GENERATE(0, 1, 15, 16, 17, 257);
  const index_t dim = GENERATE(1, 7, 64, 80, 128, 256);
  const Anchor anchor = GENERATE(Anchor::mean_direction, Anchor::mean_row);
  CAPTURE(heads, slots, dim);
  std::vector<float> rows(static_cast<std::size_t>(heads * slots * dim));
  std::mt19937 random(7);
  std::normal_distribution<float> normal(0.3f);
  for (float& x : rows) x = normal(random);
  const DenseRows dense(dense_view(static_cast<const float*>(rows.data()), heads, slots, dim));
  std::vector<index_t> offset;
  for (index_t h = 0; h <= heads; ++h) offset.push_back(h * slots);
  test::Guarded<float> out(static_cast<std::size_t>(heads * slots), 9.0f);
  Context<Cpu> ctx;
  REQUIRE(prim::RowDirection<Cpu>::run(ctx, dense, anchor, -2.0f, {out.data(), offset.data(), heads}) == Status::ok);
  for (index_t h = 0; h < heads; ++h) {
    const auto want = cosines(rows.data() + h * slots * dim, slots, dim, anchor);
    for (index_t j = 0; j < slots; ++j)
      REQUIRE(out.data()[h * slots + j] == Approx(-2.0 * want[static_cast<std::size_t>(j)]).margin(1e-5));
  }
  REQUIRE(out.ok());
}

TEST_CASE("row_direction: bad rows get NaN and do not touch the others, rows of zeros get nothing",
          "[prim][row_direction]") {
  constexpr float inf = std::numeric_limits<float>::infinity();
  const Anchor anchor = GENERATE(Anchor::mean_direction, Anchor::mean_row);
  const float rows[6][2] = {{3.0f, 4.0f}, {std::nanf(""), 0.0f}, {inf, 1.0f}, {0.0f, 0.0f}, {6.0f, 8.0f}, {1e30f, 0.0f}};
  const DenseRows dense(dense_view(&rows[0][0], 1, 6, 2));
  const index_t offset[] = {0, 6};
  float out[6];
  Context<Cpu> ctx;
  REQUIRE(prim::RowDirection<Cpu>::run(ctx, dense, anchor, 1.0f, {out, offset, 1}) == Status::ok);
  for (const int i : {1, 2, 5}) REQUIRE(std::isnan(out[i]));
  for (const int i : {0, 4}) REQUIRE(out[i] == Approx(1.0));
  REQUIRE(out[3] == 0.0f);
}

TEST_CASE("row_direction: rows that cancel out all get zero", "[prim][row_direction]") {
  const Anchor anchor = GENERATE(Anchor::mean_direction, Anchor::mean_row);
  const float rows[4][2] = {{1.0f, 0.0f}, {-1.0f, 0.0f}, {0.0f, 0.7f}, {0.0f, -0.7f}};
  const DenseRows dense(dense_view(&rows[0][0], 1, 4, 2));
  const index_t offset[] = {0, 4};
  float out[4];
  Context<Cpu> ctx;
  REQUIRE(prim::RowDirection<Cpu>::run(ctx, dense, anchor, -1.0f, {out, offset, 1}) == Status::ok);
  for (const float x : out) REQUIRE(x == 0.0f);
}
