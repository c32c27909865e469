// Caches on CUDA whose groups of slots share more than scales, beside the one on the CPU: slots that leave, tombstones, pages that are joined.

#include <string_view>

#include <kvcondense/evict/h2o.hpp>
#include <kvcondense/evict/sink_window.hpp>
#include <kvcondense/evict/snapkv.hpp>
#include <kvcondense/quant/kitty.hpp>
#include <kvcondense/quant/polar.hpp>

#include "cache_live.hpp"
#include "cache_methods.hpp"

using namespace kvcondense;
using cuda_cache::Pair;

namespace {

/// Numbers that are made of angles, and outputs over them: a device has its own sine, cosine and arc tangent, by which an angle that is as near to a bin's
/// edge as rounding may get another code.
#if defined(KVCONDENSE_CUDA_FIBERS)
constexpr float of_angles = 0.0f, far_angles = 0.0f, over_angles = 1e-4f;
#else
constexpr float of_angles = 1e-5f, far_angles = 0.25f, over_angles = 2e-2f;
#endif

/// A prompt, single tokens, several at once; forks, files that change sides, tokens that are taken back and removed amid groups. `again`: whether slots are
/// coded again.
template <class R>
void goes_as_on_the_host(const R& method, std::string_view text, const CacheShape& shape, bool again, float within = 1e-4f, float stored = 0.0f) {
  INFO(text << ", head_dim " << shape.head_dim << ", group " << shape.q_heads / shape.kv_heads);
  Pair<R> pair(method, text, shape);
  pair.allow(stored, stored > 0.0f ? far_angles : 0.0f);
  const auto feed = [&](auto& to, index_t n) { to.forward(n, prim::AttendMath::f32, within); };
  pair.forward(20, prim::AttendMath::f32, within, Phase::prefill_chunk);
  pair.forward(41, prim::AttendMath::f32, within, Phase::prefill_end);
  for (int i = 0; i < 8; ++i) feed(pair, i % 5 == 3 ? 5 : 1);
  pair.exchange();
  {
    Pair<R> twin = cuda_cache::goes_apart(pair, within);
    twin.exchange();
    feed(twin, 1);
  }
  for (int i = 0; i < 12; ++i) feed(pair, i % 7 == 3 ? 5 : 1);
  cuda_cache::is_cut(pair, within);
  const auto report = pair.on_device().report(pair.device());
  REQUIRE(report);
  CHECK((report->coded_again > 0) == again);
}

}  // namespace

TEST_CASE("cuda cache codec: kitty", "[ways]") {
  using quant::Kitty;
  const CacheShape shape{.layers = 2, .q_heads = 6, .kv_heads = 2, .head_dim = 64, .value_dim = 48, .page_slots = 16};
  goes_as_on_the_host(recipe(evict::H2O{.heavy = 30, .recent = 10}, Kitty{.page = 8, .boost = 0.25f, .buffer = 8, .sinks = 2}),
                      "h2o(heavy=30, recent=10) + kitty(page=8, boost=25%, buffer=8, sinks=2)", shape, true);
  goes_as_on_the_host(recipe(Kitty{.page = 16, .buffer = 5, .keep_window = 3, .sinks = 0}), "kitty(page=16, buffer=5, keep_window=3, sinks=0)",
                      {.q_heads = 4, .kv_heads = 1, .head_dim = 128, .dtype = DType::bf16, .page_slots = 16}, true);
}
TEST_CASE("cuda cache codec: kitty in other shapes") {
  using quant::Kitty;
  goes_as_on_the_host(recipe(evict::SinkWindow{.recent = 37, .sinks = 3}, Kitty{.page = 4, .boost = 0.1f, .buffer = 4, .sinks = 1}),
                      "sink_window(recent=37, sinks=3) + kitty(page=4, boost=10%, buffer=4, sinks=1)", {.q_heads = 2, .kv_heads = 2, .head_dim = 80, .page_slots = 8}, true);
  goes_as_on_the_host(recipe(evict::SnapKV{.tokens = 40, .window = 8, .kernel = 5}, Kitty{.page = 8, .boost = 1.0f, .buffer = 8, .sinks = 0}),
                      "snapkv(tokens=40, window=8, kernel=5) + kitty(page=8, boost=100%, buffer=8, sinks=0)",
                      {.q_heads = 7, .kv_heads = 1, .head_dim = 256, .dtype = DType::f32, .page_slots = 8}, true);
}

TEST_CASE("cuda cache codec: polar") {
  const CacheShape shape{.layers = 2, .q_heads = 6, .kv_heads = 2, .head_dim = 64, .value_dim = 48, .page_slots = 16};
  goes_as_on_the_host(recipe(evict::H2O{.heavy = 30, .recent = 10}, quant::Polar<4, 4>{.group_size = 8, .centered = true, .keep_window = 2, .sinks = 2}),
                      "h2o(heavy=30, recent=10) + polar(group_size=8, centered=true, keep_window=2, sinks=2)", shape, true, over_angles, of_angles);
  goes_as_on_the_host(recipe(quant::Polar<3, 4>{.group_size = 16, .pairing = prim::RopePairing::interleaved}), "polar(rho_bits=3, theta_bits=4, group_size=16, pairing=interleaved)",
                      {.q_heads = 4, .kv_heads = 1, .head_dim = 128, .dtype = DType::bf16, .page_slots = 16}, true, over_angles, of_angles);
}
TEST_CASE("cuda cache codec: polar in other shapes") {
  goes_as_on_the_host(recipe(evict::SinkWindow{.recent = 37, .sinks = 3}, quant::Polar<2, 3>{.group_size = 4, .sinks = 1}),
                      "sink_window(recent=37, sinks=3) + polar(rho_bits=2, theta_bits=3, group_size=4, sinks=1)", {.q_heads = 2, .kv_heads = 2, .head_dim = 80, .page_slots = 8}, true, over_angles, of_angles);
  goes_as_on_the_host(recipe(evict::SnapKV{.tokens = 40, .window = 8, .kernel = 5}, quant::Polar<4, 4>{.group_size = 8}),
                      "snapkv(tokens=40, window=8, kernel=5) + polar(group_size=8)", {.q_heads = 7, .kv_heads = 1, .head_dim = 256, .dtype = DType::f32, .page_slots = 8}, true, over_angles, of_angles);
}

TEST_CASE("cuda cache: a step that codes and joins groups and is refused memory leaves all as it was, and a fork does not see it") {
  const evict::SinkWindow ends{.recent = 6, .sinks = 2};
  const auto again = [](auto& ctx, const auto& cache, const auto& fork) { CHECK(fork.report(ctx)->evicted_slots > cache.report(ctx)->evicted_slots); };
  cuda_cache::refuse_a_step(recipe(ends, quant::Kitty{.page = 4, .boost = 0.25f, .buffer = 2, .sinks = 0}), 5, {-1, 0, 1, 2, 4, 6}, 2, again);
  cuda_cache::refuse_a_step(recipe(ends, quant::Polar<4, 4>{.group_size = 4}), 5, {-1, 0, 1, 2, 4, 6}, 2, again);
}
