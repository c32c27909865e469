// Units that are read for many steps, and slots whose draws are watched, where layers store rows together.

#include <kvcondense/lowrank/joint_heads.hpp>
#include <kvcondense/lowrank/xkv.hpp>
#include <kvcondense/merge/minicache.hpp>
#include <kvcondense/position/reindex.hpp>
#include <kvcondense/retrieve/infllm.hpp>
#include <kvcondense/retrieve/lserve.hpp>

#include "cache_coordinates.hpp"

using namespace kvcondense;
using namespace cuda_cache;

TEST_CASE("cuda cache: units that are read for many steps are chosen from rows as layers store them together", "[.][sweep]") {
  const CacheShape three{.layers = 3, .q_heads = 6, .kv_heads = 2, .head_dim = 64, .dtype = DType::f32, .page_slots = 8};
  const retrieve::LServe held{.page = 8, .part = 4, .tokens = 24, .interval = 3, .heads = retrieve::Heads::group_max};
  live_as("xkv(layers=2, keep=25%, value_keep=50%, window=6, least=16, sinks=2) + " + setting("lserve"), three, 2e-5f, 3e-5f, {},
          lowrank::XKv{.keep = 0.25, .value_keep = 0.5, .layers = 2, .window = 6, .least = 16, .sinks = 2}, held);
  live_as("minicache(start=40%, part=20%, recent=4) + " + setting("lserve"), three, 2e-6f, 2e-5f, {}, merge::MiniCache{.start = 0.4f, .part = 0.2f, .recent = 4}, held);
}

TEST_CASE("cuda cache: what slots draw stays theirs where layers store rows together", "[.][sweep]") {
  const CacheShape three{.layers = 3, .q_heads = 6, .kv_heads = 2, .head_dim = 64, .dtype = DType::f32, .page_slots = 8};
  live_as("xkv(layers=2, keep=25%, value_keep=50%, window=6, least=16, sinks=2) + reindex + " + setting("infllm"), three, 2e-5f, 6e-5f, {},
          lowrank::XKv{.keep = 0.25, .value_keep = 0.5, .layers = 2, .window = 6, .least = 16, .sinks = 2}, position::Reindex{},
          retrieve::InfLlm{.block = 5, .blocks = 3, .init = 3, .local = 9, .representatives = 2, .chunk = 20});
}
