#include <vector>

#include <catch2/catch.hpp>

#include <kvcondense/cpu.hpp>
#include <support/cache_model.hpp>
#include <support/check_snapshot.hpp>
#include <support/random_bases.hpp>

using namespace kvcondense;

namespace {

const CacheShape shape{.layers = 2, .q_heads = 6, .kv_heads = 2, .head_dim = 32, .page_slots = 16};

}  // namespace

TEST_CASE("matryoshka: any rank of one basis, heads of different ranks too", "[lowrank][matryoshka]") {
  const test::RandomBases keys(2, 2, 32, 1, true), values(2, 2, 32, 2, true);
  const NamedBases list[] = {{"matryoshka", keys.view(), values.view()}};
  std::uint32_t seed = 10;
  for (const double keep : {0.25, 0.5, 1.0})
    test::exercise(shape, recipe(lowrank::Matryoshka{.keep = keep, .value_keep = 0.5, .bases = {list, 1}}), ++seed, 20, 12.0);
  const lowrank::Matryoshka table{.rule = lowrank::RankRule::table, .bases = {list, 1}};
  test::exercise(shape, recipe(table), ++seed, 30, 12.0);
  test::exercise(shape, recipe(evict::SnapKV{.tokens = 40, .window = 8}, table, quant::GroupInt<4>{.group_size = 8}), ++seed, 30, 20.0);
  auto made = make_cache<Cpu>(shape, recipe(table));
  REQUIRE(made);
  for (index_t h = 0; h < 4; ++h)  // ranks of RandomBases
    REQUIRE(made->layers()[h / 2].heads[h % 2].keys.coded().dim() == 8 * (1 + h % 3));
}

TEST_CASE("matryoshka: a file of other ranks is refused", "[lowrank][matryoshka]") {
  const test::RandomBases keys(2, 2, 32, 1, true), values(2, 2, 32, 2, true);
  const NamedBases list[] = {{"matryoshka", keys.view(), values.view()}};
  const lowrank::Matryoshka table{.rule = lowrank::RankRule::table, .bases = {list, 1}};
  test::check_snapshot(shape, recipe(table), recipe(lowrank::Matryoshka{.bases = {list, 1}}));
}
