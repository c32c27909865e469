// Caches on CUDA whose layers, or heads, store rows together beside a stage that looks at rows: merging, retrieval.

#include <string>

#include <kvcondense/evict/sink_window.hpp>
#include <kvcondense/lowrank/joint_heads.hpp>
#include <kvcondense/lowrank/xkv.hpp>
#include <kvcondense/merge/d2o.hpp>
#include <kvcondense/merge/minicache.hpp>
#include <kvcondense/retrieve/quest.hpp>

#include "cache_coordinates.hpp"

using namespace kvcondense;
using namespace cuda_cache;

namespace {

constexpr CacheShape four{.q_heads = 4, .kv_heads = 4, .head_dim = 32, .value_dim = 24, .dtype = DType::f32, .page_slots = 8};
// Groups of two layers and one that is alone.
constexpr CacheShape three{.layers = 3, .q_heads = 6, .kv_heads = 2, .head_dim = 64, .dtype = DType::f32, .page_slots = 8};

/// Bases of groups of `share` heads.
struct Groups {
  Groups(const CacheShape& s, index_t share)
      : keys(s.layers, s.kv_heads / share, share * s.head_dim, 3, false, false), values(s.layers, s.kv_heads / share, share * s.values(), 5, false, false),
        named{lowrank::JointHeads::made, keys.view(), values.view()} {
    facts.bases = {&named, 1};
  }
  Groups(const Groups&) = delete;
  Groups& operator=(const Groups&) = delete;

  lowrank::JointHeads stage(lowrank::JointHeads s) const { return s.bases = facts.bases, s; }

  test::RandomBases keys, values;
  NamedBases named;
  any::ModelFacts facts;
};

constexpr lowrank::XKv pairs{.keep = 0.25, .value_keep = 0.5, .layers = 2, .window = 6, .least = 16, .sinks = 2};
const std::string pairs_text = "xkv(layers=2, keep=25%, value_keep=50%, window=6, least=16, sinks=2)";

}  // namespace

TEST_CASE("cuda cache: merging beside rows of several heads") {
  const Groups all(four, 4);
  live_as("sink_window(sinks=3, recent=30) + d2o + joint_heads(window=10, values=false)", four, 1e-5f, 6e-5f, all.facts, evict::SinkWindow{.recent = 30, .sinks = 3}, merge::D2O{},
          all.stage({.window = 10, .values = false}));
}

TEST_CASE("cuda cache: merging beside rows of several layers, whose directions are found") {
  // Fewer directions than rows, which sums of d2o make differ in their last bits: any would do behind the last that rows say something of.
  live_as("sink_window(recent=34, sinks=3) + d2o + xkv(layers=2, keep=6.25%, value_keep=6.25%, window=6, least=24, sinks=2)", three, 1e-5f, 3e-5f, {},
          evict::SinkWindow{.recent = 34, .sinks = 3}, merge::D2O{}, lowrank::XKv{.keep = 0.0625, .value_keep = 0.0625, .layers = 2, .window = 6, .least = 24, .sinks = 2});
}

TEST_CASE("cuda cache: an index follows rows that become those of several heads") {
  const Groups two(four, 2);
  live_as("joint_heads(window=16) + quest(page=4, tokens=12, dense_layers=0)", four, made_again, 3e-5f, two.facts, two.stage({.window = 16}),
          retrieve::Quest{.page = 4, .tokens = 12, .dense_layers = 0});
  live_as(pairs_text + " + quest(page=4, tokens=12, dense_layers=0)", three, 2e-5f, 3e-5f, {}, pairs, retrieve::Quest{.page = 4, .tokens = 12, .dense_layers = 0});
  live_as("minicache(start=40%, part=20%, recent=4) + quest(page=4, tokens=12, dense_layers=0)", three, 2e-6f, 2e-5f, {}, merge::MiniCache{.start = 0.4f, .part = 0.2f, .recent = 4},
          retrieve::Quest{.page = 4, .tokens = 12, .dense_layers = 0});
}

TEST_CASE("cuda cache: rows of several heads, and nobody waits while no token has left") {
  const Groups two(four, 2);  // maps that are known
  Pair pair(recipe(two.stage({.window = 4})), "joint_heads(window=4)", four, two.facts);
  pair.allow(made_again);
  const auto shared = [&] { return pair.on_device().report(pair.device())->across_rows; };
  pair.forward(140, prim::AttendMath::f32, 3e-5f);
  pair.burst(40);  // tables have grown
  const index_t before = shared();
  pair.burst(10);
  CHECK(pair.waits() == 0);
  CHECK(shared() == before + 2 * 4 * 8);  // keys and values of four heads
}

TEST_CASE("cuda cache: heads that hold other tokens are asked for them once in a step") {
  const Groups two(four, 2);
  Pair pair(recipe(heavy, two.stage({.window = 4})), "h2o(heavy=20, recent=8) + joint_heads(window=4)", four, two.facts);
  pair.allow(made_again);
  pair.forward(80, prim::AttendMath::f32, 3e-5f);
  pair.burst(40);
  pair.burst(10);
  CHECK(pair.waits() <= 2 * 10 + 2);  // for the lists of those that stay too; a page may go back
}
