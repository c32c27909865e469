#include <algorithm>
#include <cstdint>
#include <numeric>
#include <random>
#include <vector>

#include <catch2/catch.hpp>

#include <kvcondense/cache/kept.hpp>
#include <kvcondense/cache/slot_ids.hpp>

using namespace kvcondense;
using cache::Kept;

namespace {

void check_kept(const Kept& kept, const std::vector<std::int32_t>& list, index_t slots) {
  const auto n = static_cast<index_t>(list.size());
  REQUIRE(kept.size() == n);
  for (index_t i = 0; i < n; ++i) REQUIRE(kept[i] == list[static_cast<std::size_t>(i)]);
  std::vector<char> stays(static_cast<std::size_t>(slots), 0);
  for (const std::int32_t i : list) stays[static_cast<std::size_t>(i)] = 1;
  for (index_t i = 0; i <= slots; ++i) REQUIRE(kept.below(i) == std::count(stays.begin(), stays.begin() + i, 1));
  REQUIRE(kept.first_gap() == std::find(stays.begin(), stays.end(), 0) - stays.begin());

  std::vector<std::int32_t> seen;
  std::int32_t last = -2;
  kept.for_runs([&](index_t to, index_t from, index_t count) {
    REQUIRE(to == static_cast<index_t>(seen.size()));
    REQUIRE(count > 0);
    REQUIRE(from > last + 1);  // else it were one run
    for (index_t i = 0; i < count; ++i) seen.push_back(last = static_cast<std::int32_t>(from + i));
  });
  REQUIRE(seen == list);

  for (const index_t begin : {index_t{0}, slots / 3, slots})
    for (const index_t end : {begin, (begin + slots) / 2, slots}) {
      std::vector<index_t> gone, expected;
      kept.for_gaps(begin, end, [&](index_t first, index_t after) {
        REQUIRE(first < after);
        REQUIRE((gone.empty() || gone.back() + 1 < first));  // else it were one run
        for (index_t i = first; i < after; ++i) gone.push_back(i);
      });
      for (index_t i = begin; i < end; ++i)
        if (!stays[static_cast<std::size_t>(i)]) expected.push_back(i);
      REQUIRE(gone == expected);
    }

  std::vector<std::int64_t> numbers(static_cast<std::size_t>(slots));
  std::iota(numbers.begin(), numbers.end(), std::int64_t{1000});
  cache::gather_down(numbers.data(), kept);
  for (std::size_t i = 0; i < list.size(); ++i) REQUIRE(numbers[i] == 1000 + list[i]);
}

}  // namespace

TEST_CASE("kept: a list falls into its longest runs and gaps", "[cache][kept]") {
  std::mt19937 random(3);
  for (const unsigned one_in : {1u, 2u, 3u, 10u, 100u}) {
    for (int round = 0; round < 50; ++round) {
      std::vector<std::int32_t> list;
      const auto n = static_cast<std::int32_t>(random() % 300);
      for (std::int32_t i = 0; i < n; ++i)
        if (one_in == 1 || random() % one_in != 0) list.push_back(i);
      check_kept(Kept::listed(list.data(), static_cast<index_t>(list.size())), list, n);
    }
  }
}

TEST_CASE("kept: all but one run says the same as its list", "[cache][kept]") {
  for (const index_t slots : {0, 1, 2, 7, 40})
    for (index_t first = 0; first <= slots; ++first)
      for (index_t last = first; last <= slots; ++last) {
        std::vector<std::int32_t> list;
        for (index_t i = 0; i < slots; ++i)
          if (i < first || i >= last) list.push_back(static_cast<std::int32_t>(i));
        if (first == last) continue;  // see below
        check_kept(Kept::without(first, last, slots), list, slots);
        check_kept(Kept::ends({first, slots - last}, slots), list, slots);
      }
  for (const index_t slots : {0, 1, 9}) {  // nothing leaves
    std::vector<std::int32_t> list(static_cast<std::size_t>(slots));
    std::iota(list.begin(), list.end(), 0);
    check_kept(Kept::without(slots, slots, slots), list, slots);
  }
}

TEST_CASE("slot ids: the same as a plain list, whatever leaves", "[cache][slot_ids]") {
  std::mt19937 random(5);
  for (int round = 0; round < 60; ++round) {
    cache::SlotIds ids(heap_memory()), copy(heap_memory());
    std::vector<index_t> want;
    index_t next = static_cast<index_t>(random() % 3);
    bool forked = false;
    for (int call = 0; call < 400; ++call) {
      const auto slots = static_cast<index_t>(want.size());
      const auto what = static_cast<unsigned>(random() % 16);
      if (what < 6 || slots == 0) {
        next += random() % 8 == 0 ? 2 : 0;
        const auto n = static_cast<index_t>(1 + random() % 3);
        REQUIRE((ids.gap_before(next) ? ids.list_with_room(n) : ids.reserve(n)) == Status::ok);
        ids.append(next, n);
        for (index_t i = 0; i < n; ++i) want.push_back(next++);
      } else if (what < 13) {  // one leaves, as in a full cache
        const auto gone = static_cast<index_t>(random() % want.size());
        REQUIRE(ids.reserve_list() == Status::ok);
        ids.keep(Kept::without(gone, gone + 1, slots));
        want.erase(want.begin() + gone);
      } else if (what == 13) {  // many
        std::vector<std::int32_t> list;
        const auto one_in = static_cast<unsigned>(2 + random() % 20);
        for (index_t i = 0; i < slots; ++i)
          if (random() % one_in != 0) list.push_back(static_cast<std::int32_t>(i));
        REQUIRE(ids.reserve_list() == Status::ok);
        ids.keep(Kept::listed(list.data(), static_cast<index_t>(list.size())));
        for (std::size_t i = 0; i < list.size(); ++i) want[i] = want[static_cast<std::size_t>(list[i])];
        want.resize(list.size());
      } else if (what == 14) {
        const auto n = static_cast<index_t>(random() % std::min<std::size_t>(want.size() + 1, 4));
        ids.pop_back(n);
        want.resize(want.size() - static_cast<std::size_t>(n));
        if (random() % 2 == 0 && !want.empty()) next = want.back() + 1;  // ordinals that were taken back come again
      } else if (!forked) {
        REQUIRE(ids.fork(copy) == Status::ok);
        std::swap(ids, copy), forked = true;
      }
      REQUIRE(ids.size() == static_cast<index_t>(want.size()));
      for (std::size_t i = 0; i < want.size(); ++i) REQUIRE(ids[static_cast<index_t>(i)] == want[i]);
      const auto from = static_cast<index_t>(random() % (want.size() + 1)), count = static_cast<index_t>(random() % (want.size() + 1 - static_cast<std::size_t>(from)));
      for (const auto& [first, n] : {std::pair<index_t, index_t>{0, ids.size()}, {from, count}}) {
        std::vector<std::int32_t> part(static_cast<std::size_t>(n) + 1, -1);
        ids.copy_to(first, n, part.data());
        REQUIRE(part.back() == -1);
        REQUIRE(std::equal(part.begin(), part.end() - 1, want.begin() + first));
      }
      for (const index_t t : {index_t{0}, next / 3, next / 2, next - 1, next})
        REQUIRE(ids.below(t) == std::lower_bound(want.begin(), want.end(), t) - want.begin());
    }
    ids.clear();
    REQUIRE(ids.size() == 0);
    ids.append(7, 2);
    REQUIRE(ids[1] == 8);
  }
}
