#include <support/cache_model.hpp>
#include <support/cache_rig.hpp>

#include <kvcondense/budget/ada.hpp>
#include <kvcondense/evict/h2o.hpp>
#include <kvcondense/evict/sink_window.hpp>
#include <kvcondense/evict/snapkv.hpp>
#include <kvcondense/quant/group_int.hpp>
#include <kvcondense/quant/kivi.hpp>

using namespace kvcondense;

namespace {

const CacheShape shape{.layers = 2, .q_heads = 6, .kv_heads = 2, .head_dim = 64};

template <class R>
struct Rig : test::CacheRig<R> {
  using test::CacheRig<R>::cache, test::CacheRig<R>::ctx;
  std::mt19937 random{8};
  std::vector<float> out;

  explicit Rig(const R& r) : test::CacheRig<R>(shape, r, 2200, 2048) {}
  std::vector<float> forward(index_t n) {
    std::vector<float> all;
    for (index_t l = 0; l < shape.layers; ++l) {
      const test::Tokens t(shape, n, random);
      out.resize(static_cast<std::size_t>(shape.q_heads * n * shape.head_dim));
      REQUIRE(cache.forward(ctx, l, t.queries(shape), t.keys(shape), t.values(shape),
                            dense_view(out.data(), shape.q_heads, n, shape.head_dim)) == Status::ok);
      all.insert(all.end(), out.begin(), out.end());
    }
    return all;
  }
};
template <class R>
Rig(const R&) -> Rig<R>;

constexpr std::size_t page = 64 * 64 * 2 + 64;  // slots, numbers, fp16, header

}  // namespace

TEST_CASE("memory: half-budget h2o gives half of the bytes back, in the report and in the resource", "[cache][memory]") {
  Rig full(recipe());
  full.forward(2048);
  Rig half(recipe(evict::H2O{.heavy = 512, .recent = 512}));
  half.forward(2048);
  const Report f = full.cache.report(), h = half.cache.report();
  REQUIRE(f.bytes() == full.memory.live_bytes);
  REQUIRE(h.bytes() == half.memory.live_bytes);
  // 2 layers x 2 heads x 2 columns, each may round up to one page.
  REQUIRE(h.exact_bytes <= f.exact_bytes / 2 + 8 * page);
  REQUIRE(h.slots == f.slots / 2);
  REQUIRE(h.budget_asked == 4 * 1024);
  REQUIRE(h.budget_met == 4 * 1024);
  for (int i = 0; i < 200; ++i) half.forward(1);
  REQUIRE(half.cache.report().exact_bytes <= f.exact_bytes / 2 + 16 * page);
  REQUIRE(half.cache.slots(1, 1) == 1024);
}

TEST_CASE("memory: ragged budgets hold ragged bytes", "[cache][memory][ada]") {
  Rig rig(recipe(budget::Ada<evict::SnapKV>{.policy = {.tokens = 256, .window = 16}, .floor = 0.2}));
  rig.forward(1024);
  const index_t a = rig.cache.slots(0, 0), b = rig.cache.slots(0, 1);
  REQUIRE(a + b == 2 * 256);
  REQUIRE(a != b);
  const auto& heads = rig.cache.layers()[0].heads;
  for (index_t h = 0; h < 2; ++h) {
    const index_t pages = heads[h].keys.window().pages().size();
    REQUIRE(pages == (rig.cache.slots(0, h) + 63) / 64);
  }
}

TEST_CASE("memory: a stream in its steady state asks for nothing", "[cache][memory]") {
  const auto steady = [](auto rig, int warm, int steps) {
    for (int i = 0; i < warm; ++i) rig->forward(1);
    const long before = rig->memory.requests;
    const std::size_t peak = rig->memory.live_bytes;
    for (int i = 0; i < steps; ++i) rig->forward(1);
    REQUIRE(rig->memory.requests == before);
    REQUIRE(rig->memory.live_bytes <= peak + 8 * page);
  };
  SECTION("sink_window") { steady(std::make_unique<Rig<decltype(recipe(evict::SinkWindow{.recent = 100, .sinks = 4}))>>(recipe(evict::SinkWindow{.recent = 100, .sinks = 4})), 400, 1500); }
  SECTION("h2o") { steady(std::make_unique<Rig<decltype(recipe(evict::H2O{.heavy = 50, .recent = 50}))>>(recipe(evict::H2O{.heavy = 50, .recent = 50})), 400, 1500); }
}

TEST_CASE("memory: a hundred thousand tokens stay in the bytes of the first thousands", "[cache][memory][stream]") {
  const CacheShape small{.q_heads = 2, .kv_heads = 1, .head_dim = 16};
  test::CacheRig rig(small, recipe(evict::SinkWindow{.recent = 252, .sinks = 4},
                                   quant::Kivi<2>{.group_size = 16, .residual_window = 32}), 512, 64);
  std::mt19937 random(2);
  const test::Tokens t(small, 50, random);
  std::vector<float> out(t.q.size());
  std::size_t peak = 0;
  for (index_t at = 0; at < 100000; at += 50) {
    REQUIRE(rig.cache.forward(rig.ctx, 0, t.queries(small), t.keys(small), t.values(small),
                              dense_view(out.data(), 2, 50, 16), {}, Phase::decode) == Status::ok);
    if (at < 5000) peak = std::max(peak, rig.memory.live_bytes);
    else REQUIRE(rig.memory.live_bytes <= peak);
  }
  REQUIRE(rig.cache.length() == 100000);
  REQUIRE(rig.cache.next_position() == 100000);
  REQUIRE(rig.cache.slots(0, 0) == 256);
  REQUIRE(rig.cache.token(0, 0, 3) == 3);
  REQUIRE(rig.cache.token(0, 0, 255) == 99999);
}

TEST_CASE("memory: tables of a long prompt shrink with it", "[cache][memory]") {
  Rig rig(recipe(evict::H2O{.heavy = 32, .recent = 32}));
  rig.forward(2048);
  // Per head: ids, a lane and two page tables, each at most four times what 64 slots need.
  REQUIRE(rig.cache.report().side_bytes <= 4 * 4 * (64 * 8 + 2 * 2 * 64));
  REQUIRE(rig.cache.report().bytes() == rig.memory.live_bytes);
}

TEST_CASE("memory: coded bytes are the codes, their parameters and what rounds them up to pages", "[cache][memory][quant]") {
  Rig rig(recipe(quant::Kivi<2>{.group_size = 32, .residual_window = 128}));
  rig.forward(2048);
  const Report r = rig.cache.report();
  // Keys: 2048 coded; values: 1920. 2 bits and two fp16 per 32 numbers = 3 bits.
  const std::size_t codes = 2 * 2 * (2048 + 1920) * 64 * 3 / 8;
  REQUIRE(r.coded_bytes >= codes);
  REQUIRE(r.coded_bytes <= codes + codes / 20);  // 64 bytes of header per page of 1536
  REQUIRE(r.bytes() == rig.memory.live_bytes);
  REQUIRE(r.ratio() < 0.26);
}

TEST_CASE("cache: a budget that is never reached changes nothing, bit for bit", "[cache][evict]") {
  Rig full(recipe());
  std::vector<float> want = full.forward(300);
  for (int i = 0; i < 20; ++i) want = full.forward(1);
  const auto same = [&](const auto& r) {
    Rig rig(r);
    std::vector<float> got = rig.forward(300);
    for (int i = 0; i < 20; ++i) got = rig.forward(1);
    REQUIRE(got == want);
    REQUIRE(rig.cache.report().evictions == 0);
  };
  same(recipe(evict::H2O{.heavy = 200, .recent = 200}));
  same(recipe(evict::SinkWindow{.recent = 400, .sinks = 4}));
  same(recipe(evict::SnapKV{.tokens = 1000, .window = 16}));
  same(recipe(budget::Ada<evict::SnapKV>{.policy = {.tokens = 1000, .window = 16}}));
}

TEST_CASE("cache: ten evictions of one token are one eviction of ten, where scores do not move", "[cache][evict]") {
  const auto kept = [](index_t chunk) {
    Rig rig(recipe(evict::SinkWindow{.recent = 40, .sinks = 4}));
    rig.random.seed(1);
    rig.forward(100);
    for (index_t i = 0; i < 10; i += chunk) rig.forward(chunk);
    std::vector<index_t> tokens;
    for (index_t i = 0; i < rig.cache.slots(1, 1); ++i) tokens.push_back(rig.cache.token(1, 1, i));
    return tokens;
  };
  REQUIRE(kept(1) == kept(10));
}

TEST_CASE("cache: forks share pages until one of them writes, and never see each other", "[cache][fork]") {
  Rig rig(recipe(quant::GroupInt<4>{.group_size = 16, .residual_window = 16}));
  rig.forward(512);
  const std::size_t alone = rig.memory.live_bytes;
  auto copy = rig.cache.fork();
  REQUIRE(copy.has_value());
  REQUIRE(rig.memory.live_bytes < alone + alone / 8);
  REQUIRE(copy->report().shared_bytes > alone / 2);
  const auto rows = [](const auto& c) {
    const index_t n = c.slots(0, 0);
    std::vector<float> x(static_cast<std::size_t>(2 * n * 64));
    REQUIRE(c.read(0, 0, 0, dense_view(x.data(), n, 64), dense_view(x.data() + n * 64, n, 64)) == Status::ok);
    return x;
  };
  const auto before = rows(*copy);
  rig.forward(40);
  REQUIRE(rig.cache.remove(rig.ctx, 100, 300) == Status::ok);
  REQUIRE(rows(*copy) == before);
  rig.cache = std::move(*copy);
  REQUIRE(rows(rig.cache) == before);
}

TEST_CASE("cache: reorder gives every beam the copy it asked for, or changes nothing", "[cache][reorder]") {
  using C = Cache<Cpu, decltype(recipe(evict::H2O{}))>;
  std::vector<C> beams;
  test::CountingMemory memory;
  Workspace work;
  std::mt19937 random(2);
  for (index_t b = 0; b < 3; ++b) {
    auto made = make_cache<Cpu>(shape, recipe(evict::H2O{.heavy = 16, .recent = 16}), memory);
    REQUIRE(made.has_value());
    REQUIRE(work.reserve(made->workspace_bytes(128, 64)) == Status::ok);
    Context<Cpu> ctx(work.bytes());
    std::vector<float> out(6 * 64 * 64);
    for (index_t l = 0; l < 2; ++l) {
      const test::Tokens t(shape, 10 + b, random);
      REQUIRE(made->forward(ctx, l, t.queries(shape), t.keys(shape), t.values(shape), dense_view(out.data(), 6, 10 + b, 64)) == Status::ok);
    }
    beams.push_back(std::move(*made));
  }
  const index_t wrong[] = {0, 3, 1}, map[] = {2, 2, 0};
  REQUIRE(reorder<Cpu>(std::span(beams), std::span<const index_t>(wrong)) == Status::out_of_range);
  memory.refuse_from = memory.requests + 5;
  REQUIRE(reorder<Cpu>(std::span(beams), std::span<const index_t>(map)) == Status::out_of_memory);
  memory.refuse_from = -1;
  REQUIRE(beams[1].length() == 11);
  REQUIRE(reorder<Cpu>(std::span(beams), std::span<const index_t>(map)) == Status::ok);
  REQUIRE(beams[0].length() == 12);
  REQUIRE(beams[1].length() == 12);
  REQUIRE(beams[2].length() == 10);
  beams.clear();
  REQUIRE(memory.live_bytes == 0);
}
