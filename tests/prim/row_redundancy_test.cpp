#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include <catch2/catch.hpp>

#include <kvcondense/cpu.hpp>
#include <support/guarded.hpp>

using namespace kvcondense;

namespace {

using Rows = std::vector<std::vector<float>>;

/// As R-KV has it, with the whole matrix, in double. Bad rows must not be there.
std::vector<double> want(const Rows& x, double threshold, std::vector<index_t>* left_out = nullptr) {
  const std::size_t n = x.size();
  const auto length = [&](std::size_t i) {
    double s = 0;
    for (const float e : x[i]) s += static_cast<double>(e) * static_cast<double>(e);
    return std::sqrt(s) + 1e-8;
  };
  std::vector<double> mean(n, 0.0);
  for (std::size_t i = 0; i < n; ++i) {
    std::vector<double> c(n, 0.0);
    for (std::size_t j = 0; j < n; ++j)
      if (i != j) {
        for (std::size_t d = 0; d < x[i].size(); ++d) c[j] += static_cast<double>(x[i][d]) * static_cast<double>(x[j][d]);
        c[j] /= length(i) * length(j);
      }
    std::size_t last = 0;
    for (std::size_t j = 0; j < n; ++j)
      if (c[j] > threshold) last = j;
    c[last] = 0;
    if (left_out != nullptr) left_out->push_back(static_cast<index_t>(last));
    for (std::size_t j = 0; j < n; ++j) mean[j] += c[j] / static_cast<double>(n);
  }
  double sum = 0;
  for (double& m : mean) sum += m = std::exp(m);
  for (double& m : mean) m /= sum;
  return mean;
}

/// Both heads hold x; the second one also an own row in front.
std::vector<float> run(const Rows& x, float threshold) {
  const auto n = static_cast<index_t>(x.size()), dim = static_cast<index_t>(x.empty() ? 1 : x[0].size());
  std::vector<float> flat;
  for (int h = 0; h < 2; ++h)
    for (const auto& row : x) flat.insert(flat.end(), row.begin(), row.end());
  const DenseRows rows(dense_view<const float>(flat.data(), 2, n, dim));
  const index_t offset[] = {0, n, 2 * n};
  test::Guarded<float> inverse(static_cast<std::size_t>(2 * n), -7.0f), out(static_cast<std::size_t>(2 * n), -7.0f);
  Context<Cpu> ctx;
  Scratch none;
  REQUIRE(prim::RowRedundancy<Cpu>::run(ctx, rows, threshold, {inverse.data(), offset, 2}, {out.data(), offset, 2}, none) == Status::ok);
  REQUIRE((inverse.ok() && out.ok()));
  for (index_t j = 0; j < n; ++j) {
    const float a = out.data()[j], b = out.data()[n + j];
    REQUIRE((a == b || (std::isnan(a) && std::isnan(b))));
  }
  return {out.data(), out.data() + n};
}

/// Rows around a few directions, so that many repeat each other.
Rows themes(index_t n, index_t dim, float spread, std::uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  Rows centre(5), x;
  for (auto& c : centre)
    for (index_t d = 0; d < dim; ++d) c.push_back(normal(random));
  for (index_t i = 0; i < n; ++i) {
    x.push_back(centre[random() % 5]);
    for (float& e : x.back()) e += spread * normal(random);
  }
  return x;
}

}  // namespace

TEST_CASE("row_redundancy: equals the whole matrix in double", "[prim][row_redundancy]") {
  const index_t n = GENERATE(1, 2, 15, 16, 17, 31, 33, 150);
  const index_t dim = GENERATE(3, 64, 80, 96, 128);
  const float spread = GENERATE(0.3f, 3.0f);
  CAPTURE(n, dim, spread);
  const Rows x = themes(n, dim, spread, 7);
  for (const float threshold : {0.5f, 0.1f, 0.9f}) {
    const auto expected = want(x, static_cast<double>(threshold));
    const auto got = run(x, threshold);
    double sum = 0;
    for (std::size_t j = 0; j < got.size(); ++j) {
      REQUIRE(static_cast<double>(got[j]) == Approx(expected[j]).epsilon(2e-5));
      sum += static_cast<double>(got[j]);
    }
    REQUIRE(sum == Approx(1.0).epsilon(1e-5));
  }
}

TEST_CASE("row_redundancy: the newest of equal rows counts as repeated least", "[prim][row_redundancy]") {
  const Rows x{{1, 0}, {0, 1}, {1, 0}, {1, 0}, {0, -1}};
  const auto got = run(x, 0.5f);
  REQUIRE(got[3] < got[2]);  // rows 0 and 2 leave 3 out
  REQUIRE(got[0] > got[1]);
  std::vector<index_t> last;
  (void)want(x, 0.5, &last);
  REQUIRE(last == std::vector<index_t>{3, 0, 3, 2, 0});
}

TEST_CASE("row_redundancy: rows of zeros repeat nothing, bad rows touch nobody", "[prim][row_redundancy]") {
  Rows x = themes(40, 8, 0.5f, 3);
  x[11] = std::vector<float>(8, 0.0f);
  const auto clean = run(x, 0.5f);
  const auto expected = want(x, 0.5);
  for (std::size_t j = 0; j < 40; ++j) REQUIRE(static_cast<double>(clean[j]) == Approx(expected[j]).epsilon(2e-5));
  Rows bad = x;
  bad.push_back(std::vector<float>(8, std::numeric_limits<float>::quiet_NaN()));
  bad.push_back(std::vector<float>(8, std::numeric_limits<float>::infinity()));
  const auto got = run(bad, 0.5f);
  for (std::size_t j = 0; j < 40; ++j) REQUIRE(got[j] == clean[j]);
  REQUIRE((std::isnan(got[40]) && std::isnan(got[41])));
  REQUIRE(std::isnan(run({{NAN}, {NAN}}, 0.5f)[1]));
  REQUIRE(run({}, 0.5f).empty());
}
