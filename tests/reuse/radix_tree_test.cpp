#include <catch2/catch.hpp>
#include <kvcondense/reuse/radix_tree.hpp>
#include <map>
#include <random>
#include <set>
#include <support/memory.hpp>
#include <support/oracle.hpp>
#include <vector>

using namespace kvcondense;
using reuse::RadixTree;
using Tokens = std::vector<std::int32_t>;
using Slots = std::vector<index_t>;

namespace {

RadixTree made(index_t page = 1, MemoryResource<Cpu>& memory = heap_memory()) {
  auto t = RadixTree::make(page, memory);
  REQUIRE(t);
  return std::move(*t);
}

}  // namespace

TEST_CASE("radix tree: the worked prefix to the token, and by pages", "[reuse][radix_tree]") {
  const auto o = test::load_oracle("retrieval_reuse_storage.json", "prefix");
  const Tokens a = o.at("A").get<Tokens>(), b = o.at("B").get<Tokens>();
  Slots slots(a.size());
  for (std::size_t i = 0; i < slots.size(); ++i) slots[i] = static_cast<index_t>(50 + i);
  RadixTree t = made();
  REQUIRE(*t.insert(a, slots) == 0);
  Slots got(b.size(), -1);
  const auto m = t.find(b, got);
  REQUIRE(m);
  CHECK(m->tokens == o.at("lcp_tokens").get<index_t>());
  for (std::size_t i = 0; i < 6; ++i) CHECK(got[i] == slots[i]);
  CHECK(got[6] == -1);
  CHECK(t.nodes() == 3);  // root, what is shared, the rest of A
  RadixTree paged = made(o.at("block"));
  REQUIRE(*paged.insert(a, slots) == 0);
  CHECK(paged.tokens() == 8);
  CHECK(paged.find(b)->tokens == 4 * o.at("full_block_hits").get<index_t>());
}

TEST_CASE("radix tree: random sequences, locks and evictions against a plain list", "[reuse][radix_tree]") {
  std::mt19937 random(8);
  for (const index_t page : {1, 3}) {
    test::CountingMemory memory;
    {
      RadixTree t = made(page, memory);
      // The slot of each stored token, known by what the path to the end of its page says.
      std::map<std::pair<Tokens, index_t>, index_t> slot_of;
      const auto key = [page](const Tokens& of, index_t i) {
        return std::pair{Tokens(of.begin(), of.begin() + (i / page + 1) * page), i};
      };
      std::set<index_t> in_use;
      std::vector<std::pair<Tokens, index_t>> running;
      index_t next = 0;
      for (int step = 0; step < 1500; ++step) {
        Tokens q(random() % 14);
        for (auto& x : q) x = static_cast<std::int32_t>(random() % 2);
        const auto whole = static_cast<index_t>(q.size()) / page * page;
        index_t want = 0;
        while (want < whole && slot_of.count(key(q, want)) != 0) want += page;
        Slots got(q.size(), -1);
        const auto m = t.find(q, got);
        REQUIRE(m);
        REQUIRE(m->tokens == want);
        for (index_t i = 0; i < want; ++i)
          REQUIRE(got[static_cast<std::size_t>(i)] == slot_of.at(key(q, i)));
        switch (random() % 4) {
          case 0:
          case 1: {
            Slots fresh(q.size());
            for (auto& s : fresh) s = next++;
            const auto there = t.insert(q, fresh);
            REQUIRE(there);
            REQUIRE(*there == want);
            for (index_t i = want; i < whole; ++i) {
              slot_of[key(q, i)] = fresh[static_cast<std::size_t>(i)];
              in_use.insert(fresh[static_cast<std::size_t>(i)]);
            }
            break;
          }
          case 2:
            if (running.size() < 5 && want > 0) {
              REQUIRE(t.lock(m->node) == Status::ok);
              running.emplace_back(Tokens(q.begin(), q.begin() + want), m->node);
            } else if (!running.empty()) {
              REQUIRE(t.unlock(running.back().second) == Status::ok);
              running.pop_back();
            }
            break;
          case 3: {
            const index_t gone = t.evict(static_cast<index_t>(random() % 10), [&](index_t s) { REQUIRE(in_use.erase(s) == 1); });
            index_t counted = 0;
            for (auto it = slot_of.begin(); it != slot_of.end();)
              if (in_use.count(it->second) == 0) it = slot_of.erase(it), ++counted;
              else ++it;
            CHECK(counted == gone);
            for (const auto& [tokens, node] : running)
              for (index_t i = 0; i < static_cast<index_t>(tokens.size()); ++i) REQUIRE(slot_of.count(key(tokens, i)) == 1);
          }
        }
        REQUIRE(t.tokens() == static_cast<index_t>(slot_of.size()));
      }
      for (const auto& [tokens, node] : running) REQUIRE(t.unlock(node) == Status::ok);
      t.evict(1000000, [&](index_t s) { in_use.erase(s); });
      CHECK(t.tokens() == 0);
      CHECK(t.nodes() == 1);
      CHECK(in_use.empty());
    }
    CHECK(memory.live_bytes == 0);
  }
}

TEST_CASE("radix tree: the least recently used leaf goes first", "[reuse][radix_tree]") {
  RadixTree t = made();
  REQUIRE(t.insert(Tokens{1, 2, 3}, Slots{0, 1, 2}));
  REQUIRE(t.insert(Tokens{1, 2, 4}, Slots{0, 1, 3}));
  REQUIRE(t.find(Tokens{1, 2, 3}));
  Slots gone;
  CHECK(t.evict(1, [&](index_t s) { gone.push_back(s); }) == 1);
  CHECK(gone == Slots{3});
  CHECK(t.find(Tokens{1, 2, 4})->tokens == 2);
}

TEST_CASE("radix tree: what cannot be is refused", "[reuse][radix_tree]") {
  RadixTree t = made();
  CHECK(t.insert(Tokens{1, 2}, Slots{0}).status() == Status::invalid_argument);
  Slots small(1);
  CHECK(t.find(Tokens{1, 2}, small).status() == Status::invalid_argument);
  CHECK(t.lock(7) == Status::invalid_argument);
  CHECK(t.lock(-1) == Status::invalid_argument);
  REQUIRE(*t.insert(Tokens{1, 2}, Slots{0, 1}) == 0);
  const index_t node = t.find(Tokens{1, 2})->node;
  CHECK(t.unlock(node) == Status::invalid_argument);
  REQUIRE(t.lock(node) == Status::ok);
  REQUIRE(t.find(Tokens{1, 9}));  // splits the locked edge
  CHECK(t.evict(10, [](index_t) {}) == 0);
  REQUIRE(t.unlock(node) == Status::ok);
  CHECK(t.evict(10, [](index_t) {}) == 2);
  CHECK(t.find(Tokens{})->tokens == 0);
  CHECK(RadixTree::make(0).status() == Status::invalid_argument);
  test::CountingMemory none;
  RadixTree poor = made(1, none);
  none.refuse_from = none.requests;
  CHECK(poor.insert(Tokens(100, 1), Slots(100, 0)).status() == Status::out_of_memory);
  CHECK(poor.tokens() == 0);
}
