// Layers that take over what another one chose, in a cache on CUDA beside the one on the CPU.

#include <kvcondense/cpu.hpp>

#include <evict/in_pairs.hpp>
#include <kvcondense/budget/skip_layers.hpp>
#include <kvcondense/evict/chunkkv.hpp>
#include <kvcondense/evict/h2o.hpp>
#include <kvcondense/evict/rkv.hpp>

#include "cache_pair.hpp"

using namespace kvcondense;
using cuda_cache::Pair;
using kvcondense::test::InPairs;  // without a word: the host's cache is made of the same pipeline

namespace {

const CacheShape shape{.layers = 3, .q_heads = 4, .kv_heads = 2, .head_dim = 16, .dtype = DType::f32, .page_slots = 8};

any::AnyCache host_of(const auto& policy) {
  auto made = any::AnyCache::make(any::AnyRecipe{.evict = any::AnyEvict(policy)}, "in_pairs", shape);
  REQUIRE(made);
  return std::move(*made);
}

/// A prompt in chunks, text, a second prompt.
template <class R>
void together(Pair<R>& pair) {
  pair.forward(20, prim::AttendMath::f32, pair.near, Phase::prefill_chunk);
  pair.forward(31, prim::AttendMath::f32, pair.near, Phase::prefill_end);
  for (int i = 0; i < 4; ++i) pair.forward(1);
  pair.truncate(pair.on_host().length(0) - 2);
  pair.forward(20, prim::AttendMath::f32, pair.near, Phase::prefill_end);
  pair.compare_reports();
}

}  // namespace

TEST_CASE("cuda cache: layers that reuse a choice keep the CPU's slots, without attention") {
  const evict::ChunkKV chunks{.tokens = 31, .window = 5, .chunk = 4, .reuse = 2};
  Pair pair(recipe(chunks), "chunkkv(tokens=31, window=5, chunk=4, reuse=2)", shape);
  together(pair);
  auto& c = pair.on_device();
  CHECK(c.slots(1, 0) == c.slots(0, 0));
  CHECK(c.wants_mass(0, Phase::prefill_end));
  CHECK_FALSE(c.wants_mass(1, Phase::prefill_end));
  Pair twin = pair.fork();
  twin.forward(9, prim::AttendMath::f32, pair.near, Phase::prefill_end);
  pair.exchange();
  pair.forward(9, prim::AttendMath::f32, pair.near, Phase::prefill_end);
  pair.compare_reports();

  Pair full(recipe(budget::SkipLayers{chunks, 1}), "skip_layers(chunkkv(tokens=31, window=5, chunk=4, reuse=2), layers=1)", shape);
  together(full);
  CHECK(full.on_device().slots(1, 0) == full.on_device().slots(0, 0));
  CHECK(full.on_device().slots(2, 0) < full.on_device().slots(1, 0));
}

TEST_CASE("cuda cache: a layer that reuses a choice waits for it, and for tokens that it has") {
  const evict::ChunkKV chunks{.tokens = 31, .window = 5, .chunk = 4, .reuse = 2};
  test::Device device;
  std::mt19937 random(3);
  auto made = make_cache<Cuda>(shape, recipe(chunks));
  auto other = make_cache<Cuda>(shape, recipe(evict::ChunkKV{.tokens = 31, .window = 5, .chunk = 4}));
  REQUIRE((made && other));
  auto& c = *made;
  test::OnDevice<float> x(device, cuda_cache::normal_numbers(4 * 200 * 16, random)), out(device, std::vector<float>(4 * 60 * 16));
  const auto rows = [&](index_t heads, index_t n, index_t from) { return TensorView<const float, 3>{x.data() + from * 16, {heads, n, 16}, {200 * 16, 16, 1}}; };
  Context<Cuda> ctx = device.with_workspace(c.workspace_bytes(200, 60));
  const auto feed = [&](auto& to, index_t layer, index_t n, Phase phase) {
    const index_t from = 40 * layer;
    return to.forward(ctx, layer, rows(4, n, from), rows(2, n, from), rows(2, n, from), dense_view(out.data(), 4, n, 16), {}, phase);
  };
  CHECK(feed(c, 1, 50, Phase::prefill_end) == Status::order_violation);
  CHECK(c.length(1) == 0);
  REQUIRE(feed(c, 0, 50, Phase::prefill_end) == Status::ok);
  REQUIRE(feed(c, 1, 50, Phase::prefill_end) == Status::ok);
  CHECK(c.slots(1, 0) == c.slots(0, 0));
  CHECK(feed(c, 1, 9, Phase::prefill_end) == Status::order_violation);

  for (index_t l = 0; l < shape.layers; ++l) REQUIRE(feed(*other, l, 50, Phase::prefill_end) == Status::ok);
  test::ByteList file;
  REQUIRE(save(ctx, *other, file) == Status::ok);
  REQUIRE(load(ctx, c, file.bytes) == Status::ok);
  REQUIRE(feed(c, 0, 9, Phase::prefill_end) == Status::ok);
  const index_t before = c.slots(1, 0);
  CHECK(feed(c, 1, 9, Phase::prefill_end) == Status::incompatible);
  CHECK(c.slots(1, 0) == before);
  REQUIRE(feed(c, 2, 9, Phase::prefill_end) == Status::ok);  // the cache is whole
}

TEST_CASE("cuda cache: policies that add attention up, or look at queries, reuse a choice as well") {
  const InPairs h2o{evict::H2O{.heavy = 20, .recent = 10}};
  Pair sums(recipe(h2o), host_of(h2o), shape);
  together(sums);
  CHECK(sums.on_device().slots(1, 0) == 30);
  const InPairs rkv{evict::RKV{.tokens = 30, .window = 4, .kernel = 3, .slack = 1}};
  Pair asks(recipe(rkv), host_of(rkv), shape);
  together(asks);
  CHECK(asks.on_device().slots(1, 0) == 30);
}
