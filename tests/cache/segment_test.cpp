#include <vector>

#include <catch2/catch.hpp>

#include <kvcondense/cpu.hpp>
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
