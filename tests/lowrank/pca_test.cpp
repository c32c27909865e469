#include <vector>

#include <catch2/catch.hpp>

#include <kvcondense/cpu.hpp>
#include <support/cache_model.hpp>
#include <support/cache_rig.hpp>
#include <support/oracle.hpp>
#include <support/random_bases.hpp>

using namespace kvcondense;

namespace {

const CacheShape shape{.layers = 2, .q_heads = 6, .kv_heads = 2, .head_dim = 32, .page_slots = 16};

}  // namespace

TEST_CASE("pca: any calls, centred or not, orthonormal or not, with and without codes behind it", "[lowrank][pca]") {
  std::uint32_t seed = 1;
  for (const bool mean : {false, true})
    for (const bool pair : {false, true}) {
      const test::RandomBases keys(2, 2, 32, ++seed, mean, pair), values(2, 2, 32, ++seed, mean, pair);
      const NamedBases list[] = {{"pca", keys.view(), values.view()}};
      for (const double keep : {0.25, 0.75, 1.0}) {
        lowrank::Pca pca{.keep = keep, .value_keep = 0.5, .window = 5, .bases = {list, 1}};
        test::exercise(shape, recipe(pca), ++seed, 20, keep == 1.0 ? 8.0 : 12.0);
        test::exercise(shape, recipe(evict::H2O{.heavy = 20, .recent = 20}, pca, quant::Kivi<4>{.group_size = 8, .residual_window = 16}),
                       ++seed, 20, 20.0);
        test::exercise(shape, recipe(pca, quant::Hadamard<quant::GroupInt<4>>{.base = {.group_size = 8}}), ++seed, 20, 20.0);
      }
    }
}

TEST_CASE("online_pca: any calls", "[lowrank][online_pca]") {
  std::uint32_t seed = 100;
  for (const bool center : {false, true}) {
    lowrank::OnlinePca pca{.window = 5, .least = 20, .center = center};
    test::exercise(shape, recipe(pca), ++seed, 30, 12.0);
    test::exercise(shape, recipe(pca, position::Rerotate{}), ++seed, 30, 12.0);
    test::exercise(shape, recipe(evict::SnapKV{.tokens = 40, .window = 8}, pca, quant::GroupInt<8>{.group_size = 8}), ++seed, 30, 12.0);
  }
}

TEST_CASE("think: any calls", "[lowrank][think]") {
  std::uint32_t seed = 200;
  lowrank::Think think{.recent = 5, .least = 9};
  test::exercise(shape, recipe(think), ++seed, 30, 12.0);
  test::exercise(shape, recipe(think, quant::Kivi<4>{.group_size = 8, .residual_window = 16}), ++seed, 30, 12.0);
  think.pairs = true;
  test::exercise(shape, recipe(think, position::Rerotate{}), ++seed, 30, 12.0);
}
