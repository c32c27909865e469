// Caches on CUDA beside those on the CPU: the same calls, the same slots.

#include <cmath>
#include <concepts>
#include <random>
#include <string>
#include <vector>

#include <kvcondense/any/any_cache.hpp>
#include <kvcondense/any/model_facts.hpp>
#include <kvcondense/backend/cpu/context.hpp>
#include <kvcondense/budget/head_table.hpp>
#include <kvcondense/budget/ratio.hpp>
#include <kvcondense/cuda.cuh>
#include <kvcondense/evict/every.hpp>
#include <kvcondense/evict/h2o.hpp>
#include <kvcondense/evict/keydiff.hpp>
#include <kvcondense/evict/knorm.hpp>
#include <kvcondense/evict/observed_attention.hpp>
#include <kvcondense/evict/sink_window.hpp>
#include <kvcondense/evict/snapkv.hpp>
#include <kvcondense/evict/tova.hpp>
#include <kvcondense/quant/group_int.hpp>
#include <kvcondense/quant/kivi.hpp>

#include "device.hpp"

using namespace kvcondense;
using test::at;

namespace cuda_cache {

std::vector<float> normal_numbers(index_t n, std::mt19937& random) {
  std::normal_distribution<float> normal;
  std::vector<float> x(at(n));
  for (float& v : x) v = normal(random);
  return x;
}

/// One sequence in a cache of each backend. Every call is made on both and compared.
template <class R>
class Pair {
 public:
  /// With VNNI the CPU multiplies codes with queries and weights of 16 bits.
  static constexpr float near = std::same_as<decltype(R::quant), KeepExact> ? 2e-5f : 1e-4f;

  Pair(const R& recipe, const char* text, const CacheShape& shape, const any::ModelFacts& facts = {})
      : shape_(shape), host_(std::move(*any::make(text, shape, any::on<Cpu>, heap_memory(), facts))), device_cache_(make(recipe, shape)) {}

  Cache<Cuda, R>& on_device() { return device_cache_; }
  test::Device& device() { return device_; }

  /// A forward pass of all layers over `tokens` new tokens.
  void forward(index_t tokens, prim::AttendMath math = prim::AttendMath::f32, float within = near, Phase phase = Phase::automatic) {
    for (index_t layer = 0; layer < shape_.layers; ++layer) {
      const std::vector<float> q = normal_numbers(shape_.q_heads * tokens * shape_.head_dim, random_);
      const std::vector<float> k = normal_numbers(shape_.kv_heads * tokens * shape_.head_dim, random_);
      const std::vector<float> v = normal_numbers(shape_.kv_heads * tokens * shape_.values(), random_);
      std::vector<float> out(at(shape_.q_heads * tokens * shape_.values()));
      const auto queries = [&](auto* x) { return dense_view(x, shape_.q_heads, tokens, shape_.head_dim); };
      const auto keys = [&](auto* x) { return dense_view(x, shape_.kv_heads, tokens, shape_.head_dim); };
      const auto values = [&](auto* x) { return dense_view(x, shape_.kv_heads, tokens, shape_.values()); };
      const auto outs = [&](auto* x) { return dense_view(x, shape_.q_heads, tokens, shape_.values()); };
      std::vector<std::byte> scratch(host_.workspace_bytes(most_, most_));
      Context<Cpu> cpu(scratch);
      REQUIRE(host_.forward(cpu, layer, queries(q.data()), keys(k.data()), values(v.data()), outs(out.data()), {}, phase) == Status::ok);

      test::OnDevice<float> dq(device_, q), dk(device_, k), dv(device_, v), dout(device_, std::vector<float>(out.size(), NAN));
      Context<Cuda> ctx = device_.with_workspace(device_cache_.workspace_bytes(most_, most_));
      const auto const_of = [](test::OnDevice<float>& x) { return static_cast<const float*>(x.data()); };
      if (math == prim::AttendMath::f32) {
        REQUIRE(device_cache_.forward(ctx, layer, queries(const_of(dq)), keys(const_of(dk)), values(const_of(dv)), outs(dout.data()), {}, phase) == Status::ok);
      } else {
        REQUIRE(device_cache_.append(ctx, layer, keys(const_of(dk)), values(const_of(dv))) == Status::ok);
        test::OnDevice<float> mass(device_, std::vector<float>(at(device_cache_.total_slots(layer))));
        AttendOutputs measure;
        if (device_cache_.wants_mass(layer)) measure.mass = device_cache_.ragged(layer, mass.data());
        REQUIRE(device_cache_.attend(ctx, layer, queries(const_of(dq)), outs(dout.data()), measure, math) == Status::ok);
        REQUIRE(device_cache_.step(ctx, layer, AttentionView{measure.mass, device_cache_.mass_rows(tokens)}) == Status::ok);
      }
      const std::vector<float> got = dout.read();
      for (std::size_t i = 0; i < got.size(); ++i)
        if (!(std::fabs(got[i] - out[i]) <= within)) FAIL("layer " << layer << ", number " << i << ": " << got[i] << " instead of " << out[i]);
    }
    compare();
  }

  /// Steps of one token in the first layer, the only one, of which nobody waits for any before the last.
  void burst(int steps) {
    const index_t q_size = shape_.q_heads * shape_.head_dim, k_size = shape_.kv_heads * shape_.head_dim;
    const index_t v_size = shape_.kv_heads * shape_.values(), out_size = shape_.q_heads * shape_.values();
    const std::vector<float> q = normal_numbers(steps * q_size, random_), k = normal_numbers(steps * k_size, random_), v = normal_numbers(steps * v_size, random_);
    std::vector<float> out(at(steps * out_size));
    test::OnDevice<float> dq(device_, q), dk(device_, k), dv(device_, v), dout(device_, out);
    Context<Cuda> ctx = device_.with_workspace(device_cache_.workspace_bytes(most_, most_));
    std::vector<std::byte> scratch(host_.workspace_bytes(most_, most_));
    Context<Cpu> cpu(scratch);
    const auto step = [&](auto& cache, auto& c, int i, const float* qs, const float* ks, const float* vs, float* outs) {
      return cache.forward(c, 0, dense_view(qs + i * q_size, shape_.q_heads, 1, shape_.head_dim), dense_view(ks + i * k_size, shape_.kv_heads, 1, shape_.head_dim),
                           dense_view(vs + i * v_size, shape_.kv_heads, 1, shape_.values()), dense_view(outs + i * out_size, shape_.q_heads, 1, shape_.values()));
    };
    for (int i = 0; i < steps; ++i) {
      REQUIRE(step(host_, cpu, i, q.data(), k.data(), v.data(), out.data()) == Status::ok);
      REQUIRE(step(device_cache_, ctx, i, dq.data(), dk.data(), dv.data(), dout.data()) == Status::ok);
    }
    const std::vector<float> got = dout.read();
    for (std::size_t i = 0; i < got.size(); ++i) REQUIRE(std::fabs(got[i] - out[i]) <= near);
    compare();
  }

  /// The same tokens in the same slots, and the same numbers there.
  void compare() {
    for (index_t layer = 0; layer < shape_.layers; ++layer) {
      REQUIRE(device_cache_.length(layer) == host_.length(layer));
      REQUIRE(device_cache_.pending(layer) == host_.pending(layer));
      REQUIRE(device_cache_.next_position(layer) == host_.next_position(layer));
      REQUIRE(device_cache_.total_slots(layer) == host_.total_slots(layer));
      for (index_t h = 0; h < shape_.kv_heads; ++h) {
        const index_t n = host_.slots(layer, h);
        REQUIRE(device_cache_.slots(layer, h) == n);
        std::vector<std::int32_t> tokens(at(n), -1), expected(at(n));
        for (index_t s = 0; s < n; ++s) expected[at(s)] = static_cast<std::int32_t>(host_.token(layer, h, s));
        REQUIRE(device_cache_.tokens(device_, layer, h, tokens) == Status::ok);
        REQUIRE(tokens == expected);
        const index_t first = n / 3, rows = n - first;
        std::vector<float> k(at(rows * shape_.head_dim)), v(at(rows * shape_.values()));
        REQUIRE(host_.read(layer, h, first, dense_view(k.data(), rows, shape_.head_dim), dense_view(v.data(), rows, shape_.values())) == Status::ok);
        test::OnDevice<float> dk(device_, k), dv(device_, v);
        Context<Cuda> ctx = device_.with_workspace(device_cache_.workspace_bytes(most_, 1));
        REQUIRE(device_cache_.read(ctx, layer, h, first, dense_view(dk.data(), rows, shape_.head_dim), dense_view(dv.data(), rows, shape_.values())) == Status::ok);
        REQUIRE(dk.read() == k);
        REQUIRE(dv.read() == v);
      }
    }
  }

  void turn(index_t incoming) {
    std::vector<std::byte> scratch(host_.workspace_bytes(most_, most_));
    Context<Cpu> cpu(scratch);
    REQUIRE(host_.turn(cpu, incoming) == Status::ok);
    Context<Cuda> ctx = device_.with_workspace(device_cache_.workspace_bytes(most_, most_));
    REQUIRE(device_cache_.turn(ctx, incoming) == Status::ok);
    compare();
  }
  void remove(index_t first, index_t last) {
    std::vector<std::byte> scratch(host_.workspace_bytes(most_, most_));
    Context<Cpu> cpu(scratch);
    REQUIRE(host_.remove(cpu, first, last) == Status::ok);
    Context<Cuda> ctx = device_.with_workspace(device_cache_.workspace_bytes(most_, most_));
    REQUIRE(device_cache_.remove(ctx, first, last) == Status::ok);
    compare();
  }
  void truncate(index_t tokens) {
    REQUIRE(host_.truncate(tokens) == Status::ok);
    REQUIRE(device_cache_.truncate(device_, tokens) == Status::ok);
    compare();
  }
  void compare_reports() {
    const Report a = host_.report();
    const Expected<Report> b = device_cache_.report(device_);
    REQUIRE(b);
    CHECK(b->tokens == a.tokens);
    CHECK(b->slots == a.slots);
    CHECK(b->evictions == a.evictions);
    CHECK(b->evicted_slots == a.evicted_slots);
    CHECK(b->budget_asked == a.budget_asked);
    CHECK(b->budget_met == a.budget_met);
    CHECK(b->dense_bytes == a.dense_bytes);
    CHECK(b->repaired_numbers == 0);
    CHECK((b->coded_bytes > 0) == (a.coded_bytes > 0));
  }

 private:
  static Cache<Cuda, R> make(const R& recipe, const CacheShape& shape) {
    auto c = make_cache<Cuda>(shape, recipe);
    REQUIRE(c);
    return std::move(*c);
  }

  CacheShape shape_;
  any::AnyCache host_;
  test::Device device_;
  Cache<Cuda, R> device_cache_;
  std::mt19937 random_{31};
  index_t most_ = 128;  ///< slots and tokens
};

}  // namespace cuda_cache

using cuda_cache::Pair;

TEST_CASE("cuda cache: h2o drops what drew least attention so far") {
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

TEST_CASE("cuda cache: heads of their own lengths, keys read by the policy, tensor cores") {
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
  counted.forward(1);
  Pair directed(recipe(evict::KeyDiff{.tokens = 20, .recent = 4}), "keydiff(tokens=20, recent=4)", shape);
  directed.forward(30);
  for (int i = 0; i < 2; ++i) directed.forward(2);
}

TEST_CASE("cuda cache: kivi codes blocks of keys and single values, between exact ones") {
  Pair kivi(recipe(quant::Kivi<4>{.group_size = 16, .residual_window = 32, .sinks = 3}), "kivi4(group=16, residual=32, sinks=3)",
            {.layers = 2, .q_heads = 6, .kv_heads = 2, .head_dim = 64, .value_dim = 48, .page_slots = 16});
  kivi.forward(2, prim::AttendMath::f32, kivi.near, Phase::prefill_chunk);  // fewer than first slots
  kivi.forward(51);
  for (int i = 0; i < 3; ++i) kivi.forward(15);
  kivi.forward(1);
  kivi.compare_reports();
  CHECK(kivi.on_device().truncate(kivi.device(), 3 + 8) == Status::not_supported);  // amid a group
  Context<Cuda> ctx = kivi.device().with_workspace(kivi.on_device().workspace_bytes(128, 1));
  CHECK(kivi.on_device().remove(ctx, 2, 8) == Status::not_supported);
  kivi.remove(1, 3);
  kivi.truncate(3 + 80);
  kivi.forward(4);
  kivi.truncate(1);
  kivi.forward(70);
  REQUIRE(kivi.on_device().reset(kivi.device()) == Status::ok);
  CHECK(kivi.on_device().total_slots(1) == 0);
  // Pages in lanes, and on tensor cores pages in rows.
  Pair lanes(recipe(quant::Kivi<4>{.group_size = 32, .residual_window = 32}), "kivi4(group=32, residual=32)", {.q_heads = 4, .kv_heads = 1, .head_dim = 32});
  lanes.forward(100);
  lanes.burst(20);
  Pair rows(recipe(quant::Kivi<4>{.group_size = 16, .residual_window = 16}), "kivi4(group=16, residual=16)", {.q_heads = 4, .kv_heads = 2, .head_dim = 32, .page_slots = 16});
  rows.forward(50);
  rows.forward(2, prim::AttendMath::halves, 4e-3f);
  rows.forward(14, prim::AttendMath::halves, 4e-3f);
}

TEST_CASE("cuda cache: what stays is coded, what is coded leaves") {
  const std::vector<float> shares{0.5f, 0.1f, 0.4f};
  const HeadTable table{shares.data(), 1, 3};
  any::ModelFacts facts;
  facts.shares = table;
  const CacheShape shape{.q_heads = 6, .kv_heads = 3, .head_dim = 32};
  // Heads differ in how many of the slots that stay are first ones, codes, newest ones: only the device knows.
  Pair ragged(recipe(budget::HeadTableBudget{evict::H2O{.heavy = 20, .recent = 8}, 1.5, table}, quant::GroupInt<8>{.residual_window = 12, .sinks = 5}),
              "head_table(h2o(heavy=20, recent=8), beta=1.5) + int8(residual=12, sinks=5)", shape, facts);
  ragged.forward(60);
  for (int i = 0; i < 6; ++i) ragged.forward(1);
  ragged.forward(3);
  ragged.compare_reports();
  ragged.remove(2, 45);
  ragged.burst(12);
  Pair ends(recipe(evict::SinkWindow{.recent = 29, .sinks = 3}, quant::GroupInt<4>{.group_size = 8, .residual_window = 6, .sinks = 2}),
            "sink_window(recent=29, sinks=3) + int4(group=8, residual=6, sinks=2)", {.layers = 2, .q_heads = 7, .kv_heads = 1, .head_dim = 24, .dtype = DType::f32, .page_slots = 5});
  ends.forward(20);
  ends.truncate(12);
  ends.remove(1, 7);
  ends.forward(40);
  for (int i = 0; i < 9; ++i) ends.forward(i % 3 + 1);
  ends.turn(6);
  ends.forward(6);
  ends.compare_reports();
  Pair whole(recipe(evict::SinkWindow{.recent = 29, .sinks = 3}, quant::GroupInt<4>{.group_size = 0, .residual_window = 6, .whole_window = true}),
             "sink_window(recent=29, sinks=3) + int4(group=0, residual=6, whole_window=true)", {.q_heads = 2, .kv_heads = 2, .head_dim = 16, .page_slots = 8});
  whole.forward(11);
  for (int i = 0; i < 30; ++i) whole.forward(1);
  // Scores are made from decoded keys.
  Pair norms(recipe(budget::Ratio{evict::Knorm{.recent = 6}, 0.5}, quant::GroupInt<8>{}), "ratio(knorm(recent=6), keep=50%) + int8", shape);
  norms.forward(40);
  for (int i = 0; i < 3; ++i) norms.forward(2);
  CHECK(make_cache<Cuda>(shape, recipe(evict::SinkWindow{.recent = 9}, quant::GroupInt<4>{.key_axis = prim::GroupAxis::channel})).status() == Status::not_supported);
}

TEST_CASE("cuda cache: a turn codes what a removal has left, and nothing that it has not") {
  // Behind the removal no codes are there, so whole windows become codes at once, though nothing is pending.
  Pair whole(recipe(quant::GroupInt<4>{.group_size = 0, .residual_window = 6, .whole_window = true}), "int4(group=0, residual=6, whole_window=true)",
             {.q_heads = 2, .kv_heads = 2, .head_dim = 16, .page_slots = 4});
  whole.forward(11);
  for (int i = 0; i < 3; ++i) whole.forward(1);
  whole.remove(0, 11);
  whole.turn(0);
  whole.forward(1);
  whole.forward(2);
  whole.remove(1, 3);
  whole.forward(1);
  for (int i = 0; i < 7; ++i) whole.forward(1);
  whole.compare_reports();
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

TEST_CASE("cuda cache: a call that is refused changes nothing") {
  test::RefusingMemory memory(1 << 20);
  test::Device device;
  const CacheShape shape{.q_heads = 2, .kv_heads = 2, .head_dim = 16, .page_slots = 4};
  std::vector<float> numbers(2 * 6 * 16, 0.5f);
  numbers[3] = 7e4f;
  test::OnDevice<float> x(device, numbers), out(device, numbers);
  const auto rows = dense_view(static_cast<const float*>(x.data()), 2, 6, 16);
  {
    auto made = make_cache<Cuda>(shape, recipe(evict::H2O{.heavy = 2, .recent = 1}), memory);
    REQUIRE(made);
    auto& c = *made;
    Context<Cuda> ctx = device.with_workspace(c.workspace_bytes(16, 6));
    CHECK(c.append(ctx, 1, rows, rows) == Status::out_of_range);
    CHECK(c.append(ctx, 0, dense_view(rows.data, 2, 6, 15), rows) == Status::shape_mismatch);
    const std::vector<index_t> positions{1, 2, 3};
    CHECK(c.append(ctx, 0, rows, rows, positions) == Status::shape_mismatch);
    CHECK(c.step(ctx, 0) == Status::order_violation);
    memory.left = 0;
    CHECK(c.append(ctx, 0, rows, rows) == Status::out_of_memory);
    CHECK(c.total_slots(0) == 0);
    memory.left = 1 << 20;
    REQUIRE(c.append(ctx, 0, rows, rows) == Status::ok);
    const auto report = c.report(device);
    REQUIRE(report);
    CHECK(report->repaired_numbers == 2);  // a half cannot hold 70000: once as a key, once as a value
    CHECK(c.step(ctx, 0) == Status::missing_input);
    test::OnDevice<float> mass(device, std::vector<float>(12));
    test::OnDevice<index_t> other(device, {0, 6, 12});
    CHECK(c.step(ctx, 0, AttentionView{{mass.data(), other.data(), 2}, 6}) == Status::shape_mismatch);
    AttendOutputs measure;
    measure.mass = c.ragged(0, mass.data());
    REQUIRE(c.attend(ctx, 0, rows, dense_view(out.data(), 2, 6, 16), measure) == Status::ok);
    Context<Cuda> small = device.context().with_workspace(ctx.workspace().first(64));
    CHECK(c.step(small, 0, AttentionView{measure.mass, 6}) == Status::workspace_too_small);
    CHECK(c.forward(small, 0, rows, rows, rows, dense_view(out.data(), 2, 6, 16)) == Status::workspace_too_small);
    CHECK(c.pending() == 6);
    CHECK(c.total_slots(0) == 12);
    REQUIRE(c.step(ctx, 0, AttentionView{measure.mass, 6}) == Status::ok);
    CHECK(c.total_slots(0) == 6);
    CHECK(c.truncate(device, 7) == Status::out_of_range);
    CHECK(c.turn(ctx, -1) == Status::invalid_argument);
  }
  CHECK(memory.out == 0);
  CHECK(make_cache<Cuda>(shape, recipe(evict::H2O{.heavy = -1})).status() == Status::invalid_argument);
}

TEST_CASE("cuda cache: a number that is none is counted once, though it becomes a code later") {
  test::Device device;
  const CacheShape shape{.q_heads = 2, .kv_heads = 2, .head_dim = 16, .page_slots = 4};
  std::vector<float> numbers(2 * 6 * 16, 0.5f);
  numbers[3] = 7e4f, numbers[20] = NAN;  // beyond a half
  test::OnDevice<float> x(device, numbers);
  const auto rows = dense_view(static_cast<const float*>(x.data()), 2, 6, 16);
  auto c = make_cache<Cuda>(shape, recipe(evict::SinkWindow{.recent = 29, .sinks = 3}, quant::GroupInt<4>{.group_size = 8}));
  REQUIRE(c);
  Context<Cuda> ctx = device.with_workspace(c->workspace_bytes(16, 6));
  REQUIRE(c->append(ctx, 0, rows, rows) == Status::ok);
  REQUIRE(c->step(ctx, 0) == Status::ok);
  const auto report = c->report(device);
  REQUIRE(report);
  CHECK(report->coded_bytes > 0);
  CHECK(report->repaired_numbers == 4);  // keys and values
}

namespace cuda_cache {
/// Requests for memory are refused, one after the other, in `rounds` of six tokens; the slots of a head are then `left`.
template <class R>
void lose_nothing(const R& method, int rounds, index_t left) {
  const CacheShape shape{.q_heads = 2, .kv_heads = 2, .head_dim = 16, .page_slots = 4};
  test::Device device;
  std::mt19937 random(5);
  test::OnDevice<float> x(device, normal_numbers(2 * 6 * 16, random)), out(device, std::vector<float>(2 * 6 * 16)), mass(device, std::vector<float>(2 * 64));
  const auto rows = dense_view(static_cast<const float*>(x.data()), 2, 6, 16);
  const auto refuses = [](Status s) {
    REQUIRE((s == Status::ok || s == Status::out_of_memory));
    return s != Status::ok;
  };
  std::vector<float> expected;
  int requests = 0;
  for (int k = 1 << 20; k >= 0; k = k == 1 << 20 ? requests : k - 1) {  // first with all it wants, of which requests are counted
    test::RefusingMemory memory(k);
    {
      auto made = make_cache<Cuda>(shape, method, memory);
      if (!made) {
        CHECK(made.status() == Status::out_of_memory);
      } else {
        auto& c = *made;
        Context<Cuda> ctx = device.with_workspace(c.workspace_bytes(64, 6));
        for (int i = 0; i < rounds; ++i) {
          const index_t before = c.total_slots(0);
          if (refuses(c.append(ctx, 0, rows, rows))) {
            REQUIRE(c.total_slots(0) == before);
            REQUIRE(c.pending() == 0);
            REQUIRE(c.attend(ctx, 0, dense_view(rows.data, 2, 1, 16), dense_view(out.data(), 2, 1, 16)) == Status::ok);
            device.wait();
            memory.left = 1 << 20;
            REQUIRE(c.append(ctx, 0, rows, rows) == Status::ok);
          }
          AttendOutputs measure;
          if (c.wants_mass(0)) {
            measure.mass = c.ragged(0, mass.data());
            REQUIRE(c.attend(ctx, 0, rows, dense_view(out.data(), 2, 6, 16), measure) == Status::ok);
          }
          const AttentionView seen{measure.mass, c.mass_rows(6)};
          if (refuses(c.step(ctx, 0, seen))) {
            REQUIRE(c.total_slots(0) == before + 12);
            REQUIRE(c.pending() == 6);
            memory.left = 1 << 20;
            REQUIRE(c.step(ctx, 0, seen) == Status::ok);
          }
        }
        REQUIRE(c.slots(0, 1) == left);
        test::OnDevice<float> k_rows(device, std::vector<float>(at(left * 16))), v_rows(device, std::vector<float>(at(left * 16)));
        REQUIRE(c.read(ctx, 0, 1, 0, dense_view(k_rows.data(), left, 16), dense_view(v_rows.data(), left, 16)) == Status::ok);
        if (expected.empty()) expected = k_rows.read(), requests = (1 << 20) - memory.left;
        REQUIRE(k_rows.read() == expected);
        REQUIRE(v_rows.read() == expected);  // the same rows, stored alike
      }
    }
    REQUIRE(memory.out == 0);
  }
  CHECK(requests > 20);
}
}  // namespace cuda_cache

TEST_CASE("cuda cache: device memory that is refused loses nothing") {
  cuda_cache::lose_nothing(recipe(evict::SinkWindow{.recent = 29, .sinks = 3}, quant::GroupInt<4>{.group_size = 8, .residual_window = 2, .sinks = 2}), 8, 32);
  // Numbers per slot are not counted twice when a step is made again.
  const std::vector<float> shares{0.5f, 0.5f};
  const HeadTable table{shares.data(), 1, 2};
  cuda_cache::lose_nothing(recipe(budget::HeadTableBudget{evict::H2O{.heavy = 9, .recent = 6}, 1.5, table}, quant::GroupInt<8>{.group_size = 8, .residual_window = 2, .sinks = 2}), 3, 15);
}

#if defined(KVCONDENSE_CUDA_FIBERS)
TEST_CASE("cuda cache: first slots that came are not forgotten when a step could not be planned") {
  test::Device device;
  using Column = cache::CudaColumn<prim::GroupInt<4>>;
  std::vector<prim::PartCounts> told(2);
  Column column({.codec = {.axis = prim::GroupAxis::token, .group_size = 0}, .flush = fifo_flush(1), .sinks = 2, .heads = 2, .dim = 16, .page_slots = 4}, cuda::device_memory());
  REQUIRE(column.make() == Status::ok);
  column.tell_at(told);
  REQUIRE(column.reserve(device, 2, 3) == Status::ok);
  column.count(2, 3);
  REQUIRE(column.reserve_codes(device, [](index_t) { return index_t{5}; }) == Status::ok);
  REQUIRE(column.settle(device) == Status::ok);
  test::OnDevice<index_t> slots(device, {5, 5});
  cuda::DeviceArray<prim::KeptRange> ranges;
  REQUIRE(ranges.resize(column.range_count()) == Status::ok);
  const auto step = [&] { return column.step(device, slots.data(), {{}, slots.data()}, false, true, ranges.data(), nullptr); };
  CHECK(column.device().fresh == 2);
  cuda_fibers::runtime.fail_at = cuda_fibers::runtime.calls, cuda_fibers::runtime.fail_with = cudaErrorLaunchOutOfResources;  // the first launch
  CHECK(step() == Status::not_supported);
  cuda_fibers::runtime.fail_at = -1;
  CHECK(column.device().fresh == 2);
  REQUIRE(step() == Status::ok);
  CHECK(column.device().fresh == 0);
  CHECK(told[0].first == 2);
  CHECK(told[0].coded == 2);
}
#endif
