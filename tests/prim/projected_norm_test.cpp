#include <algorithm>
#include <cmath>
#include <random>
#include <vector>

#include <catch2/catch.hpp>

#include <kvcondense/cpu.hpp>
#include <support/guarded.hpp>

using namespace kvcondense;

TEST_CASE("projected_norm: equals the projection in double", "[prim][projected_norm]") {
  const index_t dim = GENERATE(1, 64, 80, 96, 128), group = GENERATE(1, 3, 4, 7), outputs = GENERATE(1, 16, 45);
  CAPTURE(dim, group, outputs);
  const CacheShape shape{.q_heads = 2 * group, .kv_heads = 2, .head_dim = 8, .value_dim = dim};
  const index_t n[] = {70, 3}, offset[] = {0, 70, 73}, width = shape.q_heads * dim;
  std::mt19937 random(static_cast<std::uint32_t>(dim + group));
  std::normal_distribution<float> normal;
  std::vector<float> values(static_cast<std::size_t>(2 * 70 * dim)), matrix(static_cast<std::size_t>(outputs * width));
  for (auto* x : {&values, &matrix})
    for (float& e : *x) e = normal(random);
  const DenseRows rows(dense_view<const float>(values.data(), 2, 70, dim));
  const prim::Ends ends[] = {{2, 1}, {0, 0}};
  test::Guarded<float> out(73, -7.0f);
  Context<Cpu> ctx;
  REQUIRE(prim::ProjectedNorm<Cpu>::run(ctx, rows, ends, shape, matrix.data(), outputs, {out.data(), offset, 2}) == Status::ok);
  REQUIRE(out.ok());
  for (index_t h = 0; h < 2; ++h)
    for (index_t j = 0; j < n[h]; ++j) {
      const double got = static_cast<double>(out.data()[offset[h] + j]);
      if (j < ends[h].prefix || j >= n[h] - ends[h].suffix) {
        REQUIRE(got == -7.0);
        continue;
      }
      double sum = 0;
      for (index_t q = h * group; q < (h + 1) * group; ++q)
        for (index_t o = 0; o < outputs; ++o) {
          double x = 0;
          for (index_t d = 0; d < dim; ++d)
            x += static_cast<double>(matrix[static_cast<std::size_t>(o * width + q * dim + d)]) *
                 static_cast<double>(values[static_cast<std::size_t>((h * 70 + j) * dim + d)]);
          sum += std::abs(x);
        }
      REQUIRE(got == Approx(sum / static_cast<double>(group)).epsilon(2e-5).margin(1e-5));
    }
}

TEST_CASE("projected_norm: weigh takes the largest share times a projected length of a group, in double", "[prim][projected_norm]") {
  const index_t dim = GENERATE(1, 64, 80), group = GENERATE(1, 3, 7), outputs = GENERATE(1, 45);
  CAPTURE(dim, group, outputs);
  const CacheShape shape{.q_heads = 2 * group, .kv_heads = 2, .head_dim = 8, .value_dim = dim};
  const index_t n[] = {200, 3}, offset[] = {0, 200, 203}, width = shape.q_heads * dim;
  std::mt19937 random(static_cast<std::uint32_t>(dim + group));
  std::normal_distribution<float> normal;
  std::vector<float> values(static_cast<std::size_t>(2 * 200 * dim)), matrix(static_cast<std::size_t>(outputs * width)), shares(static_cast<std::size_t>(203 * group));
  for (auto* x : {&values, &matrix, &shares})
    for (float& e : *x) e = normal(random);
  for (float& e : shares) e = std::abs(e);
  for (std::size_t j = 50; j < 190; ++j) shares[j] = 0.0f;  // a tile of slots without a share, and parts of two
  shares[7] = 1e-38f;
  for (index_t g = 1; g < group; ++g) shares[static_cast<std::size_t>(g * 200 + 7)] = 0.0f;
  const DenseRows rows(dense_view<const float>(values.data(), 2, 200, dim));
  test::Guarded<float> out(203, -7.0f);
  Context<Cpu> ctx;
  REQUIRE(prim::ProjectedNorm<Cpu>::weigh(ctx, rows, shape, matrix.data(), outputs, {shares.data(), offset, 2}, {out.data(), offset, 2}) == Status::ok);
  REQUIRE(out.ok());
  for (index_t h = 0; h < 2; ++h)
    for (index_t j = 0; j < n[h]; ++j) {
      const auto share = [&](index_t g) { return static_cast<double>(shares[static_cast<std::size_t>(offset[h] * group + g * n[h] + j)]); };
      const double got = static_cast<double>(out.data()[offset[h] + j]);
      if (share(0) == 0) {
        REQUIRE(got == 0.0);
        continue;
      }
      double want = 0;
      for (index_t g = 0; g < group; ++g) {
        double sum = 0;
        for (index_t o = 0; o < outputs; ++o) {
          double x = 0;
          for (index_t d = 0; d < dim; ++d)
            x += static_cast<double>(matrix[static_cast<std::size_t>(o * width + (h * group + g) * dim + d)]) *
                 static_cast<double>(values[static_cast<std::size_t>((h * 200 + j) * dim + d)]);
          sum += x * x;
        }
        want = std::max(want, share(g) * std::sqrt(sum));
      }
      REQUIRE(got > 0.0);
      REQUIRE(got == Approx(want).epsilon(2e-5).margin(2e-38));
    }
}

TEST_CASE("projected_norm: no slots, and values that are no numbers", "[prim][projected_norm]") {
  const CacheShape shape{.head_dim = 2};
  const float matrix[] = {1, 2, 3, 4};
  const float values[] = {1, 1, NAN, 1, -1, 1};
  const DenseRows rows(dense_view<const float>(values, 1, 3, 2));
  const index_t offset[] = {0, 3}, nothing[] = {0, 0};
  float out[3];
  Context<Cpu> ctx;
  REQUIRE(prim::ProjectedNorm<Cpu>::run(ctx, rows, nullptr, shape, matrix, 2, {out, offset, 1}) == Status::ok);
  REQUIRE((out[0] == 10.0f && std::isnan(out[1]) && out[2] == 2.0f));
  REQUIRE(prim::ProjectedNorm<Cpu>::run(ctx, rows, nullptr, shape, matrix, 2, {out, nothing, 1}) == Status::ok);
}
