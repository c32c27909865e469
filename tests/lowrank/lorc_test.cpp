#include <catch2/catch.hpp>

#include <kvcondense/cpu.hpp>
#include <support/cache_model.hpp>
#include <support/random_bases.hpp>

using namespace kvcondense;

TEST_CASE("lorc: layers have ranks of their own", "[lowrank][lorc]") {
  const CacheShape shape{.layers = 2, .q_heads = 6, .kv_heads = 2, .head_dim = 32, .page_slots = 16};
  const test::RandomBases keys(2, 2, 32, 1, false), values(2, 2, 32, 2, false);
  HeadBases k = keys.view(KeyForm::raw), v = values.view();
  const float key_ranks[] = {21, 21, 9, 9}, value_ranks[] = {32, 32, 17, 17};
  k.ranks = key_ranks, v.ranks = value_ranks;
  NamedBases list[] = {{"lorc", k, v}};
  const lowrank::Lorc stage{.bases = {list, 1}};
  test::exercise(shape, recipe(stage, position::Rerotate{}), 1, 30, 12.0);
  auto made = make_cache<Cpu>(shape, recipe(stage, position::Rerotate{}));
  REQUIRE(made);
  for (index_t i = 0; i < 4; ++i) {
    const auto& head = made->layers()[i / 2].heads[i % 2];
    REQUIRE(static_cast<float>(head.keys.coded().dim()) == key_ranks[i]);
    REQUIRE(static_cast<float>(head.values.coded().dim()) == value_ranks[i]);
  }
  const float none[] = {21, 21, 9, 33};
  list[0].keys.ranks = none;
  REQUIRE(make_cache<Cpu>(shape, recipe(stage, position::Rerotate{})).status() == Status::invalid_argument);
  list[0].keys.ranks = nullptr;
  REQUIRE(make_cache<Cpu>(shape, recipe(stage, position::Rerotate{})).status() == Status::missing_input);
}
