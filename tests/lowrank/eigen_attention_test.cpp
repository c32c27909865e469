#include <vector>

#include <catch2/catch.hpp>

#include <kvcondense/cpu.hpp>
#include <support/cache_model.hpp>
#include <support/random_bases.hpp>

using namespace kvcondense;

TEST_CASE("eigen_attention: ranks follow the running sum of singular values, keys raw or rotated", "[lowrank][eigen_attention]") {
  const CacheShape shape{.layers = 2, .q_heads = 6, .kv_heads = 2, .head_dim = 32, .page_slots = 16};
  const test::RandomBases keys(2, 2, 32, 1, false), values(2, 2, 32, 2, false);
  NamedBases list[] = {{"eigen_attention", keys.view(), values.view()}};
  const lowrank::EigenAttention stage{.keep = 0.8, .value_keep = 0.6, .bases = {list, 1}};
  auto made = make_cache<Cpu>(shape, recipe(stage));
  REQUIRE(made);
  const auto rank = [&](double part) {
    double all = 0, sum = 0;
    for (int i = 1; i <= 32; ++i) all += std::sqrt(1.0 / i);
    for (int i = 1; i <= 32; ++i)
      if ((sum += std::sqrt(1.0 / i)) >= part * all) return i - 1;
    return 32;
  };
  REQUIRE(made->layers()[1].heads[1].keys.coded().dim() == rank(0.8));
  REQUIRE(made->layers()[1].heads[1].values.coded().dim() == rank(0.6));
  test::exercise(shape, recipe(stage), 1, 30, 12.0);
  list[0].keys = keys.view(KeyForm::raw);
  test::exercise(shape, recipe(stage, position::Rerotate{}), 2, 30, 12.0);
}
