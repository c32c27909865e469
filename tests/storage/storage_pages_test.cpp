#include <algorithm>
#include <catch2/catch.hpp>
#include <cstring>
#include <kvcondense/storage/storage_pages.hpp>
#include <random>
#include <set>
#include <vector>

using namespace kvcondense;
using storage::StoragePages;

TEST_CASE("storage pages: each page that holds a part of a wanted row is read once", "[storage][storage_pages]") {
  std::mt19937 random(7);
  for (int round = 0; round < 300; ++round) {
    const StoragePages s{1 + static_cast<index_t>(random() % 100), 1 + static_cast<index_t>(random() % 200),
                         static_cast<index_t>(random() % 50)};
    REQUIRE(s.validate() == Status::ok);
    const index_t total = 60;
    const index_t bytes = s.first_byte + total * s.row_bytes, pages = (bytes + s.page_bytes - 1) / s.page_bytes;
    std::vector<std::byte> disk(static_cast<std::size_t>(pages * s.page_bytes));
    for (std::byte& b : disk) b = static_cast<std::byte>(random());
    std::vector<index_t> rows;
    for (index_t r = 0; r < total; ++r)
      if (random() % 4 == 0) rows.push_back(r);

    std::set<index_t> want_pages;
    std::vector<std::byte> want, got(rows.size() * static_cast<std::size_t>(s.row_bytes));
    for (const index_t r : rows)
      for (index_t b = 0; b < s.row_bytes; ++b) {
        const index_t at = s.first_byte + r * s.row_bytes + b;
        want_pages.insert(at / s.page_bytes);
        want.push_back(disk[static_cast<std::size_t>(at)]);
      }
    CHECK(s.touched(rows) == static_cast<index_t>(want_pages.size()));
    std::vector<index_t> read;
    std::vector<std::byte> page(static_cast<std::size_t>(s.page_bytes));
    const auto reader = [&](index_t p, std::span<std::byte> to) {
      read.push_back(p);
      std::memcpy(to.data(), disk.data() + p * s.page_bytes, to.size());
      return true;
    };
    REQUIRE(s.gather(rows, reader, page, got) == Status::ok);
    CHECK(got == want);
    CHECK(read == std::vector<index_t>(want_pages.begin(), want_pages.end()));
  }
}

TEST_CASE("storage pages: tokens of 4096 bytes cost their pages, not their number", "[storage][storage_pages]") {
  const StoragePages bundled{512, 4096}, apart{512, 4096};
  const std::vector<index_t> near{0, 1, 2, 3, 4, 5, 6, 7}, far{0, 8, 16, 24, 32, 40, 48, 56};
  CHECK(bundled.touched(near) == 1);
  CHECK(apart.touched(far) == 8);
}

TEST_CASE("storage pages: what is wrong is refused, a reader that fails is said", "[storage][storage_pages]") {
  const StoragePages s{10, 64};
  std::vector<std::byte> page(64), out(100);
  const auto reader = [](index_t, std::span<std::byte>) { return true; };
  using Rows = std::vector<index_t>;
  CHECK(s.gather(Rows{3, 3}, reader, page, out) == Status::invalid_argument);
  CHECK(s.gather(Rows{3, 2}, reader, page, out) == Status::invalid_argument);
  CHECK(s.gather(Rows{-1}, reader, page, out) == Status::invalid_argument);
  CHECK(s.gather(Rows{1}, reader, std::span(page).first(63), out) == Status::workspace_too_small);
  CHECK(s.gather(Rows{1, 2}, reader, page, std::span(out).first(19)) == Status::workspace_too_small);
  CHECK(s.gather(Rows{1}, [](index_t, std::span<std::byte>) { return false; }, page, out) == Status::io_error);
  CHECK(s.gather(Rows{}, reader, page, {}) == Status::ok);
  CHECK(StoragePages{0, 64}.validate() == Status::invalid_argument);
  CHECK(StoragePages{1, 0}.gather(Rows{1}, reader, page, out) == Status::invalid_argument);
}
