// Caches on CUDA beside those on the CPU: the same calls, the same slots.

#include <vector>

#include <kvcondense/budget/head_table.hpp>
#include <kvcondense/budget/ratio.hpp>
#include <kvcondense/evict/every.hpp>
#include <kvcondense/evict/h2o.hpp>
#include <kvcondense/evict/keydiff.hpp>
#include <kvcondense/evict/knorm.hpp>
#include <kvcondense/evict/observed_attention.hpp>
#include <kvcondense/evict/rkv.hpp>
#include <kvcondense/evict/sink_window.hpp>
#include <kvcondense/evict/snapkv.hpp>
#include <kvcondense/evict/tova.hpp>

#include "cache_pair.hpp"

using namespace kvcondense;
using cuda_cache::Pair;

TEST_CASE("cuda cache: h2o drops what drew least attention so far", "[ways]") {
  Pair pair(recipe(evict::H2O{.heavy = 12, .recent = 5}), "h2o(heavy=12, recent=5)",
            {.layers = 2, .q_heads = 6, .kv_heads = 2, .head_dim = 64, .value_dim = 48, .page_slots = 8});
  pair.forward(22, prim::AttendMath::f32, 2e-5f, Phase::prefill_chunk);
  CHECK(pair.on_device().slots(0, 0) == 22);
  pair.forward(19, prim::AttendMath::f32, 2e-5f, Phase::prefill_end);
  CHECK(pair.on_device().slots(0, 0) == 17);
  for (int i = 0; i < 12; ++i) pair.forward(1);
  pair.forward(3);
  pair.compare_reports();
  // Memory follows: no more pages than the slots need, and some that wait for the next ones.
  const auto report = pair.on_device().report(pair.device());
  REQUIRE(report);
  CHECK(report->exact_bytes <= 2 * 2 * (3 + 2) * 8 * (64 + 48) * 2);
}

TEST_CASE("cuda cache: tova keeps one set for all heads, sink_window the ends") {
  Pair tova(recipe(evict::Tova{.tokens = 20}), "tova(tokens=20)", {.q_heads = 4, .kv_heads = 4, .head_dim = 80, .dtype = DType::bf16, .page_slots = 16});
  tova.forward(33);
  for (int i = 0; i < 4; ++i) tova.forward(1);
  tova.compare_reports();
  Pair window(recipe(evict::SinkWindow{.recent = 9, .sinks = 3}), "sink_window(recent=9, sinks=3)", {.q_heads = 7, .kv_heads = 1, .head_dim = 24, .dtype = DType::f32, .page_slots = 5});
  window.forward(30);
  for (int i = 0; i < 4; ++i) window.forward(2);
  window.turn(6);
  window.forward(6);
  window.compare_reports();
}

TEST_CASE("cuda cache: heads of their own lengths, keys read by the policy, tensor cores", "[ways]") {
  const std::vector<float> shares{0.5f, 0.1f, 0.4f};
  const HeadTable table{shares.data(), 1, 3};
  any::ModelFacts facts;
  facts.shares = table;
  const CacheShape shape{.q_heads = 6, .kv_heads = 3, .head_dim = 32, .page_slots = 16};
  Pair ragged(recipe(budget::HeadTableBudget{evict::H2O{.heavy = 14, .recent = 6}, 1.5, table}), "head_table(h2o(heavy=14, recent=6), beta=1.5)", shape, facts);
  ragged.forward(50);
  REQUIRE(ragged.on_device().slots(0, 0) > ragged.on_device().slots(0, 1));
  for (int i = 0; i < 4; ++i) ragged.forward(1);
  ragged.forward(2, prim::AttendMath::halves, 4e-3f);
  ragged.compare_reports();
  // More is protected than the budget has, and it acts at every third generated token.
  Pair norms(recipe(evict::Every{budget::Ratio{evict::Knorm{.recent = 12}, 0.2}, 3}), "every(ratio(knorm(recent=12), keep=20%), tokens=3)", shape);
  norms.forward(29);
  for (int i = 0; i < 4; ++i) norms.forward(1);
  norms.burst(10);
}

TEST_CASE("cuda cache: scores that are pooled, counted, or read from the direction of keys") {
  const CacheShape shape{.q_heads = 4, .kv_heads = 2, .head_dim = 32, .page_slots = 16};
  Pair pooled(recipe(evict::SnapKV{.tokens = 24, .window = 8, .kernel = 5}), "snapkv(tokens=24, window=8, kernel=5)", shape);
  pooled.forward(40);
  for (int i = 0; i < 2; ++i) pooled.forward(1);
  Pair counted(recipe(evict::ObservedAttention{.keep = 0.5, .sinks = 2, .recent = 8}), "observed_attention(keep=50%, sinks=2, recent=8)", shape);
  counted.forward(40);
  counted.forward(3);
  counted.truncate(41);  // rows of tokens that a step has seen stay counted
  counted.forward(1);
  counted.exchange();
  counted.forward(20, prim::AttendMath::f32, counted.near, Phase::prefill_end);
  Pair directed(recipe(evict::KeyDiff{.tokens = 20, .recent = 4}), "keydiff(tokens=20, recent=4)", shape);
  directed.forward(30);
  for (int i = 0; i < 2; ++i) directed.forward(2);
}

TEST_CASE("cuda cache: scratch that is asked for is enough for words that take more of it than their blocks on the CPU") {
  // Small heads of many slots: attention takes less than the step.
  Pair repeated(recipe(evict::RKV{.tokens = 110, .window = 4, .kernel = 3, .slack = 4}), "rkv(tokens=110, window=4, kernel=3, slack=4)",
                {.q_heads = 2, .kv_heads = 2, .head_dim = 16, .page_slots = 16});
  repeated.forward(112);
  for (int i = 0; i < 3; ++i) repeated.forward(1);
  CHECK(repeated.on_device().slots(0, 0) < 115);
}

TEST_CASE("cuda cache: a recipe without stages keeps all, and tokens are taken back") {
  Pair all(recipe(), "exact", {.q_heads = 2, .kv_heads = 2, .head_dim = 16, .page_slots = 4});
  all.forward(9);
  all.forward(1);
  all.truncate(7);
  all.forward(3);
  all.truncate(0);
  all.forward(2);
  REQUIRE(all.on_device().reset(all.device()) == Status::ok);
  CHECK(all.on_device().total_slots(0) == 0);
  CHECK(all.on_device().length() == 0);
}

TEST_CASE("cuda cache: as an engine writes it") {
  constexpr CacheShape shape{.layers = 2, .q_heads = 6, .kv_heads = 2, .head_dim = 64, .page_slots = 8};
  constexpr index_t prompt = 40;
  std::mt19937 random(7);
  const std::vector<float> numbers = cuda_cache::normal_numbers(6 * prompt * 64, random);
  cudaStream_t stream = nullptr;
  REQUIRE(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking) == cudaSuccess);
  {
    cuda::DeviceArray<float> q, k, v, out;
    const auto rows = [](cuda::DeviceArray<float>& x, index_t heads) { return dense_view(static_cast<const float*>(x.data()), heads, prompt, 64); };
    Expected<Context<Cuda>> engine = Context<Cuda>::make(stream);
    REQUIRE(engine);
    REQUIRE(out.resize(6 * prompt * 64) == Status::ok);
    for (auto* x : {&q, &k, &v}) REQUIRE(x->upload(*engine, numbers) == Status::ok);
    auto cache = make_cache<Cuda>(shape, recipe(evict::H2O{.heavy = 12, .recent = 5}));
    REQUIRE(cache);
    cuda::DeviceArray<std::byte> scratch;
    REQUIRE(scratch.resize(static_cast<index_t>(cache->workspace_bytes(prompt, prompt))) == Status::ok);
    Context<Cuda> ctx = engine->with_workspace(scratch.bytes());
    // All of it in device memory: stores keys and values, attends, condenses.
    for (index_t layer = 0; layer < shape.layers; ++layer)
      REQUIRE(cache->forward(ctx, layer, rows(q, 6), rows(k, 2), rows(v, 2), dense_view(out.data(), 6, prompt, 64)) == Status::ok);
    REQUIRE(cache->slots(1, 0) == 12 + 5);
    REQUIRE(ctx.wait() == Status::ok);
  }
  static_cast<void>(cudaStreamDestroy(stream));
}
