// Decode attention of one layer (32 query heads, 8 KV heads of 128 numbers, one token), in turns: read the same number of
// bytes, attend over f16 slots, attend over the recipe's. Medians of the turns.
//
//   hot    the same layer again and again: what it costs to compute
//   cold   layers take turns, a gigabyte of them at f16: every slot comes from memory, as in a model
//
//   of_read   the time to read the cache's bytes once (a sum over floats) over the time to attend
//   of_f16    the time of f16 over the time of the recipe
//   threads   2: a pool of two, waiting by spinning

#include <algorithm>
#include <atomic>
#include <chrono>
#include <ctime>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include <benchmark/benchmark.h>

#include <kvcondense/any/any_cache.hpp>
#include <kvcondense/cpu.hpp>

namespace {

using namespace kvcondense;

/// Seconds: of this thread's work, so that other programs do not count, or with more threads, of the clock on the wall.
double now(bool wall) {
  if (wall) return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
  timespec t{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
  return static_cast<double>(t.tv_sec) + 1e-9 * static_cast<double>(t.tv_nsec);
}

constexpr index_t q_heads = 32, kv_heads = 8, dim = 128, chunk = 512;

/// One helper thread that spins, and the caller.
class TwoThreads final : public Executor {
 public:
  TwoThreads() : helper_([this] { help(); }) {}
  ~TwoThreads() override {
    stop_ = true;
    helper_.join();
  }
  index_t workers() const noexcept override { return 2; }
  void run(index_t tasks, void (*body)(void*, index_t, index_t), void* state) noexcept override {
    tasks_ = tasks, body_ = body, state_ = state;
    next_.store(0), done_.store(false);
    go_.store(true, std::memory_order_release);
    work(0);
    while (!done_.load(std::memory_order_acquire)) {}
  }

 private:
  void work(index_t worker) {
    for (index_t t; (t = next_.fetch_add(1)) < tasks_;) body_(state_, t, worker);
  }
  void help() {
    while (!stop_) {
      if (!go_.exchange(false, std::memory_order_acquire)) continue;
      work(1);
      done_.store(true, std::memory_order_release);
    }
  }
  index_t tasks_ = 0;
  void (*body_)(void*, index_t, index_t) = nullptr;
  void* state_ = nullptr;
  std::atomic<index_t> next_{0};
  std::atomic<bool> go_{false}, done_{false}, stop_{false};
  std::thread helper_;
};

/// Layers of one recipe, all filled alike, and their turns.
class Layers {
 public:
  Layers(const char* recipe, index_t slots, index_t layers, Executor* threads) {
    auto made = any::make(recipe, {.layers = layers, .q_heads = q_heads, .kv_heads = kv_heads, .head_dim = dim}, any::on<Cpu>);
    if (!made) {
      failed = Status::invalid_argument;
      return;
    }
    cache = std::make_unique<any::AnyCache>(std::move(*made));
    const std::size_t bytes = cache->workspace_bytes(slots + chunk, chunk, threads == nullptr ? 1 : threads->workers());
    if (failed = work.reserve(bytes); failed != Status::ok) return;
    ctx = Context<Cpu>(work.bytes(), threads);
    wall = threads != nullptr;
    std::mt19937 random(1);
    std::normal_distribution<float> normal;
    rows.resize(static_cast<std::size_t>(chunk * kv_heads * dim));
    for (float& x : rows) x = normal(random);
    out.resize(static_cast<std::size_t>(q_heads * dim));
    const auto view = [](const float* x, index_t heads, index_t n) { return dense_view(x, heads, n, dim); };
    for (index_t l = 0; l < layers; ++l)
      for (index_t at = 0; at < slots; at += chunk) {
        const index_t n = std::min(chunk, slots - at);
        if (failed == Status::ok) failed = cache->append(ctx, l, view(rows.data(), kv_heads, n), view(rows.data(), kv_heads, n));
        if (failed == Status::ok) failed = cache->step(ctx, l, {}, Phase::prefill_chunk);
      }
    bytes_per_layer = static_cast<double>(cache->report().exact_bytes + cache->report().coded_bytes) / static_cast<double>(layers);
  }

  /// Seconds of one call.
  double attend(index_t layer) {
    const double a = now(wall);
    if (failed == Status::ok)
      failed = cache->attend(ctx, layer, dense_view(static_cast<const float*>(rows.data()), q_heads, 1, dim), dense_view(out.data(), q_heads, 1, dim));
    return now(wall) - a;
  }

  std::unique_ptr<any::AnyCache> cache;
  Status failed = Status::ok;
  double bytes_per_layer = 0;

 private:
  bool wall = false;
  Workspace work;
  Context<Cpu> ctx;
  std::vector<float> rows, out;
};

double median(std::vector<double>& x) {
  std::nth_element(x.begin(), x.begin() + static_cast<std::ptrdiff_t>(x.size() / 2), x.end());
  return x[x.size() / 2];
}

/// Seconds to add up `n` floats, by the quickest kernel there is for it.
double read_seconds(const float* x, index_t n) {
  const double a = now(false);
  benchmark::DoNotOptimize(prim::cpu::row_ops().largest(x, n, 0.0f));
  return now(false) - a;
}

void attend_layers(benchmark::State& state, const char* recipe, bool cold, bool two) {
  const index_t slots = state.range(0);
  const std::size_t f16_bytes = static_cast<std::size_t>(slots * kv_heads * dim * 4);
  const index_t layers = cold ? std::max<index_t>(2, static_cast<index_t>((std::size_t{1} << 30) / f16_bytes)) : 1;
  std::unique_ptr<TwoThreads> threads = two ? std::make_unique<TwoThreads>() : nullptr;
  Layers f16("keep_all", slots, layers, threads.get()), mine(recipe, slots, layers, threads.get());
  if (f16.failed != Status::ok || mine.failed != Status::ok) return state.SkipWithError("cannot make the cache");
  const auto floats = static_cast<index_t>(mine.bytes_per_layer / 4);
  std::vector<float> memory(static_cast<std::size_t>(floats * layers), 1.0f);
  std::vector<double> read, full, own;
  index_t at = 0;
  for (auto _ : state) {
    at = (at + 1) % layers;
    read.push_back(read_seconds(memory.data() + at * floats, floats));
    full.push_back(f16.attend(at));
    own.push_back(mine.attend(at));
    state.SetIterationTime(own.back());
  }
  if (mine.failed != Status::ok) return state.SkipWithError(to_string(mine.failed));
  const double t = median(own);
  state.counters["ns_per_slot"] = t / static_cast<double>(slots) * 1e9;
  state.counters["GB_per_s"] = mine.bytes_per_layer / t * 1e-9;
  state.counters["of_read"] = median(read) / t;
  state.counters["of_f16"] = median(full) / t;
}

constexpr const char* recipes[] = {
    "keep_all", "int8", "kivi4(group=32, residual=128)", "kivi4(group=64, residual=128)", "kivi2(group=32, residual=128)",
    "kivi2(group=64, residual=128)",
};

const int listed = [] {
  for (const bool two : {false, true})
    for (const bool cold : {false, true})
      for (const char* r : recipes) {
        const std::string name = std::string(cold ? "cold" : "hot") + (two ? "/2 threads/" : "/1 thread/") + r;
        auto* b = benchmark::RegisterBenchmark(name.c_str(), attend_layers, r, cold, two)->UseManualTime()->Unit(benchmark::kMicrosecond);
        for (const int slots : {1024, 4096, 16384, 65536}) b->Arg(slots);
      }
  return 0;
}();

}  // namespace
