// As cache_across_groups_test.cpp, of other codecs.

#include <string>

#include <kvcondense/lowrank/joint_heads.hpp>
#include <kvcondense/position/reindex.hpp>
#include <kvcondense/quant/kitty.hpp>
#include <kvcondense/quant/qjl.hpp>

#include "cache_coordinates.hpp"

using namespace kvcondense;
using namespace cuda_cache;

TEST_CASE("cuda cache: rows of several heads become codes of groups of slots that share more than scales", "[.][sweep]") {
  const CacheShape pages{.layers = 2, .q_heads = 6, .kv_heads = 2, .head_dim = 64, .page_slots = 8};
  const RandomModel model(pages);
  const lowrank::JointHeads sums{.columns = 24, .value_columns = 16, .window = 4, .bases = model.facts().bases};
  const std::string text = "sink_window(recent=20, sinks=3) + joint_heads(columns=24, value_columns=16, window=4) + ";
  live_as(text + "kitty(page=8, boost=25%, buffer=8) + reindex", pages, 1e-4f, 2e-4f, model.facts(), ends, sums, quant::Kitty{.page = 8, .boost = 0.25f, .buffer = 8}, position::Reindex{});
  live_as(text + "qjl(bits=128, strong_bits=64, first_layers=0, channels=3, group=4, value_group=8, buffer=8, seed=5) + reindex", pages, 1e-4f, 2e-4f, model.facts(), ends, sums,
          quant::Qjl{.bits = 128, .strong_bits = 64, .first_layers = 0, .channels = 3, .group_size = 4, .value_group = 8, .buffer = 8, .seed = 5}, position::Reindex{});
}
