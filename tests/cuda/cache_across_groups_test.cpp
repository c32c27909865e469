// Rows that heads store jointly, whose sums become codes of groups of slots.

#include <kvcondense/lowrank/joint_heads.hpp>
#include <kvcondense/position/reindex.hpp>
#include <kvcondense/quant/kivi.hpp>

#include "cache_coordinates.hpp"

using namespace kvcondense;
using namespace cuda_cache;

TEST_CASE("cuda cache: rows of several heads become codes of groups of slots") {
  const CacheShape pages{.layers = 2, .q_heads = 6, .kv_heads = 2, .head_dim = 64, .page_slots = 8};
  const RandomModel model(pages);
  live_as("sink_window(recent=20, sinks=3) + joint_heads(columns=24, value_columns=16, window=4) + kivi4(group=8, residual=8) + reindex", pages, 1e-4f, 2e-4f, model.facts(), ends,
          lowrank::JointHeads{.columns = 24, .value_columns = 16, .window = 4, .bases = model.facts().bases}, quant::Kivi<4>{.group_size = 8, .residual_window = 8}, position::Reindex{});
}
