// Caches on CUDA whose low-rank stage stores coordinates that become codes in groups of slots, beside those of the CPU.

#include <kvcondense/lowrank/online_pca.hpp>
#include <kvcondense/lowrank/palu.hpp>
#include <kvcondense/lowrank/pca.hpp>
#include <kvcondense/position/reindex.hpp>
#include <kvcondense/quant/kitty.hpp>
#include <kvcondense/quant/kivi.hpp>

#include "cache_coordinates.hpp"

using namespace kvcondense;
using namespace cuda_cache;

TEST_CASE("cuda cache: coordinates become codes of groups of slots") {
  const quant::Kivi<4> kivi{.group_size = 8, .residual_window = 8};
  const RandomModel model(small), other(odd);
  live("h2o(heavy=20, recent=8) + pca(window=4) + kivi4(group=8, residual=8)", small, 1e-4f, model, heavy, lowrank::Pca{.window = 4, .bases = model.facts().bases}, kivi);
  live("h2o(heavy=20, recent=8) + online_pca(window=4, least=12) + kivi4(group=8, residual=8)", odd, 1e-4f, other, heavy, lowrank::OnlinePca{.window = 4, .least = 12}, kivi);
}

TEST_CASE("cuda cache: coordinates of raw keys become codes of groups of slots that share more than scales") {
  const RandomModel model(common);
  live("palu(window=4) + kitty(page=8, boost=25%, buffer=8) + reindex", common, 1e-4f, model, lowrank::Palu{.window = 4, .bases = model.facts().bases},
       quant::Kitty{.page = 8, .boost = 0.25f, .buffer = 8}, position::Reindex{});
}
