// What a decode step of eviction costs beside the attention it follows: `share` is the time of `step` over the time of
// `attend`, both of the same tokens, one after the other, at 4,096 slots a head. Layers take turns, so that no layer's
// slots are still in a processor's cache when their turn comes. `--benchmark_filter=tova` runs the rows that name it.

#include <chrono>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include <benchmark/benchmark.h>

#include <kvcondense/any/any_cache.hpp>
#include <kvcondense/cpu.hpp>

namespace {

using namespace kvcondense;
using Clock = std::chrono::steady_clock;

constexpr CacheShape shape{.layers = 4, .q_heads = 32, .kv_heads = 8, .head_dim = 128};
constexpr index_t slots = 4096, chunk = 128;

/// A method at a budget of about 4,096, for so many tokens: whole periods where slots leave in bursts.
struct Row {
  const char* recipe;
  index_t tokens = 1024;
};

constexpr Row rows[] = {
    {"sink_window(recent=4092)"},
    {"lagkv(keep=1)"},
    {"h2o(heavy=2048, recent=2048)"},
    {"every(h2o(heavy=2048, recent=2048), tokens=128)"},
    {"every(h2o(heavy=2048, recent=2048), tokens=256)"},
    {"h2o(heavy=2048, recent=2048) + kivi4(group=32)"},
    {"every(h2o(heavy=2048, recent=2048), tokens=128) + kivi4(group=32)"},
    {"compensate(h2o(heavy=2048, recent=2048))"},
    {"every(compensate(h2o(heavy=2048, recent=2048)), tokens=128)"},
    {"ada(h2o(heavy=2048, recent=2048))"},
    {"every(ada(h2o(heavy=2048, recent=2048)), tokens=128)"},
    {"every(caote(h2o(heavy=2048, recent=2048)), tokens=128)"},
    {"tova(tokens=4096)"},
    {"every(tova(tokens=4096), tokens=128)"},
    {"every(tova(tokens=4096), tokens=256)"},
    {"knorm(tokens=4096)"},
    {"every(knorm(tokens=4096), tokens=128)"},
    {"every(knorm(tokens=4096), tokens=256)"},
    {"every(keydiff(tokens=4096), tokens=128)"},
    {"paged_h2o(evictable=3936)"},
    {"every(paged_h2o(evictable=3936), tokens=128)"},
    {"scissorhands(tokens=4224, drop=128)"},
    {"scissorhands(tokens=2730, drop=2730)", 2730},  // half of the budget of 5,460, as in its paper
    {"rkv(tokens=4096, slack=128)"},                 // as often as its authors
    {"rkv(tokens=4096, slack=512)"},
    {"keyformer(tokens=4096)", 256},
};
/// The most that one of them lets a head hold, pending tokens included.
constexpr index_t most_slots = 6144;

struct Tokens {
  std::vector<float> q, k, v, out;
  explicit Tokens(index_t n, std::mt19937& random) {
    std::normal_distribution<float> normal;
    const auto fill = [&](std::vector<float>& x, index_t size) {
      x.resize(static_cast<std::size_t>(size));
      for (float& e : x) e = normal(random);
    };
    fill(q, shape.q_heads * n * shape.head_dim), fill(k, shape.kv_heads * n * shape.head_dim);
    v = k, out = q;
  }
};

void step_share(benchmark::State& state, const char* recipe) {
  auto made = any::make(recipe, shape, any::on<Cpu>);
  if (!made) return state.SkipWithError(std::string(made.message()).c_str());
  any::AnyCache& cache = *made;
  Workspace work;
  if (work.reserve(cache.workspace_bytes(most_slots, chunk)) != Status::ok) return state.SkipWithError("memory");
  Context<Cpu> ctx(work.bytes());
  std::mt19937 random(1);
  std::vector<float> mass;
  const auto view = [](const std::vector<float>& x, index_t heads, index_t n) { return dense_view(x.data(), heads, n, shape.head_dim); };
  double attend = 0, step = 0;
  Status failed = Status::ok;
  const auto feed = [&](index_t layer, const Tokens& t, index_t n, Phase phase) {
    auto out = t.out;
    Status s = cache.append(ctx, layer, view(t.k, shape.kv_heads, n), view(t.v, shape.kv_heads, n));
    mass.resize(static_cast<std::size_t>(cache.total_slots(layer)));
    AttendOutputs measure;
    if (cache.wants_mass(layer, phase)) measure.mass = cache.ragged(layer, mass.data());
    const auto a = Clock::now();
    if (s == Status::ok)
      s = cache.attend(ctx, layer, view(t.q, shape.q_heads, n), dense_view(out.data(), shape.q_heads, n, shape.head_dim), measure);
    const auto b = Clock::now();
    const StepInputs inputs{.attention = {measure.mass, cache.mass_rows(n)}, .queries = view(t.q, shape.q_heads, n)};
    if (s == Status::ok) s = cache.step(ctx, layer, inputs, phase);
    const auto c = Clock::now();
    attend += std::chrono::duration<double>(b - a).count(), step += std::chrono::duration<double>(c - b).count();
    if (s != Status::ok) failed = s;
  };
  for (index_t at = 0; at < slots; at += chunk)
    for (index_t l = 0; l < shape.layers; ++l)
      feed(l, Tokens(chunk, random), chunk, at + chunk == slots ? Phase::prefill_end : Phase::prefill_chunk);
  std::vector<Tokens> single;
  for (int i = 0; i < 16; ++i) single.emplace_back(1, random);
  attend = step = 0;
  std::size_t i = 0;
  for (auto _ : state)
    for (index_t l = 0; l < shape.layers; ++l) feed(l, single[i++ % single.size()], 1, Phase::decode);
  if (failed != Status::ok) return state.SkipWithError(to_string(failed));
  state.counters["attend_us"] = attend / static_cast<double>(i) * 1e6;
  state.counters["step_us"] = step / static_cast<double>(i) * 1e6;
  state.counters["share"] = step / attend;
  state.counters["slots"] = static_cast<double>(cache.slots(0, 0));
}

const int listed = [] {
  for (const Row& r : rows)
    benchmark::RegisterBenchmark(r.recipe, step_share, r.recipe)->Iterations(r.tokens)->Unit(benchmark::kMillisecond);
  return 0;
}();

}  // namespace
