// Units that later calls go on reading, where slots leave in between.

#include <random>

#include <kvcondense/evict/h2o.hpp>
#include <kvcondense/evict/sink_window.hpp>
#include <kvcondense/retrieve/lserve.hpp>

#include "cache_retrieval.hpp"

using namespace kvcondense;
using namespace cuda_cache;

TEST_CASE("cuda cache retrieves: units that are read for many steps, behind eviction") {
  const retrieve::LServe method{.page = 8, .part = 4, .tokens = 24, .interval = 3, .heads = retrieve::Heads::group_max};
  parity(of(evict::H2O{.heavy = 25, .recent = 16}, method), "h2o(heavy=25, recent=16) + " + setting("lserve"), shapes()[1], true);
}

TEST_CASE("cuda cache retrieves: lists of what stays are waited for where a choice reads them") {
  const CacheShape shape{.q_heads = 4, .kv_heads = 2, .head_dim = 32, .dtype = DType::f32, .page_slots = 8};
  constexpr index_t tokens = 120;
  test::Device device;
  std::mt19937 random(5);
  test::OnDevice<float> x(device, normal_numbers(4 * tokens * 32, random)), out(device, std::vector<float>(4 * tokens * 32));
  auto c = make_cache<Cuda>(shape, recipe(evict::H2O{.heavy = 25, .recent = 16}, retrieve::LServe{.page = 8, .part = 4, .tokens = 24, .interval = 3, .heads = retrieve::Heads::group_max}));
  REQUIRE(c);
  Context<Cuda> ctx = device.with_workspace(c->workspace_bytes(tokens, tokens));
  const auto waits = [&](index_t n, Phase phase) {
    const index_t first = c->length(), evicted = c->report(device)->evicted_slots;
    const int before = test::stream_waits();
    const auto rows = [&](index_t heads) { return TensorView<const float, 3>{x.data() + first * 32, {heads, n, 32}, {tokens * 32, 32, 1}}; };
    REQUIRE(c->forward(ctx, 0, rows(4), rows(2), rows(2), dense_view(out.data(), 4, n, 32), {}, phase) == Status::ok);
    const int waited = test::stream_waits() - before;
    REQUIRE(c->report(device)->evicted_slots > evicted);
    return waited;
  };
  waits(60, Phase::prefill_end), waits(30, Phase::prefill_end);  // tables have grown
  CHECK(waits(8, Phase::prefill_end) == 0);
  for (int i = 0; i < 3; ++i) waits(1, Phase::decode);
  if (test::stream_waits() > 0) CHECK(waits(1, Phase::decode) == 1);
}
