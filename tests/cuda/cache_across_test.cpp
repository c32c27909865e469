// Caches on CUDA whose layers, or heads, store rows together, beside those of the CPU.

#include <algorithm>
#include <string>
#include <vector>

#include <kvcondense/evict/sink_window.hpp>
#include <kvcondense/lowrank/joint_heads.hpp>
#include <kvcondense/lowrank/xkv.hpp>
#include <kvcondense/position/reindex.hpp>
#include <kvcondense/quant/fp8.hpp>
#include <kvcondense/quant/kivi.hpp>

#include "cache_coordinates.hpp"
#include "cache_refused.hpp"

using namespace kvcondense;
using namespace cuda_cache;

namespace {

// Groups of two layers and one that is alone.
const CacheShape three{.layers = 3, .q_heads = 6, .kv_heads = 2, .head_dim = 64, .dtype = DType::f32, .page_slots = 8};
const CacheShape heads{.layers = 2, .q_heads = 4, .kv_heads = 4, .head_dim = 80, .value_dim = 48, .page_slots = 5};

}  // namespace

// Directions are sums in the order of the CPU, coordinates too.

TEST_CASE("cuda cache coordinates: xkv", "[ways]") {
  const lowrank::XKv pairs{.keep = 0.25, .value_keep = 0.5, .layers = 2, .window = 6, .least = 16, .sinks = 2};
  live_as("xkv(layers=2, keep=25%, value_keep=50%, window=6, least=16, sinks=2)", three, 2e-5f, 3e-5f, {}, pairs);
  live_as("sink_window(recent=24, sinks=3) + xkv(layers=2, keep=25%, value_keep=50%, window=6, least=16, sinks=2)", three, 2e-5f, 3e-5f, {},
          evict::SinkWindow{.recent = 24, .sinks = 3}, pairs);
  live_as("h2o(heavy=20, recent=8) + xkv(layers=2, heads=2, window=3, least=8)", heads, 4e-3f, 4e-3f, {}, heavy,
          lowrank::XKv{.layers = 2, .heads = 2, .window = 3, .least = 8});
}

TEST_CASE("cuda cache coordinates: joint_heads") {
  const RandomModel model(small);
  live("joint_heads(columns=24, value_columns=20, window=5, sinks=3) + reindex", small, 3e-5f, model,
       lowrank::JointHeads{.columns = 24, .value_columns = 20, .window = 5, .sinks = 3, .bases = model.facts().bases}, position::Reindex{});
}

TEST_CASE("cuda cache across layers: coordinates of all become codes") {
  live_as("xkv(layers=1, heads=2, window=4, least=8, keys=false) + fp8", heads, 1e-2f, 1e-2f, {}, lowrank::XKv{.layers = 1, .heads = 2, .window = 4, .least = 8, .keys = false},
          quant::Fp8{});
}

TEST_CASE("cuda cache across layers: pages of rows are counted once") {
  const CacheShape two{.layers = 2, .q_heads = 2, .kv_heads = 2, .head_dim = 64, .dtype = DType::f32, .page_slots = 8};
  const lowrank::XKv pairs{.keep = 0.25, .value_keep = 0.5, .layers = 2, .window = 6, .least = 16, .sinks = 2};
  Pair pair(recipe(pairs), "xkv(layers=2, keep=25%, value_keep=50%, window=6, least=16, sinks=2)", two, {});
  pair.allow(2e-5f);
  pair.forward(30, prim::AttendMath::f32, 3e-5f);
  const auto report = pair.on_device().report(pair.device());
  REQUIRE(report);
  // Of 22 slots behind the first ones and in front of the window two whole pages, of two heads: 32 numbers of a key, 64 of a value.
  CHECK(report->coded_bytes == 2 * 2 * 8 * (32 + 64) * sizeof(float));
  CHECK(report->across_rows == 2 * 2 * 2 * 16);
  pair.compare_reports();
}

// A page that memory is refused to stays exact, in all layers, and is shared when there is some.
TEST_CASE("cuda cache across layers: refused memory loses nothing") {
  share_less(recipe(lowrank::XKv{.keep = 0.5, .value_keep = 0.5, .layers = 2, .window = 4, .least = 8}), 2 * 2 * 2 * 8, [](auto& s, index_t before) {
    for (index_t layer = 0; layer < 2; ++layer) {
      REQUIRE(s.cache.slots(layer, 1) == s.tokens);
      const std::vector<float> keys = s.keys(layer);
      if (before == 0) REQUIRE(std::ranges::equal(keys, s.keys_given()));
    }
    s.memory.left = 1 << 20;
    for (index_t layer = 0; layer < 2; ++layer) REQUIRE(s.forward(layer, s.tokens, 2) == Status::ok);
    REQUIRE(s.shared() == 2 * 2 * 2 * 12);
    for (index_t layer = 0; layer < 2; ++layer) REQUIRE(s.cache.attend(s.ctx, layer, s.part(0, 1), dense_view(s.out.data(), 2, 1, 16)) == Status::ok);
  });
}

TEST_CASE("cuda cache across layers: what is not there is refused") {
  const CacheShape odd_heads{.layers = 3, .q_heads = 3, .kv_heads = 3, .head_dim = 64};
  const auto status = [&](const CacheShape& shape, const auto&... stages) { return make_cache<Cuda>(shape, recipe(stages...)).status(); };
  CHECK(status(odd_heads, lowrank::XKv{.layers = 2, .heads = 2}) == Status::not_supported);  // the last head of the last layer is alone
  // A page of codes of more slots than a page of newest ones.
  CHECK(status(three, lowrank::XKv{.keep = 0.25, .value_keep = 0.25, .layers = 2}, quant::Kivi<2>{.group_size = 16, .residual_window = 16}) == Status::not_supported);
}
