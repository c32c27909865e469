#include <support/cache_model.hpp>

#include <kvcondense/quant/kivi.hpp>

using namespace kvcondense;

namespace {

const CacheShape shape{.layers = 2, .q_heads = 4, .kv_heads = 2, .head_dim = 16, .page_slots = 16};
constexpr auto kivi = recipe(quant::Kivi<2>{.group_size = 8, .residual_window = 16, .sinks = 3});
using C = Cache<Cpu, std::remove_cv_t<decltype(kivi)>>;

std::vector<float> everything(const C& c) {
  std::vector<float> all;
  for (index_t l = 0; l < shape.layers; ++l)
    for (index_t h = 0; h < shape.kv_heads; ++h) {
      const index_t n = c.slots(l, h);
      std::vector<float> rows(static_cast<std::size_t>(2 * n * shape.head_dim + 1));
      REQUIRE(c.read(l, h, 0, dense_view(rows.data(), n, shape.head_dim),
                     dense_view(rows.data() + n * shape.head_dim, n, shape.head_dim)) == Status::ok);
      rows.back() = static_cast<float>(n);
      all.insert(all.end(), rows.begin(), rows.end());
    }
  return all;
}

}  // namespace

TEST_CASE("faults: every refused request while making a cache leaves nothing behind", "[cache][faults]") {
  for (long n = 0;; ++n) {
    test::CountingMemory memory;
    memory.refuse_from = n;
    {
      auto cache = make_cache<Cpu>(shape, kivi, memory);
      if (cache) break;
      REQUIRE(cache.status() == Status::out_of_memory);
    }
    REQUIRE(memory.live_bytes == 0);
    REQUIRE(n < 1000);
  }
}

TEST_CASE("faults: a refused append or step changes nothing and works when memory is back", "[cache][faults]") {
  test::CountingMemory memory;
  auto made = make_cache<Cpu>(shape, kivi, memory);
  REQUIRE(made.has_value());
  C cache = std::move(*made);
  Workspace work;
  REQUIRE(work.reserve(cache.workspace_bytes(512, 64)) == Status::ok);
  Context<Cpu> ctx(work.bytes());
  std::mt19937 random(9);
  long refusals = 0;
  for (int round = 0; round < 6; ++round) {
    const test::Tokens t(shape, round == 0 ? 40 : 9, random);
    auto twin = cache.fork();  // pages are shared now: writing has to copy, and copying can be refused
    REQUIRE(twin.has_value());
    for (index_t l = 0; l < shape.layers; ++l) {
      const auto retry = [&](auto&& call) {
        for (long n = 0;; ++n) {
          const auto before = everything(cache);
          const index_t seen = cache.length(l), pending = cache.pending(l), position = cache.next_position(l);
          memory.refuse_from = memory.requests + n;
          const Status s = call();
          memory.refuse_from = -1;
          if (s == Status::ok) return;
          REQUIRE(s == Status::out_of_memory);
          REQUIRE(everything(cache) == before);
          REQUIRE(cache.length(l) == seen);
          REQUIRE(cache.pending(l) == pending);
          REQUIRE(cache.next_position(l) == position);
          ++refusals;
          REQUIRE(n < 1000);
        }
      };
      retry([&] { return cache.append(ctx, l, t.keys(shape), t.values(shape)); });
      retry([&] { return cache.step(ctx, l); });
    }
    long n = 0;
    for (;; ++n) {
      memory.refuse_from = memory.requests + n;
      auto copy = cache.fork();
      memory.refuse_from = -1;
      if (copy) break;
      ++refusals;
    }
    REQUIRE(cache.remove(ctx, 10 * round, 10 * round + 6) == Status::ok);
  }
  REQUIRE(refusals > 100);
  cache = C{};
  REQUIRE(memory.live_bytes == 0);
  REQUIRE(memory.wrong_releases == 0);
}
