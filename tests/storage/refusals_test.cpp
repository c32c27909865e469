// What storage refuses: numbers that cannot be, one at a time, and memory at every request.

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <utility>
#include <vector>

#include <catch2/catch.hpp>

#include <kvcondense/storage/flash_window.hpp>
#include <kvcondense/storage/page_replacement.hpp>
#include <kvcondense/storage/paged_view.hpp>
#include <kvcondense/storage/partial_attention.hpp>
#include <kvcondense/storage/row_pool.hpp>
#include <kvcondense/storage/storage_pages.hpp>
#include <kvcondense/storage/swap_plan.hpp>
#include <kvcondense/storage/two_tier.hpp>
#include <kvcondense/storage/virtual_arena.hpp>
#include <support/memory.hpp>

using namespace kvcondense;
using namespace kvcondense::storage;

namespace {

constexpr index_t most = std::numeric_limits<index_t>::max();

/// use(memory) with its n-th request refused, for every n: out_of_memory, and nothing left of it. How many requests there are.
template <class Use>
long refused(Use&& use) {
  for (long n = 0;; ++n) {
    test::CountingMemory memory;
    memory.refuse_from = n;
    const Status s = use(memory);
    REQUIRE(memory.live_bytes == 0);
    if (s == Status::ok) return n;
    REQUIRE(s == Status::out_of_memory);
    REQUIRE(n < 100);
  }
}

struct Slow final : SlowMemory {
  bool fetch(const std::byte*, std::span<std::byte>) noexcept override { return true; }
};

}  // namespace

TEST_CASE("storage: sizes that cannot be are refused", "[storage][refusals]") {
  CHECK(FlashWindow::make(0, 1).status() == Status::invalid_argument);
  CHECK(FlashWindow::make(1, 0).status() == Status::invalid_argument);
  CHECK(PageReplacement::make(Replacement::lru, 0, 1).status() == Status::invalid_argument);
  CHECK(PageReplacement::make(Replacement::lru, 1, 0).status() == Status::invalid_argument);
  for (const auto& [rows, bytes] : {std::pair<index_t, index_t>{0, 1}, {-1, 1}, {1, 0}, {1, -1}, {(index_t{1} << 40) + 1, 1}, {most, most}})
    CHECK(RowPool::make(rows, bytes).status() == Status::invalid_argument);
  Slow slow;
  for (const index_t frames : {index_t{0}, index_t{-1}, (index_t{1} << 24) + 1}) CHECK(TwoTier::make(slow, frames).status() == Status::invalid_argument);
  CHECK(TwoTier::make(slow, 4, Replacement::mark0).status() == Status::invalid_argument);
  CHECK(VirtualArena::reserve(0).status() == Status::invalid_argument);
  CHECK(VirtualArena::reserve(std::numeric_limits<std::size_t>::max()).status() == Status::invalid_argument);
  for (const index_t bad : {index_t{0}, index_t{-1}, most}) {
    CHECK(VirtualRows::make(bad, 8, 8).status() == Status::invalid_argument);
    CHECK(VirtualRows::make(8, bad, 8).status() == Status::invalid_argument);
    CHECK(VirtualRows::make(8, 8, bad).status() == Status::invalid_argument);
  }
  for (const PartialAttention bad : {PartialAttention{0, 8}, PartialAttention{2, -1}, PartialAttention{2, (index_t{1} << 40) + 1}})
    CHECK(bad.validate() == Status::invalid_argument);
}

TEST_CASE("storage: memory that is refused at any request leaves nothing behind", "[storage][refusals]") {
  CHECK(refused([](auto& m) { return FlashWindow::make(8, 2, m).status(); }) >= 3);
  CHECK(refused([](auto& m) { return PageReplacement::make(Replacement::lru, 8, 4, 0, m).status(); }) >= 3);
  CHECK(refused([](auto& m) { return RowPool::make(8, 16, m).status(); }) == 2);
  Slow slow;
  CHECK(refused([&](auto& m) { return TwoTier::make(slow, 4, Replacement::lru, m).status(); }) >= 6);
  CHECK(refused([](auto& m) { return VirtualArena::reserve(100000, m).status(); }) == 1);
  CHECK(refused([](auto& m) { return VirtualRows::make(3, 100, 64, m).status(); }) == 2);
  const std::vector<index_t> requests{3, 1, 3, 0};
  std::vector<std::uint8_t> bits(4);
  CHECK(refused([&](auto& m) { return BestReplacement{}.run(requests, 2, m, bits); }) >= 3);
  CHECK(refused([&](auto& m) { return phase_bits(requests, 2, m, bits); }) == 1);
  const std::vector<PageMove> moves{{0, 3}, {1, 1}};
  CHECK(refused([&](auto& m) { return SwapPlan(m).plan(moves, 4, 4); }) == 2);
  const std::vector<std::uint64_t> version{1, 2, 3};
  CHECK(refused([&](auto& m) {
          Buffer<index_t> out(m);
          const Status s = stale_pages(version, {}, out);
          REQUIRE(out.size() == (s == Status::ok ? 3 : 0));
          return s;
        }) >= 1);
}

TEST_CASE("storage: a step of a window whose memory is refused changes nothing", "[storage][refusals]") {
  test::CountingMemory memory;
  auto window = FlashWindow::make(64, 2, memory);
  REQUIRE(window);
  const std::vector<index_t> first{4, 2}, next{9, 8, 7, 6, 5, 4, 3};
  REQUIRE(window->step(first) == Status::ok);
  const std::vector<index_t> items(window->items().begin(), window->items().end());
  for (const std::vector<index_t>& bad : {std::vector<index_t>{1, -1}, {1, 64}}) CHECK(window->step(bad) == Status::out_of_range);
  CHECK(window->step(std::vector<index_t>{1, 5, 1}) == Status::invalid_argument);
  long n = 0;
  for (;; ++n) {
    memory.refuse_from = memory.requests + n;
    const Status s = window->step(next);
    memory.refuse_from = -1;
    if (s == Status::ok) break;
    REQUIRE(s == Status::out_of_memory);
    REQUIRE(std::equal(items.begin(), items.end(), window->items().begin(), window->items().end()));
    REQUIRE(window->loaded_so_far() == 2);
  }
  CHECK(n > 0);
  CHECK(window->loaded_so_far() == 8);  // item 4 was there
}

TEST_CASE("storage: requests of pages that cannot be are refused", "[storage][refusals]") {
  std::vector<std::uint8_t> bits(2), fewer(1);
  for (const index_t bad : {index_t{-1}, index_t{1} << 40}) {
    const std::vector<index_t> requests{1, bad};
    CHECK(BestReplacement{}.run(requests, 2, heap_memory()) == Status::out_of_range);
    CHECK(phase_bits(requests, 2, heap_memory(), bits) == Status::out_of_range);
  }
  const std::vector<index_t> requests{1, 0};
  CHECK(BestReplacement{}.run(requests, 0, heap_memory()) == Status::invalid_argument);
  CHECK(BestReplacement{}.run(requests, 2, heap_memory(), fewer) == Status::invalid_argument);
  CHECK(phase_bits(requests, 0, heap_memory(), bits) == Status::invalid_argument);
  CHECK(phase_bits(requests, 2, heap_memory(), fewer) == Status::invalid_argument);
  auto pages = PageReplacement::make(Replacement::lfu, 4, 2);
  REQUIRE(pages);
  for (const index_t bad : {-1, 4}) CHECK(pages->request(bad) == Status::out_of_range);
}

TEST_CASE("storage: runs of rows are returned as they were taken, or not at all", "[storage][refusals]") {
  auto pool = RowPool::make(8, 16);
  REQUIRE(pool);
  CHECK(pool->take_run(0).status() == Status::invalid_argument);
  CHECK(pool->take_run(9).status() == Status::out_of_memory);
  const auto run = pool->take_run(3);
  REQUIRE(run);
  for (const auto& [first, n] : {std::pair<index_t, index_t>{0, -1}, {-1, 2}, {6, 3}, {0, 4}, {most, 1}, {0, most}})
    CHECK(pool->give_back_run(first, n) == Status::invalid_argument);
  CHECK(pool->free_rows() == 5);
  CHECK(pool->give_back_run(*run, 3) == Status::ok);
  CHECK(pool->give_back_run(0, 0) == Status::ok);
  CHECK(pool->free_rows() == 8);
  const RowPool& seen = *pool;
  CHECK(seen.row(7) - seen.row(0) == 7 * 16);
}

TEST_CASE("storage: pages of a medium are read only where rows have places", "[storage][refusals]") {
  std::vector<std::byte> page(64), out(std::size_t{1} << 23);
  index_t reads = 0;
  const auto gather = [&](const StoragePages& s, std::vector<index_t> rows) {
    return s.gather(rows, [&](index_t, std::span<std::byte>) { return ++reads, true; }, page, out);
  };
  for (const StoragePages bad : {StoragePages{0, 64, 0}, StoragePages{16, 0, 0}, StoragePages{(index_t{1} << 32) + 1, 64, 0}, StoragePages{16, (index_t{1} << 32) + 1, 0},
                                 StoragePages{16, 64, -1}, StoragePages{16, 64, most}}) {
    CHECK(bad.validate() == Status::invalid_argument);
    CHECK(gather(bad, {0}) == Status::invalid_argument);
  }
  // A row whose bytes have no numbers, behind the last one that has.
  CHECK(gather({index_t{1} << 23, 64, 0}, {index_t{1} << 40}) == Status::invalid_argument);
  CHECK(gather({16, 64, 0}, {most}) == Status::invalid_argument);
  CHECK(gather({16, 64, StoragePages::most_bytes - 16}, {1}) == Status::invalid_argument);
  CHECK(gather({16, 64, 0}, {-1}) == Status::invalid_argument);
  CHECK(gather({16, 64, 0}, {2, 2}) == Status::invalid_argument);
  CHECK(gather({16, 65, 0}, {1}) == Status::workspace_too_small);  // a page
  CHECK(gather({index_t{1} << 23, 64, 0}, {0, 1}) == Status::workspace_too_small);  // two rows
  CHECK(reads == 0);
  CHECK(gather({16, 64, StoragePages::most_bytes - 32}, {0}) == Status::ok);
  CHECK(reads == 1);
}

TEST_CASE("storage: a view of pages never grows beyond its table, whatever is asked", "[storage][refusals]") {
  std::vector<std::byte> bytes(4 * 4 * 2 * 8 * 2);
  const prim::PagedTensor tensor{bytes.data(), DType::f16, 8, {.page = 64, .head = 8, .slot = 16}};
  const std::vector<std::int32_t> table{2, 0};
  auto view = PagedView::make(tensor, tensor, 2, 4, table, 3, 4);
  REQUIRE(view);
  CHECK((view->pages() == 2 && view->pages_needed() == 1 && view->utilisation() == 0.75));
  for (const index_t fits : {0, 1, 5}) CHECK(view->pages_lacking(fits) == 0);
  CHECK(view->pages_lacking(6) == 1);
  CHECK(view->pages_lacking(9) == 1);
  CHECK(view->pages_lacking(10) == 2);
  CHECK(view->pages_lacking(most) == (most - 5 - 1) / 4 + 1);
  for (const index_t bad : {index_t{-1}, index_t{6}, most}) CHECK(view->grow(bad) == Status::out_of_range);
  CHECK(view->total_slots() == 6);
  for (const auto& [head, slots] : {std::pair<index_t, index_t>{-1, 0}, {2, 0}, {0, -1}, {0, 4}}) CHECK(view->shrink(head, slots) == Status::out_of_range);
  CHECK(view->grow(5) == Status::ok);
  CHECK(view->total_slots() == 16);
  CHECK((view->shrink(0, 0) == Status::ok && view->shrink(1, 0) == Status::ok));
  CHECK(view->utilisation() == 1.0);

  for (const index_t slots : {PagedView::most_page_slots + 1, index_t{1} << 62, most})
    CHECK(PagedView::make(tensor, tensor, 2, slots, table, 3, 4).status() == Status::invalid_argument);
  auto vast = PagedView::make(tensor, tensor, 2, PagedView::most_page_slots, table, 3, 4);
  REQUIRE(vast);
  CHECK((vast->pages_needed() == 1 && vast->pages_lacking(most) > 0));

  const auto status = [&](const prim::PagedTensor& k, const prim::PagedTensor& v, index_t heads, index_t slots, index_t pool) {
    return PagedView::make(k, v, heads, slots, table, 3, pool).status();
  };
  REQUIRE(status(tensor, tensor, 2, 4, 4) == Status::ok);
  for (const int what : {0, 1, 2, 3, 4}) {
    prim::PagedTensor bad = tensor;
    if (what == 0) bad.data = nullptr;
    if (what == 1) bad.dim = 0;
    if (what == 2) bad.dim = max_head_dim + 1;
    if (what == 3) bad.layout.chunk = 0;
    if (what == 4) bad.layout.page = 0;
    CHECK(status(bad, tensor, 2, 4, 4) == Status::invalid_argument);
    CHECK(status(tensor, bad, 2, 4, 4) == Status::invalid_argument);
  }
  CHECK(status(tensor, tensor, 0, 4, 4) == Status::invalid_argument);
  CHECK(status(tensor, tensor, 2, 0, 4) == Status::invalid_argument);
  CHECK(status(tensor, tensor, 2, 4, -1) == Status::invalid_argument);
  CHECK(refused([&](auto& m) { return PagedView::make(tensor, tensor, 2, 4, table, 3, 100, m).status(); }) == 2);
}

TEST_CASE("storage: an arena maps only what it reserved, and rows only of open requests", "[storage][refusals]") {
  auto arena = VirtualArena::reserve(3);
  REQUIRE(arena);
  const std::size_t all = arena->bytes();
  for (const auto& [first, count] : {std::pair<std::size_t, std::size_t>{all + 1, 0}, {0, all + 1}, {all, 1}, {1, all}}) {
    CHECK(arena->commit(first, count) == Status::out_of_range);
    CHECK(arena->decommit(first, count) == Status::out_of_range);
  }
  CHECK(arena->commit(1, 0) == Status::ok);
  CHECK(arena->committed() == 0);
  CHECK_FALSE(arena->is_committed(all));
  auto rows = VirtualRows::make(2, 100, 64);
  REQUIRE(rows);
  for (const index_t bad : {-1, 101}) CHECK(rows->open(bad).status() == Status::out_of_range);
  const auto one = rows->open(10), two = rows->open(1);
  REQUIRE((one && two));
  CHECK(rows->open(1).status() == Status::out_of_memory);
  for (const index_t bad : {-1, 101}) CHECK(rows->resize(*one, bad) == Status::out_of_range);
  for (const index_t bad : {-1, 2}) {
    CHECK(rows->resize(bad, 1) == Status::out_of_range);
    CHECK(rows->close(bad) == Status::out_of_range);
  }
  CHECK(rows->close(*one) == Status::ok);
  CHECK(rows->close(*one) == Status::out_of_range);
  CHECK(rows->resize(*one, 1) == Status::out_of_range);
  CHECK(rows->tokens(*two) == 1);
}
