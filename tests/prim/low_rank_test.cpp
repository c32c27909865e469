#include <cmath>
#include <limits>
#include <vector>

#include <catch2/catch.hpp>

#include <kvcondense/backend/cpu/low_rank.hpp>
#include <kvcondense/core/dtype.hpp>

#include <support/fill.hpp>
#include <support/oracle.hpp>
#include <support/singular_values.hpp>

using namespace kvcondense;
using namespace kvcondense::prim;

namespace {

std::size_t at(index_t i) { return static_cast<std::size_t>(i); }

/// a^t b, in double.
std::vector<double> product(const std::vector<float>& a, const std::vector<float>& b, index_t n, index_t dim) {
  std::vector<double> out(at(n * dim));
  for (index_t j = 0; j < static_cast<index_t>(a.size()) / n; ++j)
    for (index_t i = 0; i < n; ++i)
      for (index_t c = 0; c < dim; ++c)
        out[at(i * dim + c)] += static_cast<double>(a[at(j * n + i)]) * static_cast<double>(b[at(j * dim + c)]);
  return out;
}

double distance(const std::vector<float>& x, const std::vector<double>& y) {
  double sum = 0;
  for (std::size_t i = 0; i < x.size(); ++i) sum += std::pow(static_cast<double>(x[i]) - y[i], 2);
  return std::sqrt(sum);
}

void require_close(const std::vector<double>& got, const std::vector<float>& want, double margin) {
  REQUIRE(got.size() == want.size());
  for (std::size_t i = 0; i < got.size(); ++i) REQUIRE(got[i] == Approx(static_cast<double>(want[i])).margin(margin));
}

/// Columns of the transposed [n][rank].
std::vector<float> transposed(const std::vector<float>& x, index_t rank) {
  std::vector<float> out(x.size());
  const auto n = static_cast<index_t>(x.size()) / rank;
  for (index_t i = 0; i < n; ++i)
    for (index_t j = 0; j < rank; ++j) out[at(j * n + i)] = x[at(i * rank + j)];
  return out;
}

}  // namespace

TEST_CASE("low_rank: start and products are the worked example's", "[prim][low_rank][oracle]") {
  const auto o = test::load_oracle("quantization.json", "E_gear");
  const auto x = test::floats(o.at("residual_after_quant_and_sparse"));
  const auto& power = o.at("power_iteration_r2");
  std::vector<float> start(16);
  cpu::low_rank_start(start.data(), 2, 8);
  REQUIRE(start == transposed(test::floats(power.at("P0")), 2));
  for (const index_t loops : {1, 3, 8}) {
    std::vector<float> a(10), b = start;
    cpu::power_iteration(x.data(), 5, 8, 2, loops, a.data(), b.data());
    const auto& want = power.at("loops" + std::to_string(loops));
    const auto got = product(a, b, 5, 8);
    require_close(got, test::floats(want.at("QPt")), 1e-6);
    REQUIRE(distance(x, got) == Approx(want.at("fro_err").get<double>()).epsilon(1e-5));
  }
}

TEST_CASE("low_rank: a start of one's own gives the other worked example", "[prim][low_rank][oracle]") {
  const auto o = test::load_oracle("merging_lowrank.json", "gear_lowrank");
  const auto x = test::floats(o.at("inputs").at("E"));
  std::vector<float> a(4), b = test::floats(o.at("inputs").at("p0"));
  cpu::power_iteration(x.data(), 4, 3, 1, o.at("params").at("loop").get<index_t>(), a.data(), b.data());
  const auto got = product(a, b, 4, 3);
  require_close(got, test::floats(o.at("expected").at("approx")), 1e-6);
  REQUIRE(distance(x, got) == Approx(o.at("expected").at("residual_fro").get<double>()).epsilon(1e-6));
  REQUIRE(test::rank_error(x, 4, 3, 1) == Approx(o.at("expected").at("best_rank1_residual_fro").get<double>()).epsilon(1e-6));
}

TEST_CASE("low_rank: the error is near to the best that any product of this rank has", "[prim][low_rank]") {
  const auto [n, dim] = GENERATE(table<index_t, index_t>({{64, 128}, {32, 80}, {7, 64}, {64, 5}, {1, 9}}));
  const index_t rank = GENERATE(1, 2, 4, 8);
  const bool structured = GENERATE(false, true);
  if (rank > std::min(n, dim)) return;
  CAPTURE(n, dim, rank, structured);
  std::vector<float> x(at(n * dim)), u(at(n * 4)), v(at(dim * 4));
  test::fill_normal(x.data(), x.size(), 3), test::fill_normal(u.data(), u.size(), 4), test::fill_normal(v.data(), v.size(), 5);
  if (structured)  // four directions of falling strength under noise
    for (index_t i = 0; i < n; ++i)
      for (index_t c = 0; c < dim; ++c) {
        float& e = x[at(i * dim + c)];
        e *= 0.05f;
        for (index_t j = 0; j < 4; ++j) e += u[at(j * n + i)] * v[at(j * dim + c)] / static_cast<float>(1 + 2 * j);
      }
  const double best = test::rank_error(x, n, dim, rank), all = test::rank_error(x, n, dim, 0);
  std::vector<float> a(at(rank * n)), b(at(rank * dim)), used = x;
  cpu::fit_low_rank(used.data(), n, dim, rank, 3, a.data(), b.data());
  const double error = distance(x, product(a, b, n, dim));
  REQUIRE(error >= best - 1e-4 * all);
  REQUIRE(error <= best * 1.12 + 1e-5 * all);
  used = x;
  cpu::fit_low_rank(used.data(), n, dim, rank, 64, a.data(), b.data());
  REQUIRE(distance(x, product(a, b, n, dim)) <= best * (structured ? 1.001 : 1.01) + 1e-5 * all);
}

TEST_CASE("low_rank: numbers of any size leave factors that fp16 holds", "[prim][low_rank]") {
  const float size = GENERATE(1e-9f, 1e-6f, 1e-3f, 1.0f, 6e4f, 1e8f);
  std::vector<float> x(24 * 40), a(2 * 24), b(2 * 40);
  test::fill_normal(x.data(), x.size(), 8);
  for (float& e : x) e *= size;
  std::vector<float> used = x;
  cpu::fit_low_rank(used.data(), 24, 40, 2, 3, a.data(), b.data());
  const double all = test::rank_error(x, 24, 40, 0), exact = distance(x, product(a, b, 24, 40));
  for (auto* f : {&a, &b})
    for (float& e : *f) {
      REQUIRE(std::abs(e) < 65504.0f);
      e = kvcondense::detail::half_value(kvcondense::detail::half_bits(e));
    }
  REQUIRE(exact < 0.95 * all);
  REQUIRE(distance(x, product(a, b, 24, 40)) < exact + 1e-3 * all);
}

TEST_CASE("low_rank: nothing, one direction and huge numbers leave finite factors", "[prim][low_rank]") {
  std::vector<float> a(4 * 6), b(4 * 8);
  const auto fit = [&](std::vector<float> x) {
    cpu::fit_low_rank(x.data(), 6, 8, 4, 3, a.data(), b.data());
    for (const float e : a) REQUIRE(std::isfinite(e));
    for (const float e : b) REQUIRE(std::isfinite(e));
    return product(a, b, 6, 8);
  };
  for (const double e : fit(std::vector<float>(48, 0.0f))) REQUIRE(e == 0.0);
  for (const double e : fit(std::vector<float>(48, 1e-40f))) REQUIRE(e == 0.0);
  for (const double e : fit(std::vector<float>(48, 3.0f))) REQUIRE(e == Approx(3.0).epsilon(1e-5));
  for (const double e : fit(std::vector<float>(48, -0x1p127f))) REQUIRE(e == Approx(-0x1p127).epsilon(1e-5));
  std::vector<float> one(48, 0.0f);
  one[13] = -2.5f;
  const auto back = fit(one);
  for (std::size_t i = 0; i < 48; ++i) REQUIRE(back[i] == Approx(static_cast<double>(one[i])).margin(1e-5));
}
