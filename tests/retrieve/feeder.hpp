#pragma once

#include <initializer_list>
#include <random>
#include <span>
#include <thread>
#include <utility>
#include <vector>

#include <catch2/catch.hpp>

#include <kvcondense/cache/snapshot.hpp>
#include <kvcondense/cpu.hpp>
#include <support/cache_rig.hpp>
#include <support/naive_cache.hpp>
#include <support/saved.hpp>

namespace kvcondense::test {

/// Feeds a cache with the same tokens as any other of the same seed.
template <class R>
struct Feeder {
  static constexpr index_t slots = 256, chunk = 96;  // the most that scratch is for

  CacheShape shape;
  CacheRig<R> rig;
  std::mt19937 random{7};

  Feeder(const CacheShape& s, const R& recipe, Executor* threads = nullptr) : shape(s), rig(s, recipe, slots, chunk) {
    if (threads == nullptr) return;
    REQUIRE(rig.work.reserve(rig.cache.workspace_bytes(slots, chunk, threads->workers())) == Status::ok);
    rig.ctx = Context<Cpu>(rig.work.bytes(), threads);
  }
  auto& cache() { return rig.cache; }
  std::vector<float> more_queries(index_t n) {
    std::vector<float> q(static_cast<std::size_t>(shape.q_heads * n * shape.head_dim));
    for (float& x : q) x = std::normal_distribution<float>(0.0f, 2.0f)(random);
    return q;
  }
  std::vector<float> forward(index_t n) {
    std::vector<float> all;
    for (index_t l = 0; l < shape.layers; ++l) {
      const Tokens t(shape, n, random, 2.0f);
      std::vector<float> out(static_cast<std::size_t>(shape.q_heads * n * shape.values()));
      REQUIRE(rig.cache.forward(rig.ctx, l, t.queries(shape), t.keys(shape), t.values(shape),
                                dense_view(out.data(), shape.q_heads, n, shape.values()), {}, Phase::automatic, StepInputs{}) == Status::ok);
      all.insert(all.end(), out.begin(), out.end());
    }
    return all;
  }
  /// Tokens that no step sees and that are taken back; those that follow are what they would have been.
  void draft(index_t n) {
    const std::mt19937 now = random;
    for (index_t l = 0; l < shape.layers; ++l) {
      const Tokens t(shape, n, random);
      REQUIRE(rig.cache.append(rig.ctx, l, t.keys(shape), t.values(shape)) == Status::ok);
    }
    REQUIRE(rig.cache.truncate(rig.cache.length() - n) == Status::ok);
    random = now;
  }
};

struct TwoThreads final : Executor {
  index_t workers() const noexcept override { return 2; }
  void run(index_t tasks, void (*body)(void*, index_t, index_t), void* state) noexcept override {
    const auto half = [&](index_t worker) {
      for (index_t t = worker; t < tasks; t += 2) body(state, t, worker);
    };
    std::thread other(half, 1);
    half(0);
    other.join();
  }
};

/// Before each of these calls tokens are taken back, a fork takes over, a file is loaded, or two threads compute: outputs are the same. Cut files are refused.
template <class R>
void require_no_trace(const CacheShape& shape, const R& recipe, std::initializer_list<index_t> calls) {
  TwoThreads threads;
  Feeder plain(shape, recipe), rolled(shape, recipe), forked(shape, recipe), loaded(shape, recipe), threaded(shape, recipe, &threads);
  for (const index_t n : calls) {
    const auto want = plain.forward(n);
    rolled.draft(3);
    REQUIRE(rolled.forward(n) == want);

    auto fork = forked.cache().fork();
    REQUIRE(fork.status() == Status::ok);
    forked.cache() = std::move(*fork);
    REQUIRE(forked.forward(n) == want);

    const auto file = saved(loaded.cache());
    loaded.cache().reset();
    REQUIRE(load(loaded.cache(), file) == Status::ok);
    REQUIRE(loaded.forward(n) == want);
    auto second = make_cache<Cpu>(shape, recipe);
    REQUIRE(load(*second, file) == Status::ok);
    for (std::size_t cut = 0; cut < file.size(); cut += 1 + file.size() / 40)
      REQUIRE(load(*second, std::span(file).first(cut)) == Status::corrupt_data);

    REQUIRE(threaded.forward(n) == want);
  }
}

}  // namespace kvcondense::test
