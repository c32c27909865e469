#include <algorithm>
#include <cmath>
#include <cstdint>
#include <random>
#include <vector>

#include <catch2/catch.hpp>

#include <kvcondense/backend/cpu/exact_rows.hpp>
#include <kvcondense/backend/cpu/group_quant.hpp>
#include <kvcondense/cache/cursor.hpp>
#include <kvcondense/cache/segment.hpp>
#include <kvcondense/cache/slot_ids.hpp>
#include <support/memory.hpp>

using namespace kvcondense;

namespace {

using Segment = cache::Segment<prim::ExactRows>;
constexpr index_t dim = 8, page = 16;

Segment make(test::CountingMemory& memory) { return Segment({DType::f32}, 7, dim, page, memory); }

void append(Segment& s, index_t first, index_t n) {
  std::vector<float> rows;
  for (index_t i = 0; i < n * dim; ++i) rows.push_back(static_cast<float>(first + i / dim));
  REQUIRE(s.reserve(n) == Status::ok);
  s.append({rows.data(), n, dim});
}

void leave(Segment& s, index_t first, index_t last) { s.keep(cache::Kept::without(first, last, s.live()), 0); }

/// The number in every row, page by page.
std::vector<int> content(const Segment& s) {
  std::vector<int> list;
  for (const auto& ref : s.pages())
    for (index_t i = 0; i < ref.used; ++i) {
      if (!ref.alive(i)) continue;
      float row[dim];
      prim::PageCodec<Cpu, prim::ExactRows>::decode(s.codec(), s.span(ref), i, 1, {row, 1, dim});
      list.push_back(static_cast<int>(row[0]));
    }
  return list;
}

}  // namespace

TEST_CASE("segment: forks that fill different rooms never write where the other reads", "[cache][segment]") {
  test::CountingMemory memory;
  {
    Segment a = make(memory);
    append(a, 0, 3 * page);
    leave(a, 0, 10), leave(a, 6, 13);  // 15 rows are left of two pages, and one page can hold them
    std::vector<float> scratch(static_cast<std::size_t>(2 * page * dim));
    a.compact(scratch.data(), [](const auto&, index_t, float*) {});
    append(a, 100, 1);
    REQUIRE(a.pages().size() == 3);
    REQUIRE(a.pages()[0].used == 15);
    Segment b = make(memory);
    REQUIRE(a.fork(b) == Status::ok);
    // Each reserves behind its last page, loses that and the one before, and would go on in the first page, which is both's.
    for (auto [s, token] : {std::pair(&a, 200), std::pair(&b, 300)}) {
      REQUIRE(s->reserve(1) == Status::ok);
      leave(*s, 15, s->live());
      std::vector<float> row(dim, static_cast<float>(token));
      s->append({row.data(), 1, dim});
    }
    REQUIRE(content(a).back() == 200);
    REQUIRE(content(b).back() == 300);
    REQUIRE(content(a).size() == 16);
    const std::vector<int> mine = content(a), other = content(b);
    REQUIRE(std::equal(other.begin(), other.end() - 1, mine.begin()));
  }
  REQUIRE(memory.live_bytes == 0);
}


namespace {

/// A segment and the list of what it holds, under the same calls. Slots of one group share parameters.
template <class Codec>
struct Twin {
  test::CountingMemory memory;
  cache::Segment<Codec> segment;
  std::vector<int> list;
  std::mt19937 random;
  double error;
  index_t page;

  Twin(const Codec& codec, std::uint32_t seed, double most, index_t slots)
      : segment(codec, 7, dim, slots, memory), random(seed), error(most), page(slots) {}
  index_t draw(index_t lo, index_t hi) { return std::uniform_int_distribution<index_t>(lo, hi)(random); }
  index_t group() const { return segment.codec().group_slots(); }

  std::vector<float> rows(const std::vector<int>& numbers) const {
    std::vector<float> all;
    for (const int x : numbers)
      for (index_t d = 0; d < dim; ++d) all.push_back(static_cast<float>(x + static_cast<int>(d)));
    return all;
  }
  void append(index_t n) {
    n *= group();
    std::vector<int> more;
    for (index_t i = 0; i < n; ++i) more.push_back(static_cast<int>(draw(0, 100)));
    if (draw(0, 3) == 0) {  // refused: nothing is kept
      memory.refuse_from = memory.requests;
      const Status s = segment.reserve(n);
      memory.refuse_from = -1;
      if (s != Status::ok) REQUIRE(s == Status::out_of_memory);
      else segment.trim();
      check_content(segment, list);
    }
    REQUIRE(segment.reserve(n) == Status::ok);
    const auto numbers = rows(more);
    const long asked = memory.requests;
    REQUIRE(segment.append({numbers.data(), n, dim}) == 0);
    REQUIRE(memory.requests == asked);
    list.insert(list.end(), more.begin(), more.end());
    segment.trim();
  }
  void keep() {
    std::vector<std::int32_t> stays;
    std::vector<int> left;
    const index_t base = draw(0, 20), one_in = draw(1, 6), from = draw(0, segment.live());
    for (index_t i = 0; i < base; ++i) stays.push_back(static_cast<std::int32_t>(i));  // slots of another part of the head
    for (index_t i = 0; i < segment.live(); ++i)
      if (i < from || draw(0, one_in) == 0) stays.push_back(static_cast<std::int32_t>(base + i)), left.push_back(list[static_cast<std::size_t>(i)]);
    segment.keep(cache::Kept::listed(stays.data(), static_cast<index_t>(stays.size())), base);
    segment.trim();
    list = left;
  }
  void compact() {
    std::vector<float> scratch(static_cast<std::size_t>(2 * page * dim));
    const index_t again = segment.compact(scratch.data(), [](const auto&, index_t, float*) {});
    if (group() == 1) {
      REQUIRE(again == 0);
      REQUIRE(segment.dead() < page);
      return;
    }
    for (index_t p = 1; p < segment.pages().size(); ++p) {  // neighbours that fit one page are joined where one is half dead
      const auto &a = segment.pages()[p - 1], &b = segment.pages()[p];
      const bool half = 2 * a.live <= a.used || 2 * b.live <= b.used;
      REQUIRE_FALSE((half && a.live + b.live <= page));
    }
  }
  void write() {
    const index_t slot = draw(0, segment.live() - 1);
    const int number = static_cast<int>(draw(0, 100));
    REQUIRE(segment.reserve_write(slot) == Status::ok);
    segment.write(slot, rows({number}).data());
    list[static_cast<std::size_t>(slot)] = number;
  }

  void check_content(const cache::Segment<Codec>& s, const std::vector<int>& want) {
    REQUIRE(s.live() == static_cast<index_t>(want.size()));
    index_t at = 0, dead = 0, before = 0;
    bool packed = true;
    for (const auto& ref : s.pages()) {
      REQUIRE((ref.live > 0 && ref.live <= ref.used && ref.used <= page));
      packed = packed && ref.live == ref.used && before % page == 0;
      const bool last = &ref == &s.pages().back();
      dead += (last ? ref.used : page) - ref.live, before += ref.used;
      REQUIRE(ref.live_from(0) == ref.live);
      REQUIRE(ref.full_of_life() == (ref.live == ref.used));
      for (index_t i = 0; i < ref.used; ++i) {
        if (!ref.alive(i)) continue;
        float row[dim];
        prim::PageCodec<Cpu, Codec>::decode(s.codec(), s.span(ref), i, 1, {row, 1, dim});
        for (index_t d = 0; d < dim; ++d)
          REQUIRE(std::abs(row[d] - static_cast<float>(want[static_cast<std::size_t>(at)] + static_cast<int>(d))) <= error);
        ++at;
      }
    }
    REQUIRE(at == s.live());
    REQUIRE(s.dead() == dead);
    REQUIRE(s.packed() == packed);
  }
  void check() {
    check_content(segment, list);
    REQUIRE(segment.page_bytes() + segment.table_bytes() == memory.live_bytes);
    REQUIRE(segment.shared_bytes() == 0);
  }

  /// As a loader makes it from a file.
  void check_loaded() {
    cache::Segment<Codec> loaded(segment.codec(), 7, dim, page, memory);
    for (const auto& ref : segment.pages()) {
      REQUIRE(loaded.add_page(ref.used, ref.dead, ref.page->payload_bytes) == Status::ok);
      REQUIRE(std::count(loaded.pages().back().page->payload(), loaded.pages().back().page->payload() + ref.page->payload_bytes, std::byte{0}) ==
              static_cast<std::ptrdiff_t>(ref.page->payload_bytes));
      std::copy_n(ref.page->payload(), ref.page->payload_bytes, loaded.pages().back().page->payload());
    }
    check_content(loaded, list);
    REQUIRE(loaded.page_bytes() + loaded.table_bytes() + segment.page_bytes() + segment.table_bytes() == memory.live_bytes);
  }

  void run(int calls) {
    for (int i = 0; i < calls; ++i) {
      switch (segment.live() == 0 ? 0 : draw(0, 7)) {
        case 0: append(draw(1, 5 * page / (2 * group()))); break;
        case 1: append(1); break;
        case 2: keep(); break;
        case 3: compact(); break;
        case 4: {
          const index_t n = draw(0, segment.live());
          segment.pop_back(n), segment.trim();
          list.resize(list.size() - static_cast<std::size_t>(n));
          break;
        }
        case 5: {
          const index_t n = draw(0, segment.live());
          segment.pop_front(n), segment.trim();
          list.erase(list.begin(), list.begin() + n);
          break;
        }
        case 6:
          if (group() == 1) write();
          break;
        default: {  // what happens to one of two forks does not show in the other
          cache::Segment<Codec> other(segment.codec(), 7, dim, page, memory);
          REQUIRE(segment.fork(other) == Status::ok);
          const std::vector<int> then = list;
          REQUIRE((segment.shared_bytes() > 0 && other.shared_bytes() == segment.shared_bytes()));
          for (int j = 0; j < 3; ++j) {
            append(1);
            keep();
            append(draw(1, 3));
            compact();
            if (group() == 1) write();
          }
          check_content(other, then);
          std::swap(segment, other);
          list = then;
        }
      }
      check();
      if (i % 4 == 0) check_loaded();
    }
    segment.clear();
    REQUIRE(segment.live() == 0);
    REQUIRE(memory.live_bytes == segment.table_bytes());
    REQUIRE(memory.wrong_releases == 0);
  }
};

}  // namespace

TEST_CASE("segment: under any calls it holds what a list holds", "[cache][segment]") {
  for (std::uint32_t seed = 1; seed <= 20; ++seed) {
    CAPTURE(seed);
    for (const index_t slots : {page, index_t{144}}) {  // in one word of tombstones, and in three
      Twin<prim::ExactRows>({DType::f32}, seed, 0.0, slots).run(60);
      Twin<prim::GroupInt<8>>({.axis = prim::GroupAxis::channel, .group_size = 4}, seed, 2.0, slots).run(60);
    }
  }
}

TEST_CASE("segment: rows that another layer holds too become its own when they are written again", "[cache][segment]") {
  test::CountingMemory memory;
  {
    Segment a = make(memory), b = make(memory);
    append(a, 0, page);
    append(b, 0, page);
    std::vector<float> rows;
    for (index_t i = 0; i < page * dim; ++i) rows.push_back(static_cast<float>(40 + i / dim));
    index_t repaired = 0;
    cache::Page* under = a.make_rows({rows.data(), page, dim}, repaired);
    REQUIRE((under != nullptr && repaired == 0));
    for (Segment* s : {&a, &b}) {  // each has 4 bytes of its own
      cache::Page* own = s->make_page(4);
      own->under = s == &a ? under : cache::retain(under);
      REQUIRE(s->reserve_entry() == Status::ok);
      s->add_shared(own);
      REQUIRE((s->shares(s->pages().back()) && !s->shares(s->pages()[0])));
    }
    const auto all = content(a);
    REQUIRE((all.size() == 2 * page && all[2 * page - 1] == 40 + page - 1));
    REQUIRE(a.dead() == 0);
    leave(a, page + 2, 2 * page), leave(a, 3, page);  // three of its own, two of both
    REQUIRE(a.dead() == page - 3);                     // rows of both are no waste of one
    std::vector<float> scratch(static_cast<std::size_t>(2 * page * dim));
    const auto to_stored = [&](const cache::PageRef& ref, index_t slot, float* row) {
      prim::PageCodec<Cpu, prim::ExactRows>::decode(a.codec(), a.span(ref), slot, 1, {row, 1, dim});
    };
    REQUIRE(a.compact(scratch.data(), to_stored) == 5);
    REQUIRE(content(a) == std::vector<int>{0, 1, 2, 40, 41});
    REQUIRE((a.pages().size() == 1 && !a.shares(a.pages()[0])));
    REQUIRE(content(b) == all);
    leave(b, 1, page), leave(b, 2, page + 1);  // the other way round: the page of both is the first one
    append(b, 70, 2);
    leave(b, 0, 1);
    REQUIRE(content(b) == std::vector<int>{40, 70, 71});
    REQUIRE(b.compact(scratch.data(), to_stored) == 3);
    REQUIRE(content(b) == std::vector<int>{40, 70, 71});
    REQUIRE(b.pages().size() == 1);
    append(b, 80, 2 * page);
    leave(b, 20, 21);
    REQUIRE(b.compact(scratch.data(), to_stored) == 0);  // nothing of both is left: rows only move
    const auto rest = content(b);
    leave(b, 4, 2 * page);  // four of the first page, and fewer than a page behind it
    REQUIRE(b.compact(scratch.data(), to_stored) == 0);
    REQUIRE(b.pages().size() == 2);
    REQUIRE(content(b).size() == rest.size() - (2 * page - 4));
  }
  REQUIRE(memory.live_bytes == 0);
}

TEST_CASE("segment: pages of another form never enter it, and the last empty one is kept at hand", "[cache][segment]") {
  test::CountingMemory memory;
  Segment a = make(memory), other({DType::f32}, 8, dim, page, memory);
  append(a, 0, 2 * page);
  REQUIRE(a.fork(other) == Status::incompatible);
  REQUIRE(a.format() != other.format());
  const std::size_t two = memory.live_bytes;
  a.pop_front(page);
  REQUIRE(memory.live_bytes == two);  // a steady state asks for nothing
  const long asked = memory.requests;
  append(a, 50, page);
  REQUIRE(memory.requests == asked);
  append(a, 80, 3 * page);
  const std::size_t five = memory.live_bytes;
  a.pop_front(4 * page);  // a big eviction gives all back
  REQUIRE(five - memory.live_bytes == 4 * a.pages()[0].page->bytes());
  REQUIRE(content(a).front() == 80 + 2 * page);
  append(a, 130, 2 * page);
  a.pop_front(page);
  const std::size_t with_one_at_hand = memory.live_bytes;
  a.pop_front(2 * page);  // so do two pages, with the one that was at hand
  REQUIRE(with_one_at_hand - memory.live_bytes == 3 * sizeof(cache::Page) + 3 * a.page_payload());
}

TEST_CASE("slot ids: under any calls they are those of a list", "[cache][slot_ids]") {
  test::CountingMemory memory;
  std::mt19937 random(5);
  const auto draw = [&](index_t lo, index_t hi) { return std::uniform_int_distribution<index_t>(lo, hi)(random); };
  for (int round = 0; round < 40; ++round) {
    cache::SlotIds ids(memory);
    std::vector<index_t> list;
    index_t next = draw(0, 3);
    bool listed = false;
    for (int i = 0; i < 30; ++i) {
      switch (draw(0, 4)) {
        case 0: case 1: {
          const index_t n = draw(1, 20);
          next += draw(0, 5) == 0 ? draw(1, 4) : 0;
          const bool gap = !listed && !list.empty() && list.back() + 1 != next;
          REQUIRE(ids.gap_before(next) == gap);
          listed = listed || gap;
          REQUIRE((gap ? ids.list_with_room(n) : ids.reserve(n)) == Status::ok);
          const long asked = memory.requests;
          ids.append(next, n);
          REQUIRE(memory.requests == asked);
          for (index_t j = 0; j < n; ++j) list.push_back(next++);
          break;
        }
        case 2: {
          const index_t n = draw(0, static_cast<index_t>(list.size()));
          ids.pop_back(n);
          list.resize(list.size() - static_cast<std::size_t>(n));
          next -= n;
          next = list.empty() ? next : list.back() + 1;
          break;
        }
        case 3: {
          std::vector<std::int32_t> stays;
          std::vector<index_t> left;
          const index_t from = draw(0, static_cast<index_t>(list.size())), one_in = draw(0, 3), ends = draw(0, 1);
          for (index_t j = 0; j < static_cast<index_t>(list.size()); ++j)
            if (ends == 1 ? j >= from : j < from || draw(0, one_in) == 0)
              stays.push_back(static_cast<std::int32_t>(j)), left.push_back(list[static_cast<std::size_t>(j)]);
          const bool run = left.empty() || left.back() - left.front() + 1 == static_cast<index_t>(left.size());
          listed = listed || !run;
          REQUIRE(ids.reserve_list() == Status::ok);
          ids.keep(cache::Kept::listed(stays.data(), static_cast<index_t>(stays.size())));
          list = left;
          break;
        }
        default: {
          cache::SlotIds other(memory);
          REQUIRE(ids.fork(other) == Status::ok);
          std::swap(ids, other);
          ids.give_back();
        }
      }
      REQUIRE(ids.listed() == listed);
      REQUIRE(ids.size() == static_cast<index_t>(list.size()));
      for (std::size_t j = 0; j < list.size(); ++j) REQUIRE(ids[static_cast<index_t>(j)] == list[j]);
      for (index_t t = 0; t <= next + 1; ++t)
        REQUIRE(ids.below(t) == std::lower_bound(list.begin(), list.end(), t) - list.begin());
    }
    ids.clear();
    REQUIRE((ids.size() == 0 && !ids.listed()));
  }
  REQUIRE(memory.live_bytes == 0);
}

TEST_CASE("page: what is dead is found word by word as it is slot by slot", "[cache][segment]") {
  std::mt19937 random(3);
  for (const index_t used : {1, 8, 63, 64, 65, 128, 200, 255, 256})
    for (const unsigned one_in : {1u, 2u, 9u, 300u}) {
      cache::PageRef ref;
      ref.fill(used);
      for (index_t s = 0; s < used; ++s)
        if (random() % one_in == 0) ref.kill(s);
      CAPTURE(used, one_in);
      for (index_t from = 0; from <= used; ++from) {
        index_t alive = from, dead = from, live = 0;
        while (alive < used && !ref.alive(alive)) ++alive;
        while (dead < used && ref.alive(dead)) ++dead;
        for (index_t s = from; s < used; ++s) live += ref.alive(s);
        REQUIRE(ref.next_alive(from) == alive);
        REQUIRE(ref.next_dead(from) == dead);
        REQUIRE(ref.live_from(from) == live);
        cache::PageRef some = ref;
        some.revive_from(from);
        for (index_t s = 0; s < used; ++s) REQUIRE(some.alive(s) == (s >= from || ref.alive(s)));
      }
    }
}

TEST_CASE("segment: skipping finds the slot from either end of the table", "[cache][segment]") {
  test::CountingMemory memory;
  for (unsigned seed = 0; seed < 20; ++seed) {
    Segment s = make(memory);
    append(s, 0, 9 * page - 3);
    for (unsigned i = 0; i < 40; ++i) {  // some pages lose much, some nothing
      const auto at = static_cast<index_t>((seed * 31 + i * i * 7) % static_cast<unsigned>(s.live()));
      leave(s, at, at + 1);
    }
    REQUIRE_FALSE(s.packed());
    const std::vector<int> all = content(s);
    for (index_t count = 0; count <= s.live() + 2; ++count) {
      cache::Cursor at;
      index_t rest = count;
      cache::skip_pages(s, 0, at, rest);
      if (count >= s.live()) {
        REQUIRE(at.segment == 1);
        REQUIRE(rest == count - s.live());
        continue;
      }
      const auto& ref = s.pages()[at.page];
      REQUIRE(at.segment == 0);
      REQUIRE(at.slot == 0);
      REQUIRE(rest < ref.live);
      index_t slot = 0;
      for (index_t left = rest; !ref.alive(slot) || left-- > 0;) ++slot;
      float row[dim];
      prim::PageCodec<Cpu, prim::ExactRows>::decode(s.codec(), s.span(ref), slot, 1, {row, 1, dim});
      REQUIRE(static_cast<int>(row[0]) == all[static_cast<std::size_t>(count)]);
    }
  }
}


TEST_CASE("segment: a page that is read comes with one that is read soon after it", "[cache][segment]") {
  test::CountingMemory memory;
  Segment a = make(memory), b = make(memory), none = make(memory);
  append(a, 0, 2 * page + 3), append(b, 0, page);
  const auto data = [](const Segment& s, index_t p) { return static_cast<const std::byte*>(s.span(s.pages()[p]).data); };
  const auto next = [&](const Segment& s, index_t p, index_t ahead, const Segment* then) {
    const prim::PageSpan span = s.span_then_next(s.pages()[p], ahead, nullptr, then);
    REQUIRE(span.data == data(s, p));
    return span.next;
  };
  for (const Segment* then : {static_cast<const Segment*>(nullptr), static_cast<const Segment*>(&none), static_cast<const Segment*>(&b), static_cast<const Segment*>(&a)})
    for (index_t p = 0; p < 3; ++p)
      for (index_t ahead = 0; ahead <= 2; ++ahead) {
        CAPTURE(p, ahead);
        std::vector<const std::byte*> order;  // pages as they are read
        for (const Segment* s : {static_cast<const Segment*>(&a), then})
          for (index_t i = 0; s != nullptr && i < s->pages().size(); ++i) order.push_back(data(*s, i));
        const auto at = static_cast<std::size_t>(p + ahead);
        REQUIRE(next(a, p, ahead, then) == (ahead > 0 && at < order.size() ? order[at] : nullptr));
      }
  REQUIRE(next(b, 0, 1, &a) == data(a, 0));
  REQUIRE(next(b, 0, 2, &a) == data(a, 0));  // or nobody would ask for it
  REQUIRE(next(b, 0, 2, nullptr) == nullptr);
}

TEST_CASE("segment: small pages are asked for two ahead", "[cache][segment]") {
  test::CountingMemory memory;
  const prim::ExactRows half{DType::f16};
  const auto far = [&](index_t width, index_t slots) {
    Segment s(half, half.fingerprint(), width, slots, memory), other;
    other = std::move(s);
    return other.far_ahead();
  };
  REQUIRE(far(128, 64) == 1);
  REQUIRE(far(128, 32) == 1);
  REQUIRE(far(128, 31) == 2);
  REQUIRE(far(64, 32) == 2);
}
