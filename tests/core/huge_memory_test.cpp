#include <algorithm>
#include <cstdint>
#include <cstring>
#include <thread>
#include <vector>

#include <catch2/catch.hpp>

#include <kvcondense/core/huge_memory.hpp>
#include <support/memory.hpp>

using namespace kvcondense;

namespace {

constexpr std::size_t slab = HugeMemory::slab_bytes;

bool aligned(const void* p, std::size_t to) { return reinterpret_cast<std::uintptr_t>(p) % to == 0; }

struct Given {
  void* p;
  std::size_t bytes;
};

/// Whether every piece still holds what `mark` wrote, so that no two overlap.
void mark(const Given& g, int value) { std::memset(g.p, value, g.bytes); }
bool marked(const Given& g, int value) {
  const auto* x = static_cast<const unsigned char*>(g.p);
  return std::all_of(x, x + g.bytes, [&](unsigned char c) { return c == static_cast<unsigned char>(value); });
}

}  // namespace

TEST_CASE("huge memory: pieces of one size share slabs, are aligned, apart and used again", "[core][huge_memory]") {
  test::CountingMemory heap;
  {
    HugeMemory memory(heap);
    std::vector<Given> given;
    constexpr std::size_t bytes = 16448 - 20;  // no multiple of 64
    const std::size_t fit = (slab - 64) / 16448;
    for (std::size_t i = 0; i < 2 * fit + 1; ++i) {
      given.push_back({memory.allocate(bytes, 64), bytes});
      REQUIRE(given.back().p != nullptr);
      REQUIRE(aligned(given.back().p, 64));
      mark(given.back(), static_cast<int>(i));
    }
    REQUIRE(memory.used_bytes() == given.size() * bytes);
    REQUIRE(memory.held_bytes() == heap.live_bytes);
    REQUIRE(memory.held_bytes() >= 3 * slab);
    REQUIRE(memory.held_bytes() < 3 * slab + 4096);
    REQUIRE(std::all_of(heap.known.begin(), heap.known.end(), [](const auto& k) { return k.second.first != slab || k.second.second == slab; }));
    REQUIRE((memory.huge_bytes() == 0 || memory.huge_bytes() == 3 * slab));
    for (std::size_t i = 0; i < given.size(); ++i) REQUIRE(marked(given[i], static_cast<int>(i)));
    // A piece out of a full slab and one out of the last one come again before anything else is asked for.
    const long asked = heap.requests;
    const Given a = given[3], b = given[2 * fit];
    memory.release(a.p, bytes, 64), memory.release(b.p, bytes, 64);
    given[3].p = memory.allocate(bytes, 64), given[2 * fit].p = memory.allocate(bytes, 64);
    REQUIRE(std::min(given[3].p, given[2 * fit].p) == std::min(a.p, b.p));
    REQUIRE(std::max(given[3].p, given[2 * fit].p) == std::max(a.p, b.p));
    REQUIRE(heap.requests == asked);
    for (const Given& g : given) memory.release(g.p, bytes, 64);
    REQUIRE(memory.used_bytes() == 0);
    REQUIRE(memory.held_bytes() < slab + 4096);  // one waits
    REQUIRE(memory.held_bytes() == heap.live_bytes);
    // The one that waits serves any size.
    void* other = memory.allocate(1000, 64);
    REQUIRE(heap.requests == asked);
    memory.release(other, 1000, 64);
  }
  REQUIRE(heap.live_bytes == 0);
  REQUIRE(heap.wrong_releases == 0);
}

TEST_CASE("huge memory: tables come as they are, long requests are aligned like slabs", "[core][huge_memory]") {
  test::CountingMemory heap;
  {
    HugeMemory memory(heap);
    const auto passes = [&](std::size_t bytes, std::size_t align, std::size_t want_align) {
      void* p = memory.allocate(bytes, align);
      CAPTURE(bytes, align);
      REQUIRE(heap.known.count(p) == 1);
      REQUIRE(heap.known[p] == std::pair(bytes, want_align));
      REQUIRE(memory.used_bytes() == bytes);
      REQUIRE(memory.held_bytes() == heap.live_bytes);
      std::memset(p, 1, bytes);
      memory.release(p, bytes, align);
      REQUIRE(memory.used_bytes() == 0);
    };
    passes(64, 64, 64);
    passes(8192, 8, 8);
    passes(HugeMemory::most_bytes + 1, 64, 64);
    passes(slab, 64, slab);
    passes(slab + 100, 8, slab);
    passes(4096, 128, 128);
    passes(slab, 2 * slab, 2 * slab);
  }
  REQUIRE(heap.live_bytes == 0);
  REQUIRE(heap.wrong_releases == 0);
}

TEST_CASE("huge memory: what is refused changes nothing", "[core][huge_memory]") {
  test::CountingMemory heap;
  {
    HugeMemory memory(heap);
    heap.refuse_from = 0;
    REQUIRE(memory.allocate(4096, 64) == nullptr);
    REQUIRE(memory.held_bytes() == 0);
    heap.refuse_from = 1;  // room for the table of sizes, none for a slab
    REQUIRE(memory.allocate(4096, 64) == nullptr);
    REQUIRE(memory.used_bytes() == 0);
    REQUIRE(memory.allocate(slab, 64) == nullptr);
    REQUIRE(memory.allocate(100, 8) == nullptr);
    REQUIRE(memory.held_bytes() == heap.live_bytes);
    heap.refuse_from = -1;
    void* p = memory.allocate(4096, 64);
    REQUIRE(p != nullptr);
    heap.refuse_from = 0;
    void* q = memory.allocate(4096, 64);  // the slab has more
    REQUIRE(q != nullptr);
    REQUIRE(memory.allocate(4100, 64) == nullptr);
    memory.release(p, 4096, 64), memory.release(q, 4096, 64);
  }
  REQUIRE(heap.live_bytes == 0);
  REQUIRE(heap.wrong_releases == 0);
}

TEST_CASE("huge memory: threads that ask and give back at once never get the same piece", "[core][huge_memory]") {
  test::CountingMemory heap;
  {
    HugeMemory memory(heap);
    bool good[4] = {};
    std::vector<std::thread> team;
    for (int t = 0; t < 4; ++t)
      team.emplace_back([&, t] {
        std::vector<Given> mine;
        bool kept = true;
        for (std::size_t i = 0; i < 600; ++i) {
          const std::size_t bytes = 512 + 40 * (i % 3) * 1000;
          mine.push_back({memory.allocate(bytes, 64), bytes});
          mark(mine.back(), t);
          if (i % 3 != 0) continue;
          const std::size_t gone = i * 7 % mine.size();
          kept = kept && marked(mine[gone], t);
          memory.release(mine[gone].p, mine[gone].bytes, 64);
          mine[gone] = mine.back(), mine.pop_back();
        }
        for (const Given& g : mine) kept = kept && marked(g, t), memory.release(g.p, g.bytes, 64);
        good[t] = kept;
      });
    for (std::thread& t : team) t.join();
    REQUIRE((good[0] && good[1] && good[2] && good[3]));
    REQUIRE(memory.used_bytes() == 0);
  }
  REQUIRE(heap.live_bytes == 0);
  REQUIRE(heap.wrong_releases == 0);
}
