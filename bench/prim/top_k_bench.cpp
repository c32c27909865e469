// Selection of the best slots beside std::nth_element over the same scores, in turns within one loop. Every turn has scores
// of its own (fresh data: nothing has been sorted, and branches cannot be learned), as many as make a pass over all of them larger than
// the near caches. `of_nth_element` is its time over ours; ns is ours, per score.

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <random>
#include <vector>

#include <benchmark/benchmark.h>

#include <kvcondense/cpu.hpp>

namespace {

using namespace kvcondense;
using Clock = std::chrono::steady_clock;

/// Scores that look like attention's sums: positive, most of them small.
std::vector<float> scores(index_t n) {
  std::mt19937 random(1);
  std::exponential_distribution<float> e;
  std::vector<float> x(static_cast<std::size_t>(n));
  for (float& s : x) s = e(random) * e(random);
  return x;
}

void top_k(benchmark::State& state) {
  const index_t n = state.range(0), k = std::max<index_t>(1, n / state.range(1));
  const index_t rows = std::max<index_t>(2, (1 << 20) / n);
  const std::vector<float> all = scores(n * rows);
  const index_t offset[] = {0, n};
  std::vector<std::int32_t> slots(static_cast<std::size_t>(n)), order(slots.size());
  Context<Cpu> ctx;
  double ours = 0, theirs = 0;
  index_t row = 0, differ = 0;
  for (auto _ : state) {
    const float* x = all.data() + row * n;
    row = (row + 1) % rows;
    index_t count = 0;
    for (std::size_t i = 0; i < order.size(); ++i) order[i] = static_cast<std::int32_t>(i);
    Status s = Status::ok;
    const auto mine = [&] {
      const auto a = Clock::now();
      s = prim::TopK<Cpu>::run(ctx, RaggedView<const float>{x, offset, 1}, nullptr, &k, RaggedView<std::int32_t>{slots.data(), offset, 1}, &count, nullptr);
      ours += std::chrono::duration<double>(Clock::now() - a).count();
    };
    // Who goes first finds the scores farther away: they take turns.
    if (row % 2 == 0) mine();
    const auto b = Clock::now();
    std::nth_element(order.begin(), order.begin() + (k - 1), order.end(), [x](std::int32_t l, std::int32_t r) { return x[l] > x[r]; });
    theirs += std::chrono::duration<double>(Clock::now() - b).count();
    if (row % 2 != 0) mine();
    if (s != Status::ok || count != k) return state.SkipWithError("no selection");
    // The worst that was taken is the same number.
    float least = x[slots[0]];
    for (index_t i = 1; i < k; ++i) least = std::min(least, x[slots[static_cast<std::size_t>(i)]]);
    differ += least != x[order[static_cast<std::size_t>(k - 1)]];
  }
  if (differ > 0) return state.SkipWithError("another selection");
  state.counters["ns"] = ours / static_cast<double>(state.iterations()) / static_cast<double>(n) * 1e9;
  state.counters["of_nth_element"] = theirs / ours;
}
// Scores, and one in how many stays.
BENCHMARK(top_k)->ArgsProduct({{4096, 16384, 65536, 1 << 20}, {4, 16}})->ArgNames({"scores", "one_in"})->Unit(benchmark::kMicrosecond);

}  // namespace
