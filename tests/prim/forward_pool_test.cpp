#include <algorithm>
#include <cmath>
#include <vector>

#include <catch2/catch.hpp>

#include <kvcondense/core/random.hpp>
#include <kvcondense/cpu.hpp>
#include <support/guarded.hpp>

using namespace kvcondense;

TEST_CASE("forward_pool: a place gets the largest sum of those behind it", "[prim][forward_pool]") {
  for (const index_t heads : {1, 3, 8})
    for (const index_t n : {0, 1, 2, 7, 40, 4100, 8200})  // past the ends of blocks of sums
      for (const index_t width : {1, 2, 7, 64}) {
        CAPTURE(heads, n, width);
        std::vector<float> x;
        std::vector<index_t> offset{0};
        for (index_t h = 0; h < heads; ++h) offset.push_back(offset.back() + n);
        for (index_t i = 0; i < heads * n; ++i) x.push_back(random_uniform(3, static_cast<std::uint64_t>(i)) - 0.5f);
        test::Guarded<float> out(x.size(), 0.25f);
        Context<Cpu> ctx;
        REQUIRE(prim::ForwardPool<Cpu>::add(ctx, {x.data(), offset.data(), heads}, width, {out.data(), offset.data(), heads}) ==
                Status::ok);
        std::vector<double> sum(static_cast<std::size_t>(n));
        for (std::size_t i = 0; i < x.size(); ++i) sum[i % static_cast<std::size_t>(n)] += static_cast<double>(x[i]);
        for (index_t h = 0; h < heads; ++h)
          for (index_t j = 0; j < n; ++j) {
            const auto first = sum.begin() + j;
            const double want = 0.25 + *std::max_element(first, sum.begin() + std::min(n, j + width));
            REQUIRE(static_cast<double>(out.data()[h * n + j]) == Approx(want).margin(1e-6));
          }
        REQUIRE(out.ok());
      }
}

TEST_CASE("forward_pool: a number that is none stays in its place", "[prim][forward_pool]") {
  const float x[] = {1, 2, std::nanf(""), 1, 0};
  const index_t offset[] = {0, 5};
  float out[5] = {};
  Context<Cpu> ctx;
  REQUIRE(prim::ForwardPool<Cpu>::add(ctx, {x, offset, 1}, 2, {out, offset, 1}) == Status::ok);
  REQUIRE((out[0] == 2 && out[1] == 2 && std::isnan(out[2]) && out[3] == 1 && out[4] == 0));
}

TEST_CASE("forward_pool: widths out of range and rows of different lengths are refused", "[prim][forward_pool]") {
  const float x[] = {1, 2, 3};
  const index_t offset[] = {0, 2, 3};
  float out[3] = {};
  Context<Cpu> ctx;
  for (const index_t width : {-1, 0, 65})
    REQUIRE(prim::ForwardPool<Cpu>::add(ctx, {x, offset, 1}, width, {out, offset, 1}) == Status::invalid_argument);
  REQUIRE(prim::ForwardPool<Cpu>::add(ctx, {x, offset, 2}, 2, {out, offset, 2}) == Status::not_supported);
  REQUIRE((out[0] == 0 && out[1] == 0 && out[2] == 0));
}
