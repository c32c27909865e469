// As cache_coordinate_groups_test.cpp, of other codecs.

#include <kvcondense/lowrank/pca.hpp>
#include <kvcondense/quant/gear.hpp>
#include <kvcondense/quant/polar.hpp>
#include <kvcondense/quant/qjl.hpp>

#include "cache_coordinates.hpp"

using namespace kvcondense;
using namespace cuda_cache;

TEST_CASE("cuda cache: coordinates become codes of groups of slots of other codecs", "[.][sweep]") {
  const RandomModel model(odd);
  const lowrank::Pca pca{.window = 4, .bases = model.facts().bases};
  live("h2o(heavy=20, recent=8) + pca(window=4) + qjl(bits=128, strong_bits=64, first_layers=0, channels=3, group=4, value_group=8, buffer=8, seed=5)", odd, 1e-4f, model, heavy, pca,
       quant::Qjl{.bits = 128, .strong_bits = 64, .first_layers = 0, .channels = 3, .group_size = 4, .value_group = 8, .buffer = 8, .seed = 5});
  live("h2o(heavy=20, recent=8) + pca(window=4) + polar(group_size=8)", odd, 1e-4f, model, heavy, pca, quant::Polar<4, 4>{.group_size = 8});
  // As `gear` alone: a product of low rank is added up in another order than on the CPU, and factors are halves.
  live_as("h2o(heavy=20, recent=8) + pca(window=4) + gear(bits=4, group_size=8, chunk=8)", odd, 1e-3f, 5e-4f, model.facts(), heavy, pca, quant::Gear<4>{.group_size = 8, .chunk = 8});
}
