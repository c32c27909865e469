// Caches on CUDA whose chunks of slots have codes, a product of low rank and outliers, beside the one on the CPU.

#include <string_view>

#include <kvcondense/evict/h2o.hpp>
#include <kvcondense/evict/sink_window.hpp>
#include <kvcondense/quant/gear.hpp>

#include "cache_pair.hpp"

using namespace kvcondense;
using cuda_cache::Pair;
using quant::Gear;
using quant::GearLayout;

namespace {

template <class R>
void goes_as_on_the_host(const R& method, std::string_view text, const CacheShape& shape, bool again, float stored, float far, float within) {
  INFO(text << ", head_dim " << shape.head_dim << ", group " << shape.q_heads / shape.kv_heads);
  Pair<R> pair(method, text, shape);
  pair.allow(stored, far);
  const auto feed = [&](auto& to, index_t n) { to.forward(n, prim::AttendMath::f32, within); };
  pair.forward(20, prim::AttendMath::f32, within, Phase::prefill_chunk);
  pair.forward(41, prim::AttendMath::f32, within, Phase::prefill_end);
  for (int i = 0; i < 8; ++i) feed(pair, i % 5 == 3 ? 5 : 1);
  pair.exchange();
  {
    Pair<R> twin = pair.fork();
    feed(twin, 9);
    feed(pair, 2);
    twin.compare();
    twin.remove(7, 31);
    feed(twin, 12);
    pair.compare();
    twin.exchange();
    feed(twin, 1);
  }
  for (int i = 0; i < 12; ++i) feed(pair, i % 7 == 3 ? 5 : 1);
  pair.truncate(pair.on_device().length() - 11);
  feed(pair, 1);
  pair.remove(pair.on_device().length() / 4, pair.on_device().length() / 2);
  pair.turn(4);
  feed(pair, 4);
  pair.exchange();
  feed(pair, 9);
  pair.compare_reports();
  const auto report = pair.on_device().report(pair.device());
  REQUIRE(report);
  CHECK((report->coded_again > 0) == again);
}

}  // namespace

TEST_CASE("cuda cache codec: gear") {
  const CacheShape shape{.layers = 2, .q_heads = 6, .kv_heads = 2, .head_dim = 64, .value_dim = 48, .page_slots = 16};
  goes_as_on_the_host(recipe(Gear<2>{.group_size = 8, .chunk = 16}), "gear(bits=2, group_size=8, chunk=16)", shape, true, 2e-3f, 0.05f, 1e-2f);
  goes_as_on_the_host(recipe(evict::H2O{.heavy = 30, .recent = 10}, Gear<2>{.group_size = 8, .chunk = 8, .sparse = 0.25, .sinks = 2}),
                      "h2o(heavy=30, recent=10) + gear(bits=2, group_size=8, chunk=8, sparse=25%, sinks=2)", shape, true, 2e-3f, 0.05f, 1e-2f);
}
