#include <catch2/catch.hpp>

#include <kvcondense/cpu.hpp>
#include <support/cache_model.hpp>
#include <support/random_bases.hpp>

using namespace kvcondense;

TEST_CASE("weight_svd: raw keys are reconstructed tile by tile and rotated, values absorbed", "[lowrank][weight_svd]") {
  const CacheShape shape{.layers = 2, .q_heads = 6, .kv_heads = 2, .head_dim = 32, .page_slots = 16};
  const test::RandomBases keys(2, 2, 32, 1, false), values(2, 2, 32, 2, false, true);
  const NamedBases list[] = {{"weight_svd", keys.view(KeyForm::raw), values.view()}};
  const lowrank::WeightSvd stage{.keep = 0.5, .value_keep = 0.25, .bases = {list, 1}};
  test::exercise(shape, recipe(stage, position::Rerotate{}), 1, 30, 12.0);
  test::exercise(shape, recipe(evict::Tova{.tokens = 36}, stage, position::Reindex{}), 2, 30, 12.0);
  test::exercise(shape, recipe(stage, position::Rerotate{}, quant::GroupInt<4>{.group_size = 8}), 3, 30, 20.0);
  REQUIRE(make_cache<Cpu>(shape, recipe(stage)).status() == Status::incompatible);
  auto made = make_cache<Cpu>(shape, recipe(stage, position::Rerotate{}));
  REQUIRE(made);
  REQUIRE(made->layers()[0].heads[0].keys.coded().dim() == 16);
  REQUIRE(made->layers()[0].heads[0].values.coded().dim() == 8);
}
