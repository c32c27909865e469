#include <cmath>
#include <limits>
#include <vector>

#include <catch2/catch.hpp>

#include <kvcondense/cpu.hpp>
#include <support/guarded.hpp>

using namespace kvcondense;

namespace {

constexpr float inf = std::numeric_limits<float>::infinity();

std::vector<float> lifted(const std::vector<float>& scores, const std::vector<float>& weights, index_t first, prim::Ends ends = {},
                          float bias = 0.0f) {
  const index_t offset[] = {0, static_cast<index_t>(scores.size())};
  test::Guarded<float> out(scores.size());
  std::copy(weights.begin(), weights.end(), out.data());  // in place of the weights
  Context<Cpu> ctx;
  REQUIRE(prim::LiftTop<Cpu>::run(ctx, {scores.data(), offset, 1}, {out.data(), offset, 1}, &ends, &first, bias,
                                  {out.data(), offset, 1}) == Status::ok);
  REQUIRE(out.ok());
  return {out.data(), out.data() + scores.size()};
}

}  // namespace

TEST_CASE("lift_top: the best come first, the others weigh", "[prim][lift_top]") {
  const std::vector<float> scores{3, 1, 4, 1, 5}, weights{1, 10, 2, 20, 4};
  REQUIRE(lifted(scores, weights, 0) == std::vector<float>{3, 10, 8, 20, 20});
  REQUIRE(lifted(scores, weights, 2) == std::vector<float>{3, 10, inf, 20, inf});
  REQUIRE(lifted(scores, weights, 1, {}, 1.0f) == std::vector<float>{4, 20, 10, 40, inf});
  REQUIRE(lifted(scores, weights, 9) == std::vector<float>(5, inf));
  REQUIRE(lifted(scores, weights, -4) == lifted(scores, weights, 0));
}

TEST_CASE("lift_top: equal scores lift the smaller place, ends take no part", "[prim][lift_top]") {
  REQUIRE(lifted({2, 2, 2, 2}, {1, 1, 1, 1}, 2) == std::vector<float>{inf, inf, 2, 2});
  REQUIRE(lifted({9, 2, 2, 9}, {1, 1, 1, 1}, 1, {1, 1}) == std::vector<float>{1, inf, 2, 1});
  REQUIRE(lifted({9, 9}, {1, 1}, 1, {1, 1}) == std::vector<float>{1, 1});
  REQUIRE(lifted({}, {}, 1).empty());
}

TEST_CASE("lift_top: what is no number stays that, even among the best", "[prim][lift_top]") {
  const auto got = lifted({1, NAN, 2}, {1, 1, 1}, 3);
  REQUIRE((got[0] == inf && std::isnan(got[1]) && got[2] == inf));
}
