#include <thread>

#include <support/cache_model.hpp>
#include <support/cache_rig.hpp>

#include <kvcondense/evict/h2o.hpp>
#include <kvcondense/evict/sink_window.hpp>
#include <kvcondense/quant/kivi.hpp>

using namespace kvcondense;

namespace {

const CacheShape shape{.layers = 2, .q_heads = 6, .kv_heads = 2, .head_dim = 32, .page_slots = 16};

template <class R>
void prefill(test::CacheRig<R>& r, index_t n, std::uint32_t seed) {
  std::mt19937 random(seed);
  const test::Tokens t(shape, n, random);
  std::vector<float> out(t.q.size());
  for (index_t l = 0; l < shape.layers; ++l)
    REQUIRE(r.cache.forward(r.ctx, l, t.queries(shape), t.keys(shape), t.values(shape),
                            dense_view(out.data(), shape.q_heads, n, shape.head_dim)) == Status::ok);
}

}  // namespace

TEST_CASE("cache: many threads read one cache", "[cache][threads]") {
  const auto r = recipe(evict::H2O{.heavy = 40, .recent = 40}, quant::Kivi<4>{.group_size = 16, .residual_window = 16});
  test::CacheRig rig(shape, r, 200, 150);
  prefill(rig, 150, 1);
  const auto& cache = rig.cache;
  std::mt19937 random(9);
  const test::Tokens t(shape, 1, random);
  constexpr std::size_t readers = 4;
  std::vector<float> out[readers];
  bool good[readers] = {};
  {
    std::vector<std::jthread> threads;
    for (std::size_t i = 0; i < readers; ++i)
      threads.emplace_back([&, i] {
        Workspace work;
        out[i].resize(t.q.size());
        bool ok = work.reserve(cache.workspace_bytes(200, 1)) == Status::ok;
        Context<Cpu> ctx(work.bytes());
        for (int n = 0; ok && n < 50; ++n)
          for (index_t l = 0; l < shape.layers; ++l)
            ok = ok && cache.attend(ctx, l, t.queries(shape), dense_view(out[i].data(), 6, 1, 32)) == Status::ok;
        std::vector<float> rows(static_cast<std::size_t>(cache.slots(0, 0) * 64));
        const index_t slots = cache.slots(0, 0);
        ok = ok && cache.read(0, 0, 0, dense_view(rows.data(), slots, 32), dense_view(rows.data() + slots * 32, slots, 32)) == Status::ok;
        auto copy = cache.fork();
        good[i] = ok && copy && copy->report().slots == cache.report().slots;
      });
  }
  for (std::size_t i = 0; i < readers; ++i) {
    REQUIRE(good[i]);
    REQUIRE(out[i] == out[0]);
  }
}

TEST_CASE("cache: forks that share pages are written by threads of their own", "[cache][threads][fork]") {
  const auto r = recipe(evict::SinkWindow{.recent = 60, .sinks = 4}, quant::Kivi<2>{.group_size = 16, .residual_window = 32});
  test::CacheRig rig(shape, r, 200, 100);
  prefill(rig, 100, 2);
  auto copy = rig.cache.fork();
  REQUIRE(copy.status() == Status::ok);
  bool good[2] = {};
  const auto go_on = [&](auto& cache, bool& ok) {
    Workspace work;
    ok = work.reserve(cache.workspace_bytes(200, 1)) == Status::ok;
    Context<Cpu> ctx(work.bytes());
    std::mt19937 random(4);
    for (int n = 0; n < 200; ++n) {
      const test::Tokens t(shape, 1, random);
      std::vector<float> out(t.q.size());
      for (index_t l = 0; l < shape.layers; ++l)
        ok = ok && cache.forward(ctx, l, t.queries(shape), t.keys(shape), t.values(shape),
                                 dense_view(out.data(), 6, 1, 32)) == Status::ok;
    }
  };
  {
    std::jthread other([&] { go_on(*copy, good[1]); });
    go_on(rig.cache, good[0]);
  }
  REQUIRE((good[0] && good[1]));
  for (index_t h = 0; h < 2; ++h) {
    const index_t n = rig.cache.slots(1, h);
    REQUIRE(copy->slots(1, h) == n);
    std::vector<float> a(static_cast<std::size_t>(n * 64)), b(a.size());
    REQUIRE(rig.cache.read(1, h, 0, dense_view(a.data(), n, 32), dense_view(a.data() + n * 32, n, 32)) == Status::ok);
    REQUIRE(copy->read(1, h, 0, dense_view(b.data(), n, 32), dense_view(b.data() + n * 32, n, 32)) == Status::ok);
    REQUIRE(a == b);
  }
}
