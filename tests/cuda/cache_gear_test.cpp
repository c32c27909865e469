// Caches on CUDA whose chunks of slots have codes, a product of low rank and outliers, beside the one on the CPU: slots that leave, tombstones, pages that are joined.

#include <string_view>

#include <kvcondense/evict/h2o.hpp>
#include <kvcondense/evict/sink_window.hpp>
#include <kvcondense/evict/snapkv.hpp>
#include <kvcondense/merge/d2o.hpp>
#include <kvcondense/quant/boundary_layers.hpp>
#include <kvcondense/quant/gear.hpp>

#include "cache_live.hpp"
#include "cache_methods.hpp"

using namespace kvcondense;
using cuda_cache::Pair;
using quant::BoundaryLayers;
using quant::Gear;
using quant::GearLayout;

namespace {

/// Decoded numbers, of about 1, and outputs over them. The processor adds up a product of low rank in its own order, of which the factors are then rounded to
/// halves; what is joined is coded again with such differences, where a code or an outlier that is as near to another may become it: `far` of a head's numbers.
constexpr float near = 1e-3f, far = 0.01f, within = 5e-4f;

template <class R>
void feed(Pair<R>& pair, index_t tokens, Phase phase = Phase::automatic) {
  pair.forward(tokens, prim::AttendMath::f32, within, phase);
}

/// A prompt, single tokens, several at once; a fork, files that change sides, tokens that are taken back and removed amid chunks. `again`: slots are coded
/// again.
template <class R>
void goes_as_on_the_host(const R& method, std::string_view text, const CacheShape& shape, bool again = true) {
  INFO(text << ", head_dim " << shape.head_dim << ", group " << shape.q_heads / shape.kv_heads);
  Pair<R> pair(method, text, shape);
  pair.allow(near, far);
  feed(pair, 20, Phase::prefill_chunk);
  feed(pair, 41, Phase::prefill_end);
  for (int i = 0; i < 6; ++i) feed(pair, i % 5 == 3 ? 5 : 1);
  pair.exchange();
  cuda_cache::goes_apart(pair, within);
  for (int i = 0; i < 6; ++i) feed(pair, i % 3 == 2 ? 5 : 1);
  cuda_cache::is_cut(pair, within);
  const auto report = pair.on_device().report(pair.device());
  REQUIRE(report);
  CHECK(report->coded_again >= index_t{again});
}

constexpr evict::SinkWindow ends{.recent = 37, .sinks = 3};

}  // namespace

TEST_CASE("cuda cache codec: gear", "[ways]") {
  goes_as_on_the_host(recipe(evict::H2O{.heavy = 30, .recent = 10}, Gear<2>{.group_size = 8, .chunk = 8, .sparse = 0.25, .sinks = 2}),
                      "h2o(heavy=30, recent=10) + gear(bits=2, group_size=8, chunk=8, sparse=25%, sinks=2)",
                      {.layers = 2, .q_heads = 6, .kv_heads = 2, .head_dim = 64, .value_dim = 48, .page_slots = 16});
  const BoundaryLayers<Gear<4>> inner{.base = {.chunk = 16, .rank = 3, .layout = GearLayout::kcvt, .keep_window = 3}, .first = 1, .last = 0};
  goes_as_on_the_host(recipe(inner), "boundary_layers(gear(bits=4, chunk=16, rank=3, layout=kcvt, keep_window=3), first=1, last=0)",
                      {.layers = 2, .q_heads = 4, .kv_heads = 1, .head_dim = 128, .dtype = DType::bf16, .page_slots = 16});
}
TEST_CASE("cuda cache codec: gear in other shapes") {
  goes_as_on_the_host(recipe(ends, Gear<3>{.group_size = 4, .chunk = 4, .rank = 1, .loops = 1, .sparse = 0.5}),
                      "sink_window(recent=37, sinks=3) + gear(bits=3, group_size=4, chunk=4, rank=1, loops=1, sparse=50%)",
                      {.q_heads = 2, .kv_heads = 2, .head_dim = 80, .page_slots = 8});
  goes_as_on_the_host(recipe(evict::SnapKV{.tokens = 40, .window = 8, .kernel = 5}, Gear<2>{.group_size = 8, .chunk = 8, .sparse = 0.0}),
                      "snapkv(tokens=40, window=8, kernel=5) + gear_l(bits=2, group_size=8, chunk=8)",
                      {.q_heads = 7, .kv_heads = 1, .head_dim = 256, .dtype = DType::f32, .page_slots = 8}, false);
  goes_as_on_the_host(recipe(ends, Gear<2>{.group_size = 16, .chunk = 16, .rank = 0, .sparse = 0.1, .sinks = 1}),
                      "sink_window(recent=37, sinks=3) + gear(bits=2, group_size=16, chunk=16, rank=0, sparse=10%, sinks=1)", {.q_heads = 16, .kv_heads = 1, .head_dim = 96, .page_slots = 16});
}

TEST_CASE("cuda cache: what leaves a cache of gear folds into its exact slots") {
  Pair pair(recipe(ends, merge::D2O{}, Gear<2>{.group_size = 8, .chunk = 8}), "sink_window(recent=37, sinks=3) + d2o + gear(bits=2, group_size=8, chunk=8)",
            {.q_heads = 6, .kv_heads = 2, .head_dim = 64, .dtype = DType::f32, .page_slots = 16});
  pair.allow(near, far);
  feed(pair, 50);
  for (int i = 0; i < 12; ++i) feed(pair, i % 5 == 3 ? 5 : 1);
  pair.exchange();
  feed(pair, 3);
  pair.compare_reports();
  CHECK(pair.on_device().report(pair.device())->merged_slots > 0);
}

TEST_CASE("cuda cache: gear with chunks of one slot, and on tensor cores, is refused") {
  const CacheShape shape{.q_heads = 2, .kv_heads = 1, .head_dim = 64};
  CHECK(make_cache<Cuda>(shape, recipe(Gear<2>{.group_size = 1, .chunk = 1, .rank = 1})).status() == Status::not_supported);
  CHECK(make_cache<Cuda>(shape, recipe(Gear<2>{.group_size = 32, .chunk = 48})).status() == Status::invalid_argument);
  auto cache = make_cache<Cuda>(shape, recipe(Gear<2>{}));
  REQUIRE(cache);
  test::Device device;
  Context<Cuda> ctx = device.with_workspace(cache->workspace_bytes(8, 8));
  test::OnDevice<float> rows(device, std::vector<float>(128, 0.5f)), out(device, std::vector<float>(128));
  const auto view = [&](index_t heads) { return dense_view(static_cast<const float*>(rows.data()), heads, 1, 64); };
  REQUIRE(cache->append(ctx, 0, view(1), view(1)) == Status::ok);
  REQUIRE(cache->step(ctx, 0) == Status::ok);
  CHECK(cache->attend(ctx, 0, view(2), dense_view(out.data(), 2, 1, 64), {}, prim::AttendMath::halves) == Status::not_supported);
}

TEST_CASE("cuda cache: a step of gear that codes and joins chunks and is refused memory leaves all as it was, and a fork does not see it") {
  const auto again = [](auto& ctx, const auto& cache, const auto& fork) { CHECK(fork.report(ctx)->evicted_slots > cache.report(ctx)->evicted_slots); };
  cuda_cache::refuse_a_step(recipe(evict::SinkWindow{.recent = 6, .sinks = 2}, Gear<2>{.group_size = 4, .chunk = 4}), 5, {-1, 0, 1, 2, 4, 6}, 2, again);
}
