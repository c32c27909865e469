#include <algorithm>
#include <cstring>
#include <random>
#include <vector>

#include <catch2/catch.hpp>

#include <kvcondense/cpu.hpp>
#include <kvcondense/io/file_memory.hpp>
#include <kvcondense/storage/two_tier.hpp>
#include <support/memory.hpp>
#include <support/naive_cache.hpp>
#include <support/oracle.hpp>

using namespace kvcondense;
using storage::Replacement;
using storage::TwoTier;

namespace {

/// Slow memory that is the heap, counts, and breaks when it is told to.
struct Slow final : SlowMemory {
  index_t fetched = 0, expected = 0, breaks_at = -1;
  bool fetch(const std::byte* from, std::span<std::byte> to) noexcept override {
    if (fetched++ == breaks_at) {
      std::memcpy(to.data(), from, to.size() / 2);
      return false;
    }
    std::memcpy(to.data(), from, to.size());
    return true;
  }
  void expect(const std::byte*, std::size_t) noexcept override { ++expected; }
};

/// A cache on the heap and one with a provider, fed alike.
template <class R>
struct Pair {
  CacheShape shape;
  Cache<Cpu, R> plain, tiered;
  Workspace work;
  Context<Cpu> ctx;
  std::mt19937 random{3};

  Pair(const CacheShape& s, const R& recipe, MemoryResource<Cpu>& memory)
      : shape(s), plain(*make_cache<Cpu>(s, recipe)), tiered(*make_cache<Cpu>(s, recipe, memory)) {
    REQUIRE(work.reserve(plain.workspace_bytes(1024, 256)) == Status::ok);
    ctx = Context<Cpu>(work.bytes());
  }
  /// One pass; both give the same numbers. Returns what the second cache read.
  std::vector<std::vector<SlotRun>> forward(index_t n, PageProvider<Cpu>* pages, Phase phase = Phase::automatic) {
    std::vector<std::vector<SlotRun>> read;
    for (index_t l = 0; l < shape.layers; ++l) {
      const test::Tokens t(shape, n, random, 2.0f);
      std::vector<float> a(static_cast<std::size_t>(shape.q_heads * n * shape.values())), b = a;
      const auto run = [&](Cache<Cpu, R>& c, std::vector<float>& out, PageProvider<Cpu>* p) {
        REQUIRE(c.append(ctx, l, t.keys(shape), t.values(shape)) == Status::ok);
        std::vector<float> mass(static_cast<std::size_t>(c.total_slots(l)));
        std::vector<SlotRun> runs(static_cast<std::size_t>(shape.q_heads * 1025));
        std::vector<index_t> count(static_cast<std::size_t>(shape.q_heads));
        REQUIRE(c.attend(ctx, l, t.queries(shape), dense_view(out.data(), shape.q_heads, n, shape.values()),
                         {.mass = c.ragged(l, mass.data()), .runs = {runs.data(), 1025, count.data()}, .pages = p}) == Status::ok);
        REQUIRE(c.step(ctx, l, StepInputs{.attention = {c.ragged(l, mass.data()), c.mass_rows(n)}, .queries = t.queries(shape)}, phase) == Status::ok);
        if (p != nullptr)
          for (index_t h = 0; h < shape.q_heads; ++h)
            read.emplace_back(runs.begin() + h * 1025, runs.begin() + h * 1025 + count[static_cast<std::size_t>(h)]);
      };
      run(plain, a, nullptr), run(tiered, b, pages);
      REQUIRE(a == b);
    }
    return read;
  }
};

constexpr CacheShape small{.layers = 2, .q_heads = 4, .kv_heads = 2, .head_dim = 32, .page_slots = 16};
constexpr std::size_t page_bytes = 16 * 32 * 2;

}  // namespace

TEST_CASE("two_tier: what stays and what leaves is that of the worked case", "[storage][two_tier]") {
  const auto o = test::load_oracle("retrieval_reuse_storage.json", "infllm");
  Slow slow;
  auto tier = TwoTier::make(slow, o["lru_capacity"].get<index_t>());
  REQUIRE(tier);
  std::vector<std::byte> memory(3 * 64);
  for (std::size_t i = 0; i < memory.size(); ++i) memory[i] = static_cast<std::byte>(i);
  const auto page = [&](index_t i) { return PageUse{memory.data() + 64 * i, 64, static_cast<std::uint32_t>(i + 1)}; };
  std::vector<bool> here(3, false);
  for (const auto& entry : o["lru_log"]) {
    std::vector<index_t> misses, evicted;
    tier->begin();
    for (const auto& r : entry["request"]) {
      const auto i = r.get<index_t>();
      const index_t before = slow.fetched;
      REQUIRE(tier->bring(page(i)) == Status::ok);
      if (slow.fetched > before) misses.push_back(i);
    }
    for (index_t i = 0; i < 3; ++i) {
      const bool now = tier->find(page(i)) != page(i).data;
      if (here[static_cast<std::size_t>(i)] && !now) evicted.push_back(i);
      here[static_cast<std::size_t>(i)] = now;
      REQUIRE(std::equal(page(i).data, page(i).data + 64, tier->find(page(i))));
    }
    REQUIRE(misses == entry["misses"].get<std::vector<index_t>>());
    REQUIRE(evicted == entry["evicted"].get<std::vector<index_t>>());
  }
  // Another stamp is another content, and no stamp is none that stays.
  PageUse other = page(0);
  other.stamp = 77;
  REQUIRE(tier->find(other) == other.data);
  other.stamp = 0;
  tier->restart();
  REQUIRE(tier->bring(other) == Status::ok);
  REQUIRE(tier->counts().in_place_bytes == 64);
  REQUIRE(tier->counts().hits + tier->counts().misses == 0);
}

TEST_CASE("two_tier: the rule and the room change what is fetched", "[storage][two_tier]") {
  std::vector<std::byte> memory(16 * 64);
  const auto fetched = [&](index_t frames, Replacement rule) {
    Slow slow;
    auto tier = TwoTier::make(slow, frames, rule);
    REQUIRE(tier);
    for (const index_t i : {0, 0, 0, 1, 2, 0, 3, 4, 0, 1, 2, 3, 0, 5, 6, 0}) {
      tier->begin();
      REQUIRE(tier->bring({memory.data() + 64 * i, 64, static_cast<std::uint32_t>(i + 1)}) == Status::ok);
    }
    REQUIRE(tier->fast_bytes() <= static_cast<std::size_t>(frames) * 64);
    return slow.fetched;
  };
  REQUIRE(fetched(2, Replacement::lru) > fetched(4, Replacement::lru));
  REQUIRE(fetched(2, Replacement::lru) != fetched(2, Replacement::lfu));
  REQUIRE(fetched(16, Replacement::lru) == 7);
  Slow slow;
  REQUIRE(TwoTier::make(slow, 0).status() == Status::invalid_argument);
  REQUIRE(TwoTier::make(slow, 4, Replacement::mark0).status() == Status::invalid_argument);
  test::CountingMemory refused;
  refused.refuse_from = 1;
  REQUIRE(TwoTier::make(slow, 4, Replacement::lru, refused).status() == Status::out_of_memory);
  REQUIRE(refused.live_bytes == 0);
}

TEST_CASE("two_tier: pages that are looked up in one place of the table all stay to be found", "[storage][two_tier]") {
  // Random pages over a small table against a list: every copy is the page's, and no more than there are frames.
  std::vector<std::byte> memory(400 * 8);
  std::mt19937 random(4);
  for (auto& b : memory) b = static_cast<std::byte>(random());
  Slow slow;
  auto tier = TwoTier::make(slow, 12);
  REQUIRE(tier);
  std::vector<std::uint32_t> newest;  // the last one at the back
  for (int i = 0; i < 4000; ++i) {
    const auto stamp = static_cast<std::uint32_t>(1 + (random() % 3 == 0 ? random() % 400 : random() % 20));
    const auto page = [&](std::uint32_t s) { return PageUse{memory.data() + 8 * (s - 1), 8, s}; };
    tier->begin();
    REQUIRE(tier->bring(page(stamp)) == Status::ok);
    std::erase(newest, stamp);
    newest.push_back(stamp);
    if (newest.size() > 12) newest.erase(newest.begin());
    index_t copies = 0;
    for (std::uint32_t s = 1; s <= 400; ++s) {
      const std::byte* at = tier->find(page(s));
      const bool copy = at != page(s).data;
      copies += copy;
      if (copy != (std::find(newest.begin(), newest.end(), s) != newest.end()) || std::memcmp(at, page(s).data, 8) != 0) FAIL("page " << s);
    }
    REQUIRE(copies == static_cast<index_t>(newest.size()));
  }
}

TEST_CASE("two_tier: attention is that of one tier bit for bit, and what is counted is what the slot lists say", "[storage][two_tier]") {
  io::FileMemory file;
  REQUIRE(file.open(".", 1 << 18, 512) == Status::ok);
  const auto method = recipe(retrieve::Quest{.page = 16, .tokens = 64, .dense_layers = 0, .heads = retrieve::Heads::group_sum});
  Pair pair(small, method, file);
  constexpr index_t frames = 24;
  test::CountingMemory fast;
  {
    auto tier = TwoTier::make(file, frames, Replacement::lru, fast);
    REQUIRE(tier);
    const std::size_t tables = fast.live_bytes;
    pair.forward(256, nullptr);
    std::vector<std::vector<index_t>> used;  // {layer, head, column, page}, the last one at the back
    index_t hits = 0, misses = 0, in_place = 0;
    for (int step = 0; step < 60; ++step) {
      const auto read = pair.forward(1, &*tier);
      const index_t slots = 256 + step + 1;
      for (index_t l = 0; l < 2; ++l)
        for (index_t h = 0; h < 2; ++h) {
          std::vector<index_t> pages;
          for (const SlotRun& run : read[static_cast<std::size_t>(l * 4 + 2 * h)])
            for (index_t s = run.first; s < run.last; ++s)
              if (pages.empty() || pages.back() != s / 16) pages.push_back(s / 16);
          for (index_t column = 0; column < 2; ++column)
            for (const index_t p : pages) {
              const std::vector<index_t> name{l, h, column, p};
              if ((p + 1) * 16 > slots) {
                ++in_place;  // rows still come in
                continue;
              }
              const auto at = std::find(used.begin(), used.end(), name);
              ++(at == used.end() ? misses : hits);
              if (at != used.end()) used.erase(at);
              used.push_back(name);
              if (used.size() > frames) used.erase(used.begin());
            }
        }
      const auto& c = tier->counts();
      REQUIRE(c.hits == hits);
      REQUIRE(c.misses == misses);
      REQUIRE(c.in_place == in_place);
      REQUIRE(c.hit_bytes == static_cast<std::size_t>(hits) * page_bytes);
      REQUIRE(c.miss_bytes == static_cast<std::size_t>(misses) * page_bytes);
      REQUIRE(c.in_place_bytes == static_cast<std::size_t>(in_place) * page_bytes);
      REQUIRE(tier->fast_bytes() <= frames * page_bytes);
      REQUIRE(fast.live_bytes == tables + tier->fast_bytes());
    }
    REQUIRE(hits > 0);
    REQUIRE(fast.peak_bytes <= tables + (frames + 1) * page_bytes);
  }
  REQUIRE(fast.live_bytes == 0);
  REQUIRE(fast.wrong_releases == 0);
}

TEST_CASE("two_tier: codes, kept raw keys and calls longer than the fast memory are read through it", "[storage][two_tier]") {
  const auto run = [](const auto& method) {
    io::FileMemory file;
    REQUIRE(file.open(".", 1 << 18, 512) == Status::ok);
    Pair pair(small, method, file);
    auto tier = TwoTier::make(file, 7);
    REQUIRE(tier);
    for (const index_t n : {200, 1, 1, 5, 1, 40, 1, 1}) pair.forward(n, &*tier);
    const auto& c = tier->counts();
    REQUIRE(c.misses > 0);
    REQUIRE(c.in_place > 0);
    REQUIRE(tier->fast_bytes() <= 7 * page_bytes);
  };
  run(recipe());
  run(recipe(retrieve::Quest{.page = 8, .tokens = 32, .dense_layers = 1}, quant::Kivi<4>{.group_size = 16, .residual_window = 16}));
  run(recipe(retrieve::Kinetics{.block = 8, .blocks = 3, .dense_layers = 0}, quant::GroupInt<8>{.group_size = 16}, position::Reindex{}));
  run(recipe(retrieve::InfLlm{.block = 8, .blocks = 2, .init = 4, .local = 30}, position::Rerotate{}));
}

TEST_CASE("two_tier: what leaves, moves, folds, is taken back or forked is never read from an old copy", "[storage][two_tier]") {
  const auto run = [](const auto& method, std::uint32_t seed) {
    io::FileMemory file;  // uses pieces again at once, the last one first
    REQUIRE(file.open(".", 1 << 18, 512) == Status::ok);
    Pair pair(small, method, file);
    auto tier = TwoTier::make(file, 200);
    REQUIRE(tier);
    std::mt19937 random(seed);
    for (int call = 0; call < 150; ++call) {
      const index_t length = pair.plain.length();
      switch (random() % 8) {
        case 0: pair.forward(1 + static_cast<index_t>(random() % 60), &*tier, Phase::prefill_end); break;
        case 1: {
          const auto back = static_cast<index_t>(random() % 30);
          for (auto* c : {&pair.plain, &pair.tiered}) REQUIRE(c->truncate(std::max<index_t>(0, length - back)) == Status::ok);
          break;
        }
        case 2: {  // a branch that goes on, and is dropped
          auto a = pair.plain.fork(), b = pair.tiered.fork();
          REQUIRE(a);
          REQUIRE(b);
          std::swap(pair.plain, *a), std::swap(pair.tiered, *b);
          for (int i = 0; i < 20; ++i) pair.forward(1, &*tier);
          if (random() % 2 == 0) std::swap(pair.plain, *a), std::swap(pair.tiered, *b);
          break;
        }
        case 3:
          if (length > 20)
            for (auto* c : {&pair.plain, &pair.tiered}) REQUIRE(c->remove(pair.ctx, length / 3, length / 3 + 9) == Status::ok);
          break;
        default: pair.forward(1, &*tier); break;
      }
      if (pair.plain.length() > 600)
        for (auto* c : {&pair.plain, &pair.tiered}) c->reset();
    }
    REQUIRE(tier->counts().hits > 100);
  };
  run(recipe(), 1);
  run(recipe(evict::H2O{.heavy = 60, .recent = 30}), 2);
  run(recipe(evict::H2O{.heavy = 60, .recent = 30}, merge::D2O{}), 3);
  run(recipe(evict::H2O{.heavy = 60, .recent = 40}, quant::Kivi<2>{.group_size = 16, .residual_window = 16}), 4);
  run(recipe(evict::SinkWindow{.recent = 90, .sinks = 4}, retrieve::Quest{.page = 8, .tokens = 32, .dense_layers = 0}), 5);
}

TEST_CASE("two_tier: a short read fails the call, refused memory does not, and neither loses anything", "[storage][two_tier]") {
  Slow slow;
  const auto method = recipe(retrieve::Quest{.page = 16, .tokens = 64, .dense_layers = 0});
  Pair pair(small, method, heap_memory());
  test::CountingMemory fast;
  auto tier = TwoTier::make(slow, 8, Replacement::lru, fast);
  REQUIRE(tier);
  pair.forward(200, nullptr);
  const test::Tokens t(small, 1, pair.random);
  std::vector<float> out(4 * 32, -7.0f), want(4 * 32);
  REQUIRE(pair.tiered.attend(pair.ctx, 0, t.queries(small), dense_view(want.data(), 4, 1, 32)) == Status::ok);
  bool read_whole = false;
  for (index_t at = 0; !read_whole; ++at) {
    slow.fetched = 0, slow.breaks_at = at;
    std::fill(out.begin(), out.end(), -7.0f);
    const Status s = pair.tiered.attend(pair.ctx, 0, t.queries(small), dense_view(out.data(), 4, 1, 32), {.pages = &*tier});
    read_whole = s == Status::ok;
    if (!read_whole) {
      REQUIRE(s == Status::io_error);
      for (const float x : out) REQUIRE(x == -7.0f);
    }
    REQUIRE(at < 100);
    REQUIRE(tier->fast_bytes() <= 8 * page_bytes);
  }
  REQUIRE(out == want);
  slow.breaks_at = -1;
  for (int step = 0; step < 30; ++step) pair.forward(1, &*tier);

  // No memory for copies: pages are read where they lie.
  test::CountingMemory none;
  auto poor = TwoTier::make(slow, 8, Replacement::lru, none);
  REQUIRE(poor);
  none.refuse_from = none.requests + 3;
  for (int step = 0; step < 20; ++step) pair.forward(1, &*poor);
  REQUIRE(poor->counts().misses > 0);
  REQUIRE(poor->counts().in_place > 60);
  REQUIRE(poor->fast_bytes() <= 3 * page_bytes);
  none.refuse_from = -1;
  for (int step = 0; step < 20; ++step) pair.forward(1, &*poor);
  REQUIRE(poor->fast_bytes() == 8 * page_bytes);
}

TEST_CASE("two_tier: pages of earlier runs are asked for ahead, unless they are there", "[storage][two_tier]") {
  auto cache = make_cache<Cpu>(small, recipe(retrieve::Quest{.page = 16, .tokens = 64, .dense_layers = 0, .heads = retrieve::Heads::group_sum}));
  REQUIRE(cache);
  Workspace work;
  REQUIRE(work.reserve(cache->workspace_bytes(300, 200)) == Status::ok);
  Context<Cpu> ctx(work.bytes());
  std::mt19937 random(6);
  const test::Tokens t(small, 200, random), one(small, 1, random);
  REQUIRE(cache->append(ctx, 0, t.keys(small), t.values(small)) == Status::ok);
  REQUIRE(cache->step(ctx, 0) == Status::ok);
  Slow slow;
  auto tier = TwoTier::make(slow, 100);
  REQUIRE(tier);
  std::vector<SlotRun> runs(4 * 300);
  index_t count[4];
  std::vector<float> out(4 * 32);
  const ReadRuns read{runs.data(), 300, count};
  REQUIRE(cache->attend(ctx, 0, one.queries(small), dense_view(out.data(), 4, 1, 32), {.runs = read}) == Status::ok);
  REQUIRE(cache->expect(0, read, *tier) == Status::ok);
  REQUIRE(slow.expected > 0);
  REQUIRE(slow.fetched == 0);
  const index_t asked = slow.expected;
  REQUIRE(cache->attend(ctx, 0, one.queries(small), dense_view(out.data(), 4, 1, 32), {.pages = &*tier}) == Status::ok);
  REQUIRE(slow.fetched == asked);
  REQUIRE(cache->expect(0, read, *tier) == Status::ok);
  REQUIRE(slow.expected == asked);
  REQUIRE(cache->expect(7, read, *tier) == Status::out_of_range);
  runs[0] = {9, 3};
  REQUIRE(cache->expect(0, read, *tier) == Status::invalid_argument);
}
