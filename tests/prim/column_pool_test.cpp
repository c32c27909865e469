#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include <catch2/catch.hpp>

#include <kvcondense/cpu.hpp>
#include <support/guarded.hpp>
#include <support/oracle.hpp>

using namespace kvcondense;

namespace {

std::vector<float> pooled(const std::vector<float>& in, prim::Pool pool, index_t kernel,
                          prim::Ends skip = {}, Status want = Status::ok) {
  test::Guarded<float> out(in.size(), -7.0f);
  const index_t offset[] = {0, static_cast<index_t>(in.size())};
  Context<Cpu> ctx;
  REQUIRE(prim::ColumnPool<Cpu>::run(ctx, {in.data(), offset, 1}, &skip, pool, kernel,
                                     {out.data(), offset, 1}) == want);
  REQUIRE(out.ok());
  return std::vector<float>(out.data(), out.data() + in.size());
}

}  // namespace

TEST_CASE("column_pool: average, average of valid taps and maximum equal the oracle", "[prim][column_pool]") {
  const auto oracle = test::load_oracle("eviction.json", "block_pooling");
  const auto in = oracle["input"].get<std::vector<float>>();
  for (const index_t k : {3, 5})
    for (const auto& [name, pool] : {std::pair{"avg", prim::Pool::average}, std::pair{"avg_valid", prim::Pool::average_valid},
                                     std::pair{"max", prim::Pool::maximum}}) {
      CAPTURE(k, name);
      const auto got = pooled(in, pool, k);
      const auto want = oracle["k" + std::to_string(k)][name].get<std::vector<double>>();
      for (std::size_t i = 0; i < in.size(); ++i) REQUIRE(got[i] == Approx(want[i]).epsilon(1e-6));
    }
}

TEST_CASE("column_pool: equals the definition for any length, kernel and ends", "[prim][column_pool]") {
  const std::size_t n = GENERATE(0u, 1u, 2u, 31u, 33u);
  const index_t kernel = GENERATE(1, 3, 7, 13, 101);
  const prim::Ends skip = GENERATE(prim::Ends{0, 0}, prim::Ends{2, 3}, prim::Ends{40, 1});
  CAPTURE(n, kernel, skip.prefix, skip.suffix);
  std::mt19937 random(static_cast<std::uint32_t>(n));
  std::normal_distribution<float> normal;
  std::vector<float> in(n);
  for (float& x : in) x = normal(random);
  const prim::Ends e = skip.within(static_cast<index_t>(n));
  const auto average = pooled(in, prim::Pool::average, kernel, skip);
  const auto valid = pooled(in, prim::Pool::average_valid, kernel, skip);
  const auto most = pooled(in, prim::Pool::maximum, kernel, skip);
  for (index_t i = 0; i < static_cast<index_t>(n); ++i) {
    const auto j = static_cast<std::size_t>(i);
    if (i < e.prefix || i >= static_cast<index_t>(n) - e.suffix) {  // ends are not touched
      REQUIRE((average[j] == -7.0f && valid[j] == -7.0f && most[j] == -7.0f));
      continue;
    }
    double sum = 0, taps = 0, top = -INFINITY;
    for (index_t t = i - kernel / 2; t <= i + kernel / 2; ++t) {
      if (t < e.prefix || t >= static_cast<index_t>(n) - e.suffix) continue;
      sum += in[static_cast<std::size_t>(t)];
      taps += 1;
      top = std::max(top, static_cast<double>(in[static_cast<std::size_t>(t)]));
    }
    const double rounding = 1e-6 * static_cast<double>(n);
    REQUIRE(average[j] == Approx(sum / static_cast<double>(kernel)).margin(rounding));
    REQUIRE(valid[j] == Approx(sum / taps).margin(rounding));
    REQUIRE(static_cast<double>(most[j]) == top);
  }
}

TEST_CASE("column_pool: a NaN stays in its place", "[prim][column_pool]") {
  const std::vector<float> in{1.0f, std::nanf(""), 5.0f, 3.0f};
  const auto most = pooled(in, prim::Pool::maximum, 3);
  const auto average = pooled(in, prim::Pool::average_valid, 3);
  REQUIRE((most[0] == 1.0f && std::isnan(most[1]) && most[2] == 5.0f && most[3] == 5.0f));
  REQUIRE((average[0] == 1.0f && std::isnan(average[1]) && average[2] == 4.0f && average[3] == 4.0f));
}

TEST_CASE("column_pool: an even kernel is refused, nothing written", "[prim][column_pool]") {
  for (const index_t kernel : {-1, 0, 2, 8})
    REQUIRE(pooled({1.0f, 2.0f}, prim::Pool::average, kernel, {}, Status::invalid_argument) ==
            std::vector<float>{-7.0f, -7.0f});
}
