#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>
#include <random>
#include <span>
#include <vector>

#include <catch2/catch.hpp>

#include <kvcondense/cpu.hpp>
#include <support/guarded.hpp>

using namespace kvcondense;

namespace {

using Rows = std::vector<std::vector<float>>;

/// As R-KV has it, with the whole matrix, in double. A row of NaN or Inf repeats nothing and gets NaN.
std::vector<double> want(const Rows& x, double threshold, std::vector<index_t>* left_out = nullptr) {
  const std::size_t n = x.size();
  const auto length = [&](std::size_t i) {
    double s = 0;
    for (const float e : x[i]) s += static_cast<double>(e) * static_cast<double>(e);
    return std::sqrt(s) + 1e-8;
  };
  std::vector<bool> good(n);
  for (std::size_t i = 0; i < n; ++i) good[i] = std::isfinite(length(i));
  const auto all_good = static_cast<double>(std::count(good.begin(), good.end(), true));
  std::vector<double> mean(n, 0.0);
  for (std::size_t i = 0; i < n; ++i) {
    if (!good[i]) continue;
    std::vector<double> c(n, 0.0);
    for (std::size_t j = 0; j < n; ++j)
      if (i != j && good[j]) {
        for (std::size_t d = 0; d < x[i].size(); ++d) c[j] += static_cast<double>(x[i][d]) * static_cast<double>(x[j][d]);
        c[j] /= length(i) * length(j);
      }
    std::size_t last = 0;
    for (std::size_t j = 0; j < n; ++j)
      if (i != j && good[j] && c[j] > threshold) last = j;
    c[last] = 0;
    if (left_out != nullptr) left_out->push_back(static_cast<index_t>(last));
    for (std::size_t j = 0; j < n; ++j) mean[j] += c[j] / all_good;
  }
  double sum = 0;
  for (std::size_t i = 0; i < n; ++i) sum += mean[i] = good[i] ? std::exp(mean[i]) : 0.0;
  for (std::size_t i = 0; i < n; ++i) mean[i] = good[i] ? mean[i] / sum : std::numeric_limits<double>::quiet_NaN();
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
  const auto with = [&](std::span<std::byte> room) {
    Scratch scratch(room);
    return prim::RowRedundancy<Cpu>::run(ctx, rows, threshold, {inverse.data(), offset, 2}, {out.data(), offset, 2}, scratch);
  };
  test::Guarded<std::byte> room(prim::row_redundancy_bytes(2 * n, 2, dim), std::byte{0xa5});
  REQUIRE(with({room.data(), room.size() - 1}) == Status::workspace_too_small);
  for (index_t j = 0; j < 2 * n; ++j) REQUIRE((inverse.data()[j] == -7.0f && out.data()[j] == -7.0f));
  REQUIRE(with({room.data(), room.size()}) == Status::ok);
  REQUIRE(room.ok());
  REQUIRE((inverse.ok() && out.ok()));
  for (index_t j = 0; j < n; ++j) {
    const float a = out.data()[j], b = out.data()[n + j];
    REQUIRE((a == b || (std::isnan(a) && std::isnan(b))));
  }
  return {out.data(), out.data() + n};
}

/// Heads of several lengths.
std::vector<std::vector<float>> run_heads(const std::vector<Rows>& heads, index_t dim, float threshold) {
  const auto count = static_cast<index_t>(heads.size());
  index_t most = 0;
  std::vector<index_t> offset{0};
  for (const Rows& x : heads) {
    most = std::max(most, static_cast<index_t>(x.size()));
    offset.push_back(offset.back() + static_cast<index_t>(x.size()));
  }
  std::vector<float> flat;
  for (const Rows& x : heads) {
    const std::size_t end = flat.size() + static_cast<std::size_t>(most * dim);
    for (const auto& row : x) flat.insert(flat.end(), row.begin(), row.end());
    flat.resize(end, 1e30f);  // nobody may read it
  }
  const DenseRows rows(dense_view<const float>(flat.data(), count, most, dim));
  const auto total = static_cast<std::size_t>(offset.back());
  test::Guarded<float> inverse(total), out(total);
  Context<Cpu> ctx;
  test::Guarded<std::byte> room(prim::row_redundancy_bytes(offset.back(), count, dim));
  Scratch scratch({room.data(), room.size()});
  REQUIRE(prim::RowRedundancy<Cpu>::run(ctx, rows, threshold, {inverse.data(), offset.data(), count}, {out.data(), offset.data(), count}, scratch) == Status::ok);
  REQUIRE((inverse.ok() && out.ok() && room.ok()));
  std::vector<std::vector<float>> each;
  for (std::size_t h = 0; h < heads.size(); ++h) each.emplace_back(out.data() + offset[h], out.data() + offset[h + 1]);
  return each;
}

/// Axes and sums of two of them, of any length: cosines are 0, 1/2, 0.707 and 1, so rounding decides nothing. With few axes a row is
/// soon repeated, with many late or never. Some rows are copies of one far away, some bad.
Rows axes(index_t n, index_t dim, index_t used, std::mt19937& random) {
  const auto pick = [&](index_t of) { return static_cast<std::size_t>(random() % static_cast<std::uint32_t>(of)); };
  Rows x;
  for (index_t i = 0; i < n; ++i) {
    x.emplace_back(static_cast<std::size_t>(dim), 0.0f);
    const float length = std::ldexp(1.0f, static_cast<int>(pick(9)) - 4);
    const std::size_t a = pick(used), b = pick(3) == 0 ? pick(used) : a;
    x.back()[a] = x.back()[b] = length;
    if (pick(8) == 0) x.back() = x[pick(i + 1)];
    if (pick(24) == 0) x.back()[pick(dim)] = pick(2) == 0 ? std::numeric_limits<float>::quiet_NaN() : -std::numeric_limits<float>::infinity();
  }
  return x;
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

TEST_CASE("row_redundancy: equals the whole matrix wherever a repetition lies, of heads of any length, with bad rows", "[prim][row_redundancy]") {
  std::mt19937 random(21);
  for (int trial = 0; trial < 15; ++trial) {
    const index_t dim = trial % 3 == 0 ? 64 : trial % 3 == 1 ? 48 : 80;
    const index_t used = std::vector<index_t>{2, 6, 20, dim}[static_cast<std::size_t>(trial / 3 % 4)];
    std::vector<Rows> heads;
    for (int h = 0; h < 3; ++h) heads.push_back(axes(static_cast<index_t>(random() % 180), dim, used, random));
    if (trial % 5 == 0) heads[1].clear();
    // A block whose rows are all found at once looks at nothing before it: those that come later look for themselves.
    Rows& x = heads[0];
    if (trial % 2 == 0 && x.size() > 64)
      for (std::size_t i = 32; i < 64; ++i) x[i] = x.back();
    for (const float threshold : {0.6f, 0.3f, 0.8f, -0.5f, 1.5f}) {
      CAPTURE(trial, dim, used, threshold);
      const auto got = run_heads(heads, dim, threshold);
      for (std::size_t h = 0; h < heads.size(); ++h) {
        const auto expected = want(heads[h], static_cast<double>(threshold));
        for (std::size_t j = 0; j < expected.size(); ++j) {
          CAPTURE(h, j, heads[h].size());
          const auto value = static_cast<double>(got[h][j]);
          const bool same = std::isnan(expected[j]) ? std::isnan(value) : std::fabs(value - expected[j]) <= 2e-5 * expected[j];
          REQUIRE(same);
        }
      }
    }
  }
}

TEST_CASE("row_redundancy: rows in front that did not look far hide no later repetition", "[prim][row_redundancy]") {
  // Row 130 repeats row 64, the first of its block, and rows 32 to 63, which all find the last row at once and look no further.
  for (const std::size_t own : {64u, 79u, 80u, 95u}) {
    Rows x(160, std::vector<float>(16, 0.0f));
    for (std::size_t i = 32; i < 64; ++i) x[i][1] = 1.0f;
    x[own][0] = 1.0f;
    x[130][0] = x[130][1] = 1.0f;
    x[159][1] = x[159][2] = 1.0f;  // half alike to row 130
    std::vector<index_t> last;
    const auto expected = want(x, 0.6, &last);
    REQUIRE(last[130] == static_cast<index_t>(own));
    const auto got = run(x, 0.6f);
    for (std::size_t j = 0; j < x.size(); ++j) REQUIRE(static_cast<double>(got[j]) == Approx(expected[j]).epsilon(2e-6));
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
