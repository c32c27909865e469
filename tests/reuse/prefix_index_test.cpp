#include <catch2/catch.hpp>
#include <kvcondense/reuse/prefix_index.hpp>
#include <map>
#include <random>
#include <set>
#include <support/memory.hpp>
#include <support/oracle.hpp>
#include <vector>

using namespace kvcondense;
using reuse::PrefixIndex;
using Tokens = std::vector<std::int32_t>;
using Blocks = std::vector<index_t>;

namespace {

PrefixIndex made(index_t blocks, index_t block, MemoryResource<Cpu>& memory = heap_memory()) {
  auto p = PrefixIndex::make(blocks, block, memory);
  REQUIRE(p);
  return std::move(*p);
}

}  // namespace

TEST_CASE("prefix index: the worked hashes and hits", "[reuse][prefix_index]") {
  const auto o = test::load_oracle("retrieval_reuse_storage.json", "prefix");
  const index_t block = o.at("block");
  const Tokens a = o.at("A").get<Tokens>(), b = o.at("B").get<Tokens>();
  const auto hashes = [&](const Tokens& t, const nlohmann::json& want) {
    std::uint64_t h = 0;
    for (std::size_t i = 0; i < want.size(); ++i) {
      h = reuse::block_hash(h, std::span(t).subspan(i * static_cast<std::size_t>(block), static_cast<std::size_t>(block)));
      CHECK(h == std::stoull(want[i].get<std::string>(), nullptr, 16));
    }
  };
  hashes(a, o.at("hash_A"));
  hashes(b, o.at("hash_B"));
  PrefixIndex p = made(8, block);
  Blocks held(2);
  index_t reused = -1;
  REQUIRE(p.hold(a, held, reused) == Status::ok);
  CHECK(reused == 0);
  Blocks found(2);
  CHECK(p.find(b, found) == o.at("full_block_hits").get<index_t>());
  CHECK(found[0] == held[0]);
  CHECK(p.find(a, found, 5) == 0);  // another adapter, image or tenant
  CHECK(p.find(a, found) == 2);
}

TEST_CASE("prefix index: random sequences find what is stored, and only that", "[reuse][prefix_index]") {
  std::mt19937 random(3);
  test::CountingMemory memory;
  {
    constexpr index_t blocks = 24, block = 3;
    PrefixIndex p = made(blocks, block, memory);
    std::map<Tokens, index_t> stored;  // every stored prefix of whole blocks, and its last block
    std::vector<Blocks> running;
    std::vector<int> holders(blocks, 0);
    const auto prefix = [&](const Tokens& t, index_t n) { return Tokens(t.begin(), t.begin() + n * block); };
    for (int step = 0; step < 4000; ++step) {
      if (random() % 3 == 0 && !running.empty()) {
        const std::size_t i = random() % running.size();
        REQUIRE(p.release(running[i]) == Status::ok);
        for (const index_t b : running[i]) --holders[static_cast<std::size_t>(b)];
        running.erase(running.begin() + static_cast<std::ptrdiff_t>(i));
        continue;
      }
      Tokens t(random() % 20);
      for (auto& x : t) x = static_cast<std::int32_t>(random() % 2);
      const index_t full = static_cast<index_t>(t.size()) / block;
      index_t want = 0;
      while (want < full && stored.count(prefix(t, want + 1)) != 0) ++want;
      Blocks found(static_cast<std::size_t>(full)), held(found);
      REQUIRE(p.find(t, found) == want);
      for (index_t i = 0; i < want; ++i) REQUIRE(found[static_cast<std::size_t>(i)] == stored.at(prefix(t, i + 1)));
      std::set<index_t> gone;
      index_t reused = 0;
      const auto before = stored;
      const Status s = p.hold(t, held, reused, [&](index_t b) { gone.insert(b); });
      index_t free = blocks - static_cast<index_t>(stored.size());
      for (const auto& [k, b] : stored) {
        bool is_prefix = false;
        for (index_t i = 1; i <= want; ++i) is_prefix = is_prefix || k == prefix(t, i);
        free += holders[static_cast<std::size_t>(b)] == 0 && !is_prefix ? 1 : 0;
      }
      REQUIRE((s == Status::ok) == (full - want <= free));
      if (s != Status::ok) {
        CHECK(gone.empty());
        continue;
      }
      CHECK(reused == want);
      for (const index_t b : gone) {
        CHECK(holders[static_cast<std::size_t>(b)] == 0);
        for (auto it = stored.begin(); it != stored.end();) it = it->second == b ? stored.erase(it) : std::next(it);
      }
      for (index_t i = 0; i < full; ++i) {
        const index_t b = held[static_cast<std::size_t>(i)];
        if (i >= reused) stored[prefix(t, i + 1)] = b;
        ++holders[static_cast<std::size_t>(b)];
      }
      CHECK(p.stored() == static_cast<index_t>(stored.size()));
      // What is stored is reachable: every prefix of a stored one is stored.
      for (const auto& [k, b] : stored)
        if (static_cast<index_t>(k.size()) > block) REQUIRE(stored.count(Tokens(k.begin(), k.end() - block)) == 1);
      running.push_back(held);
    }
  }
  CHECK(memory.live_bytes == 0);
}

TEST_CASE("prefix index: the least recently used leaf leaves first, deeper ones before", "[reuse][prefix_index]") {
  PrefixIndex p = made(4, 2);
  const Tokens a{1, 1, 2, 2}, b{3, 3, 4, 4}, c{5, 5};
  Blocks x(2), y(2), z(1);
  index_t reused = 0;
  REQUIRE(p.hold(a, x, reused) == Status::ok);
  REQUIRE(p.hold(b, y, reused) == Status::ok);
  CHECK(p.hold(c, z, reused) == Status::out_of_memory);  // all are held
  CHECK(p.stored() == 4);
  REQUIRE(p.release(x) == Status::ok);
  REQUIRE(p.release(y) == Status::ok);
  Blocks gone;
  REQUIRE(p.hold(c, z, reused, [&](index_t block) { gone.push_back(block); }) == Status::ok);
  CHECK(gone == Blocks{x[1]});  // the older sequence, its second block
  Blocks found(2);
  CHECK(p.find(a, found) == 1);
  CHECK(p.find(b, found) == 2);
}

TEST_CASE("prefix index: what is not held is not released", "[reuse][prefix_index]") {
  PrefixIndex p = made(4, 2);
  Blocks x(1);
  index_t reused = 0;
  REQUIRE(p.hold(Tokens{1, 2, 3}, x, reused) == Status::ok);
  CHECK(p.holders(x[0]) == 1);
  CHECK(p.release(Blocks{x[0], x[0]}) == Status::invalid_argument);
  CHECK(p.release(Blocks{x[0], 9}) == Status::invalid_argument);
  CHECK(p.release(Blocks{-1}) == Status::invalid_argument);
  CHECK(p.holders(x[0]) == 1);
  REQUIRE(p.release(x) == Status::ok);
  CHECK(p.release(x) == Status::invalid_argument);
  Blocks small;
  CHECK(p.hold(Tokens{1, 2, 3, 4}, small, reused) == Status::invalid_argument);
  REQUIRE(p.hold(Tokens{}, small, reused) == Status::ok);
  CHECK(PrefixIndex::make(0, 4).status() == Status::invalid_argument);
  CHECK(PrefixIndex::make(4, 0).status() == Status::invalid_argument);
  test::CountingMemory none;
  none.refuse_from = 1;
  CHECK(PrefixIndex::make(4, 4, none).status() == Status::out_of_memory);
}
