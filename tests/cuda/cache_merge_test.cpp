// Merge methods of the catalogue in a cache on CUDA beside the same on the CPU, a line each: what an eviction method lets go folds into what stays.

#include <cmath>
#include <limits>
#include <map>
#include <random>
#include <string>
#include <string_view>
#include <vector>

#include <kvcondense/cpu.hpp>
#include <kvcondense/evict/h2o.hpp>
#include <kvcondense/evict/sink_window.hpp>
#include <kvcondense/evict/snapkv.hpp>
#include <kvcondense/merge/cam.hpp>
#include <kvcondense/merge/centroid.hpp>
#include <kvcondense/merge/d2o.hpp>
#include <kvcondense/merge/elastic_cache.hpp>
#include <kvcondense/merge/ems.hpp>
#include <kvcondense/merge/keepkv.hpp>
#include <kvcondense/merge/kvmerger.hpp>
#include <kvcondense/merge/lookm.hpp>
#include <kvcondense/merge/tome.hpp>
#include <kvcondense/merge/value_merge.hpp>
#include <kvcondense/merge/weightedkv.hpp>
#include <kvcondense/quant/boundary_layers.hpp>
#include <kvcondense/quant/fp8.hpp>
#include <kvcondense/quant/kivi.hpp>

#include "cache_methods.hpp"

using namespace kvcondense;
using namespace cuda_cache;

namespace {

/// Sums are rounded where they are stored, and then read: a step of the stored type here or there.
float rounding(DType type) { return type == DType::bf16 ? 0x1p-7f : type == DType::f16 ? 0x1p-10f : 1e-5f; }

template <class... Stages>
void folds(std::string_view text, const CacheShape& shape, const Stages&... stages) {
  INFO(text << ", head_dim " << shape.head_dim);
  Pair pair(recipe(stages...), text, shape);
  pair.allow(2.0f * rounding(shape.dtype));
  const auto feed_to = [&](auto& to, index_t n, Phase phase = Phase::automatic) { to.forward(n, prim::AttendMath::f32, to.near + 4.0f * rounding(shape.dtype), phase); };
  const auto feed = [&](index_t n, Phase phase = Phase::automatic) { feed_to(pair, n, phase); };
  feed(20, Phase::prefill_chunk);
  feed(3, Phase::prefill_chunk);
  feed(28, Phase::prefill_end);
  for (int i = 0; i < 4; ++i) feed(1);
  pair.exchange();
  pair.turn(3);
  feed(3, Phase::prefill_end);
  {
    Pair other = pair.fork();
    feed(2);
    other.exchange();
    feed_to(other, 3);
    feed_to(other, 9);
    other.compare_reports();
  }
  for (int i = 0; i < 3; ++i) feed(1);
  pair.remove(pair.on_device().length() - 5, pair.on_device().length() - 3);  // numbers per slot move too
  feed(1);
  pair.truncate(pair.on_device().length() - 12);  // behind where runs are sought next
  feed(5);
  feed(7);
  feed(1);
  pair.compare_reports();
  CHECK(pair.on_device().report(pair.device())->merged_slots > 0);
}

}  // namespace

/// A line a method: the eviction in front, what folds, and both as text. One of the shapes, and hidden behind [sweep] all of them.
#define KVCONDENSE_CUDA_MERGE(word, text, evict, merge)                                                                                        \
  TEST_CASE("cuda cache method: " word) { folds(text, shape_of(word), evict, merge); }                                             \
  TEST_CASE("cuda cache method in every shape: " word, "[.][sweep]") {                                                                         \
    for (const CacheShape& shape : shapes()) folds(text, shape, evict, merge);                                                     \
  }

KVCONDENSE_CUDA_MERGE("d2o", "h2o(heavy=20, recent=20) + d2o", inner, merge::D2O{})
KVCONDENSE_CUDA_MERGE("cam", "h2o(heavy=20, recent=20) + cam(targets=3)", inner, merge::CaM{.targets = 3})
KVCONDENSE_CUDA_MERGE("lookm", "h2o(heavy=20, recent=20) + lookm(kernel=average, alike_only=true)", inner,
                      (merge::LookM{.kernel = merge::LookM::Kernel::average, .alike_only = true}))
KVCONDENSE_CUDA_MERGE("weightedkv", "h2o(heavy=20, recent=20) + weightedkv", inner, merge::WeightedKV{})
KVCONDENSE_CUDA_MERGE("value_merge", "h2o(heavy=20, recent=20) + value_merge(part=80%)", inner, merge::ValueMerge{.part = 0.8})
KVCONDENSE_CUDA_MERGE("elastic_cache", "h2o(heavy=20, recent=20) + elastic_cache(sinks=2)", inner, merge::ElasticCache{.sinks = 2})
KVCONDENSE_CUDA_MERGE("ems", "h2o(heavy=20, recent=20) + ems(window=8, least=0.02, place=pivot)", inner,
                      (merge::Ems{.window = 8, .least = 0.02f, .place = merge::Place::pivot}))
KVCONDENSE_CUDA_MERGE("keepkv", "h2o(heavy=20, recent=20) + keepkv(window=5, least=0.1)", inner, (merge::KeepKV{.window = 5, .least = 0.1f}))

KVCONDENSE_CUDA_MERGE("tome", "keep_all + tome(tokens=30, slack=4, sinks=2, recent=6)", evict::KeepAll{}, (merge::ToMe{.tokens = 30, .slack = 4, .sinks = 2, .recent = 6}))
KVCONDENSE_CUDA_MERGE("centroid", "keep_all + centroid(tokens=30, chunk=8, slack=4, sinks=2, recent=6, place=pivot)", evict::KeepAll{},
                      (merge::Centroid{.tokens = 30, .chunk = 8, .slack = 4, .sinks = 2, .recent = 6, .place = merge::Place::pivot}))

KVCONDENSE_CUDA_MERGE("kvmerger", "keep_all + kvmerger(keep=60%, heavy=10%, window=6)", evict::KeepAll{}, (merge::KVMerger{.keep = 0.6, .heavy = 0.1, .window = 6}))

TEST_CASE("cuda cache: what folds behind ends, into few, by weights of the exponential", "[ways]") {
  folds("sink_window(sinks=3, recent=30) + d2o(exponential=true)", {.layers = 2, .q_heads = 3, .kv_heads = 3, .head_dim = 32, .dtype = DType::f32, .page_slots = 8},
        evict::SinkWindow{.recent = 30, .sinks = 3}, merge::D2O{.exponential = true});
  folds("sink_window(sinks=0, recent=2) + lookm", {.q_heads = 8, .kv_heads = 1, .head_dim = 96, .page_slots = 4}, evict::SinkWindow{.recent = 2, .sinks = 0}, merge::LookM{});
}

TEST_CASE("cuda cache: what slots weigh that others folded into, and where they stand") {
  using merge::Mass, merge::Place;
  const evict::SinkWindow ends{.recent = 20, .sinks = 3};
  const CacheShape &one = shapes()[0], &three = shapes()[1], &wide = shapes()[3];
  folds("sink_window(sinks=3, recent=20) + d2o(mass=log_count)", wide, ends, merge::D2O{.mass = Mass::log_count});
  folds("sink_window(sinks=3, recent=20) + d2o(mass=exact)", three, ends, merge::D2O{.mass = Mass::exact});
  folds("sink_window(sinks=3, recent=20) + d2o(mass=value_scale, place=pivot)", one, ends, merge::D2O{.mass = Mass::value_scale, .place = Place::pivot});
  folds("sink_window(sinks=3, recent=20) + d2o(mass=exact, place=latest)", wide, ends, merge::D2O{.mass = Mass::exact, .place = Place::latest});
  folds("sink_window(sinks=3, recent=20) + cam(targets=3, mass=log_count)", one, ends, merge::CaM{.targets = 3, .mass = Mass::log_count});
  folds("sink_window(sinks=3, recent=20) + keepkv(decay=0, window=5, least=0.1, scaled=false, place=latest)", three, ends,
        merge::KeepKV{.decay = 0.0f, .window = 5, .least = 0.1f, .scaled = false, .place = Place::latest});
  // A policy that reads columns of attention sees biases too.
  folds("snapkv(tokens=30, window=6, kernel=3) + d2o(mass=log_count)", wide, evict::SnapKV{.tokens = 30, .window = 6, .kernel = 3}, merge::D2O{.mass = Mass::log_count});
}

TEST_CASE("cuda cache: what leaves folds into exact slots beside codes") {
  const CacheShape shape{.layers = 2, .q_heads = 6, .kv_heads = 2, .head_dim = 64, .dtype = DType::f32, .page_slots = 16};
  const evict::SinkWindow ends{.recent = 30, .sinks = 3};
  folds("sink_window(sinks=3, recent=30) + d2o + fp8(residual=16)", shape, ends, merge::D2O{}, quant::Fp8{.residual_window = 16});
  folds("sink_window(sinks=3, recent=30) + cam(targets=3, mass=log_count) + fp8(residual=16, sinks=2)", shape, ends, merge::CaM{.targets = 3, .mass = merge::Mass::log_count},
        quant::Fp8{.residual_window = 16, .sinks = 2});
  folds("sink_window(sinks=3, recent=30) + d2o + kivi4(group=8, residual=16)", shape, ends, merge::D2O{}, quant::Kivi<4>{.group_size = 8, .residual_window = 16});
  // The last layer has no codes.
  folds("sink_window(sinks=3, recent=30) + d2o + boundary_layers(fp8(residual=16), first=0, last=1)", shape, ends, merge::D2O{},
        quant::BoundaryLayers<quant::Fp8>{.base = {.residual_window = 16}, .first = 0, .last = 1});
  // What slots weigh and where they stand, beside codes that leave alone and such that cannot.
  folds("sink_window(sinks=3, recent=30) + d2o(mass=value_scale) + fp8(residual=16)", shape, ends, merge::D2O{.mass = merge::Mass::value_scale}, quant::Fp8{.residual_window = 16});
  folds("sink_window(sinks=3, recent=30) + d2o(mass=exact, place=latest) + kivi4(group=8, residual=16)", shape, ends,
        merge::D2O{.mass = merge::Mass::exact, .place = merge::Place::latest}, quant::Kivi<4>{.group_size = 8, .residual_window = 16});
}

TEST_CASE("cuda cache: beside codes that leave too few exact slots nothing folds") {
  Pair pair(recipe(evict::SinkWindow{.recent = 30, .sinks = 3}, merge::D2O{}, quant::Fp8{.residual_window = 4}), "sink_window(sinks=3, recent=30) + d2o + fp8(residual=4)",
            {.layers = 2, .q_heads = 6, .kv_heads = 2, .head_dim = 64, .dtype = DType::f32, .page_slots = 16});
  for (const index_t n : {30, 1, 1, 1, 1, 1, 2}) pair.forward(n);  // what leaves comes behind the codes of the prompt
  pair.compare_reports();
  const auto report = pair.on_device().report(pair.device());
  REQUIRE(report);
  CHECK(report->evicted_slots > 0);
  CHECK(report->merged_slots == 0);
}

TEST_CASE("cuda cache: places of more tokens than travel with a kernel, which lie apart") {
  for (const merge::Place place : {merge::Place::pivot, merge::Place::latest}) {
    const bool pivot = place == merge::Place::pivot;
    Pair pair(recipe(evict::SinkWindow{.recent = 300, .sinks = 3}, merge::D2O{.place = place}),
              pivot ? "sink_window(sinks=3, recent=300) + d2o(place=pivot)" : "sink_window(sinks=3, recent=300) + d2o(place=latest)",
              {.q_heads = 2, .kv_heads = 1, .head_dim = 16, .dtype = DType::f32, .page_slots = 16});
    pair.allow(1e-4f);  // of turns by some thousand positions
    pair.space(7);
    pair.forward(299, prim::AttendMath::f32, 1e-4f);
    pair.exchange();
    pair.forward(40, prim::AttendMath::f32, 1e-4f);
    pair.forward(270, prim::AttendMath::f32, 1e-4f);
    pair.forward(1, prim::AttendMath::f32, 1e-4f);
    pair.compare_reports();
    CHECK(pair.on_device().report(pair.device())->merged_slots > 0);
  }
}

TEST_CASE("cuda cache: sets among slots that stay, behind a policy that lets others go, and beside codes") {
  const CacheShape shape{.layers = 2, .q_heads = 6, .kv_heads = 2, .head_dim = 64, .dtype = DType::f32, .page_slots = 16};
  const evict::SinkWindow ends{.recent = 34, .sinks = 3};
  const merge::ToMe pairs{.tokens = 26, .slack = 2, .sinks = 2, .recent = 4, .mass = merge::Mass::exact, .place = merge::Place::latest};
  folds("sink_window(sinks=3, recent=34) + tome(tokens=26, slack=2, sinks=2, recent=4, mass=exact, place=latest)", shape, ends, pairs);
  folds("keep_all + tome(tokens=30, slack=4, sinks=2, recent=6) + fp8(residual=40)", shape, evict::KeepAll{}, merge::ToMe{.tokens = 30, .slack = 4, .sinks = 2, .recent = 6},
        quant::Fp8{.residual_window = 40});
  folds("sink_window(sinks=3, recent=34) + tome(tokens=26, slack=2, sinks=2, recent=4) + kivi4(group=8, residual=24)", shape, ends,
        merge::ToMe{.tokens = 26, .slack = 2, .sinks = 2, .recent = 4}, quant::Kivi<4>{.group_size = 8, .residual_window = 24});
}

TEST_CASE("cuda cache: runs of a number of sets, behind what lets others go") {
  folds("sink_window(sinks=3, recent=30) + kvmerger(keep=60%, heavy=10%, window=5, place=latest)",
        {.layers = 2, .q_heads = 8, .kv_heads = 2, .head_dim = 80, .dtype = DType::f32, .page_slots = 8}, evict::SinkWindow{.recent = 30, .sinks = 3},
        merge::KVMerger{.keep = 0.6, .heavy = 0.1, .window = 5, .place = merge::Place::latest});
  folds("keep_all + kvmerger(least=0.1, window=9, mass=exact)", {.layers = 2, .q_heads = 3, .kv_heads = 3, .head_dim = 64, .dtype = DType::f32, .page_slots = 16}, evict::KeepAll{},
        merge::KVMerger{.least = 0.1f, .window = 9, .mass = merge::Mass::exact});
}

TEST_CASE("cuda cache: a fork knows where runs were sought, and what comes where tokens were taken back is sought in") {
  Pair pair(recipe(merge::KVMerger{.keep = 0.6, .heavy = 0.1, .window = 5}), "keep_all + kvmerger(keep=60%, heavy=10%, window=5)",
            {.layers = 2, .q_heads = 4, .kv_heads = 2, .head_dim = 64, .dtype = DType::f32, .page_slots = 16});
  pair.allow(2e-5f);
  const auto feed = [](auto& to, index_t n) {
    for (index_t i = 0; i < n; ++i) to.forward(1, prim::AttendMath::f32, 6e-5f);
  };
  pair.forward(30, prim::AttendMath::f32, 6e-5f);
  feed(pair, 7);
  {
    auto other = pair.fork();
    feed(other, 8);
    other.compare_reports();
  }
  pair.truncate(20);  // behind where runs are sought next
  feed(pair, 12);
  pair.compare_reports();
}

TEST_CASE("cuda cache: merge methods that it does not take") {
  const CacheShape shape{.q_heads = 2, .kv_heads = 2, .head_dim = 16, .page_slots = 4};
  const auto status = [&](const auto& r) { return make_cache<Cuda>(shape, r).status(); };
  CHECK(status(recipe(merge::D2O{})) == Status::incompatible);  // nothing leaves
  CHECK(status(recipe(evict::H2O{}, merge::D2O{.keep = 2.0f})) == Status::invalid_argument);
  CHECK(status(recipe(evict::SnapKV{}, merge::Ems{})) == Status::incompatible);  // they measure different rows
  CHECK(status(recipe(merge::ToMe{.tokens = 10})) == Status::invalid_argument);
}

TEST_CASE("cuda cache: what folds before a turn asks no query, whatever the caller passes, on either backend") {
  const CacheShape shape{.q_heads = 2, .kv_heads = 2, .head_dim = 16, .dtype = DType::f32, .page_slots = 4};
  const auto method = recipe(evict::SinkWindow{.recent = 6, .sinks = 2}, merge::D2O{.mass = merge::Mass::exact});
  test::Device device;
  std::mt19937 random(5);
  const std::vector<float> x = normal_numbers(2 * 12 * 16, random);
  const auto passed = [](const float* from, int which) -> TensorView<const float, 3> {
    const TensorView<const float, 3> all[]{{}, dense_view(from, 1, 1, 16), dense_view(from, 2, 1, 8), dense_view(from + 32, 2, 0, 16), dense_view(from, 2, 1, 16)};
    return all[which];
  };
  std::vector<std::byte> on_device, on_host;
  for (int which = 0; which < 5; ++which) {
    INFO(which);
    StepInputs in;
    in.incoming = 3;
    test::ByteList file, host_file;
    {
      test::OnDevice<float> rows(device, x), out(device, x);
      const auto all = dense_view(static_cast<const float*>(rows.data()), 2, 12, 16);
      auto c = make_cache<Cuda>(shape, method);
      REQUIRE(c);
      Context<Cuda> ctx = device.with_workspace(c->workspace_bytes(64, 20));
      REQUIRE(c->forward(ctx, 0, all, all, all, dense_view(out.data(), 2, 12, 16)) == Status::ok);
      const index_t before = c->report(ctx)->merged_slots;
      in.queries = passed(rows.data(), which);
      CHECK(c->step(ctx, 0, in, Phase::turn) == Status::ok);
      REQUIRE(c->report(ctx));
      CHECK(c->report(ctx)->merged_slots > before);
      CHECK(save(ctx, *c, file) == Status::ok);
    }
    auto host = make_cache<Cpu>(shape, method);
    REQUIRE(host);
    std::vector<std::byte> scratch(host->workspace_bytes(64, 20));
    Context<Cpu> cpu(scratch);
    std::vector<float> out(x.size());
    const auto all = dense_view(x.data(), 2, 12, 16);
    REQUIRE(host->forward(cpu, 0, all, all, all, dense_view(out.data(), 2, 12, 16)) == Status::ok);
    in.queries = passed(x.data(), which);
    CHECK(host->step(cpu, 0, in, Phase::turn) == Status::ok);
    CHECK(save(*host, host_file) == Status::ok);
    if (which == 0) on_device = file.bytes, on_host = host_file.bytes;
    CHECK((file.bytes == on_device));
    CHECK((host_file.bytes == on_host));
  }
}

namespace {
template <class R>
void fold_again(const R& method) {
  refuse_a_step(method, 3, {-1, 0, 1, 4, 7, 10}, 3,
                [](auto& ctx, const auto& cache, const auto& fork) { CHECK(fork.report(ctx)->merged_slots > cache.report(ctx)->merged_slots); });
}
}  // namespace

TEST_CASE("cuda cache: a step that folds and is refused memory folds nothing, and a fork does not see it") {
  fold_again(recipe(evict::SinkWindow{.recent = 6, .sinks = 2}, merge::D2O{}));
  fold_again(recipe(evict::H2O{.heavy = 4, .recent = 4}, merge::CaM{.targets = 2}));
  fold_again(recipe(merge::KVMerger{.keep = 0.5, .heavy = 0.0, .window = 3}));  // where runs are sought next begins anew too
}

namespace {
/// Values, some of them too large to be summed, in a cache that lets each token go and folds it into the next one that stays.
struct LargeSums {
  static constexpr index_t heads = 2, dim = 16, tokens = 24;
  static constexpr std::string_view text = "sink_window(recent=6, sinks=2) + cam(targets=1)";
  CacheShape shape;
  std::vector<float> keys, values;
  test::Device device;
  Cache<Cuda, decltype(recipe(evict::SinkWindow{}, merge::CaM{}))> cache;

  LargeSums(DType type, float value)
      : shape{.q_heads = heads, .kv_heads = heads, .head_dim = dim, .dtype = type, .page_slots = 4},
        values(at(heads * tokens * dim), value),
        cache(std::move(*make_cache<Cuda>(shape, recipe(evict::SinkWindow{.recent = 6, .sinks = 2}, merge::CaM{.targets = 1})))) {
    std::mt19937 random(5);
    keys = normal_numbers(heads * tokens * dim, random);
  }
  float& value(index_t head, index_t token, index_t c) { return values[at((head * tokens + token) * dim + c)]; }
  /// A prompt of half of the tokens, and the others one by one: forward(from, n, keys, values, outputs).
  template <class Forward>
  void each(Forward&& forward) {
    forward(0, tokens / 2);
    for (index_t t = tokens / 2; t < tokens; ++t) forward(t, 1);
  }
  static auto rows(const float* x, index_t from, index_t n) { return TensorView<const float, 3>{x + from * dim, {heads, n, dim}, {tokens * dim, dim, 1}}; }
  /// after(): behind every step.
  template <class After>
  void feed_device(After&& after) {
    test::OnDevice<float> k(device, keys), v(device, values), out(device, keys);
    each([&](index_t from, index_t n) {
      Context<Cuda> ctx = device.with_workspace(cache.workspace_bytes(tokens, tokens));  // `after` may have taken another one
      REQUIRE(cache.forward(ctx, 0, rows(k.data(), from, n), rows(k.data(), from, n), rows(v.data(), from, n), dense_view(out.data(), heads, n, dim)) == Status::ok);
      after();
    });
    device.wait();
  }
  std::vector<float> stored(index_t head) {
    const index_t n = cache.slots(0, head);
    test::OnDevice<float> k(device, std::vector<float>(at(n * dim))), v(device, std::vector<float>(at(n * dim)));
    Context<Cuda> ctx = device.with_workspace(cache.workspace_bytes(n, 1));
    REQUIRE(cache.read(ctx, 0, head, 0, dense_view(k.data(), n, dim), dense_view(v.data(), n, dim)) == Status::ok);
    return v.read();
  }
};
}  // namespace

TEST_CASE("cuda cache: sums that the stored type cannot hold become its largest numbers, and are counted as on the host") {
  const auto [type, value, most] = GENERATE(table<DType, float, float>({{DType::f16, 40000.0f, 65504.0f}, {DType::bf16, 3e38f, 0x1.fcp127f}, {DType::f32, -3e38f, -3.38e38f}}));
  INFO(to_string(type));
  LargeSums x(type, value);
  x.feed_device([] {});
  auto host = *any::make(LargeSums::text, x.shape, any::on<Cpu>);
  std::vector<std::byte> scratch(host.workspace_bytes(LargeSums::tokens, LargeSums::tokens));
  std::vector<float> out(x.keys.size());
  x.each([&](index_t from, index_t n) {
    Context<Cpu> cpu(scratch);
    REQUIRE(host.forward(cpu, 0, x.rows(x.keys.data(), from, n), x.rows(x.keys.data(), from, n), x.rows(x.values.data(), from, n),
                         dense_view(out.data(), x.heads, n, x.dim)) == Status::ok);
  });
  bool clamped = false;
  for (index_t h = 0; h < x.heads; ++h) {
    const index_t n = host.slots(0, h);
    REQUIRE(x.cache.slots(0, h) == n);
    std::vector<float> k(at(n * x.dim)), v(k.size());
    REQUIRE(host.read(0, h, 0, dense_view(k.data(), n, x.dim), dense_view(v.data(), n, x.dim)) == Status::ok);
    CHECK(x.stored(h) == v);
    for (const float y : v) clamped = clamped || y == most;
  }
  CHECK(clamped);
  const auto report = x.cache.report(x.device);
  REQUIRE(report);
  CHECK(report->repaired_numbers > 0);
  CHECK(report->repaired_numbers == host.report().repaired_numbers);
}

TEST_CASE("cuda cache: a row with Inf and NaN that folds leaves its target finite") {
  LargeSums x(DType::f16, 1.0f);
  for (index_t h = 0; h < x.heads; ++h) x.value(h, 3, 0) = 1e6f, x.value(h, 4, 1) = std::numeric_limits<float>::quiet_NaN(), x.value(h, 5, 2) = -INFINITY;
  x.feed_device([&] {  // they leave in the first step
    for (index_t h = 0; h < x.heads; ++h)
      for (const float y : x.stored(h)) REQUIRE(std::isfinite(y));
  });
  CHECK(x.cache.report(x.device)->repaired_numbers > 6);  // those that came, and sums with them
}

// Here, since programs that try policies and budgets need not try these.
TEST_CASE("cuda cache: every eviction method, budget and merge method is tried, or it is said what lacks") {
  const std::map<std::string, std::string> lacking{
      {"keep_all", "nothing: it is the recipe without an eviction stage"},
  };
  cuda_cache::every_word_is_tried({Stage::evict, Stage::budget, Stage::merge}, "cuda cache method: ", lacking);
}
