#include <catch2/catch.hpp>
#include <cmath>
#include <cstring>
#include <fstream>
#include <kvcondense/cpu.hpp>
#include <kvcondense/storage/virtual_arena.hpp>
#include <support/memory.hpp>
#include <support/oracle.hpp>
#include <vector>

using namespace kvcondense;
using storage::VirtualArena;
using storage::VirtualPages;
using storage::VirtualRows;

namespace {

/// Bytes of this process that lie in memory.
std::size_t resident() {
  std::ifstream file("/proc/self/statm");
  std::size_t total = 0, in_memory = 0;
  file >> total >> in_memory;
  return in_memory * static_cast<std::size_t>(::sysconf(_SC_PAGESIZE));
}

}  // namespace

TEST_CASE("virtual pages: the worked table", "[storage][virtual_arena]") {
  const auto o = test::load_oracle("retrieval_reuse_storage.json", "vattention");
  int rows = 0;
  for (const auto& row : o.at("table")) {
    const VirtualPages p{row.at("page"), row.at("layers"), row.at("kv_heads"), row.at("head_dim"), 2};
    CAPTURE(row);
    CHECK(p.token_bytes() == row.at("bytes_per_token_per_tensor").get<index_t>());
    CHECK(p.tokens_per_page() == row.at("tokens_per_page").get<index_t>());
    CHECK(p.tokens_per_page_all_layers() == row.at("tokens_per_page_megacache").get<index_t>());
    CHECK(p.pages_per_growth() == row.at("pages_per_step_granule").get<index_t>());
    CHECK(p.bytes_per_growth() == row.at("bytes_per_growth_step").get<index_t>());
    ++rows;
  }
  CHECK(rows == 12);
  const VirtualPages llama{2 << 20, 32, 8, 128, 2};
  const auto& v = o.at("virtual");
  const index_t longest = v.at("max_len"), batch = v.at("batch");
  CHECK(llama.request_bytes(longest) == v.at("rounded").get<index_t>());
  CHECK(llama.reserved_bytes(batch, longest) == v.at("total_reserved").get<index_t>());
  for (std::size_t i = 0; i < o.at("growth").at("context").size(); ++i)
    CHECK(llama.pages(o.at("growth").at("context")[i]) == o.at("growth").at("pages_per_tensor")[i].get<index_t>());
  const auto& waste = o.at("waste_at_len_5000");
  CHECK(llama.pages(5000) == waste.at("pages").get<index_t>());
  CHECK(llama.pages(5000) * llama.bytes_per_growth() == waste.at("bytes_mapped_all").get<index_t>());
  CHECK(llama.used(5000) == Approx(waste.at("utilisation").get<double>()));
}

TEST_CASE("virtual arena: memory comes with commit and goes with decommit", "[storage][virtual_arena]") {
  constexpr std::size_t size = std::size_t{64} << 20;
  const std::size_t before = resident();
  auto made = VirtualArena::reserve(size * 1024);  // 64 GiB of addresses
  REQUIRE(made);
  VirtualArena a = std::move(*made);
  CHECK(a.bytes() == size * 1024);
  CHECK(a.committed() == 0);
  CHECK(resident() < before + size);  // addresses are no memory; the table of pages is some
  const std::size_t tables = resident();
  REQUIRE(a.commit(0, size) == Status::ok);
  std::memset(a.data(), 7, size);
  CHECK(a.committed() == size);
  CHECK(resident() > tables + size / 2);
  REQUIRE(a.decommit(0, size) == Status::ok);
  CHECK(a.committed() == 0);
  CHECK(resident() < tables + size / 2);
  REQUIRE(a.commit(0, 1) == Status::ok);
  CHECK(a.data()[0] == std::byte{0});
  CHECK(a.committed() == a.page_bytes());
}

TEST_CASE("virtual arena: commits may overlap, decommits keep pages that are still touched", "[storage][virtual_arena]") {
  auto made = VirtualArena::reserve(1 << 20);
  REQUIRE(made);
  VirtualArena a = std::move(*made);
  const std::size_t page = a.page_bytes();
  REQUIRE(a.commit(page / 2, page) == Status::ok);
  CHECK(a.committed() == 2 * page);
  a.data()[page / 2] = std::byte{1};
  a.data()[page] = std::byte{2};
  REQUIRE(a.commit(0, 4 * page) == Status::ok);
  CHECK(a.committed() == 4 * page);
  CHECK(a.data()[page / 2] == std::byte{1});
  REQUIRE(a.decommit(page / 2, 2 * page) == Status::ok);  // only page 1 lies wholly inside
  CHECK(a.committed() == 3 * page);
  CHECK(a.data()[page / 2] == std::byte{1});
  CHECK_FALSE(a.is_committed(page));
  CHECK(a.is_committed(2 * page));
  CHECK(a.commit(1 << 20, 1) == Status::out_of_range);
  CHECK(a.commit(5, static_cast<std::size_t>(-1)) == Status::out_of_range);
  CHECK(a.decommit((1 << 20) - 5, 6) == Status::out_of_range);
  CHECK(a.committed() == 3 * page);
  CHECK(VirtualArena::reserve(0).status() == Status::invalid_argument);
  CHECK(VirtualArena::reserve(static_cast<std::size_t>(-1)).status() == Status::invalid_argument);
  VirtualArena b = std::move(a);
  CHECK(b.data()[page / 2] == std::byte{1});
  CHECK(a.data() == nullptr);  // NOLINT(bugprone-use-after-move)
}

TEST_CASE("virtual rows: attention sees one contiguous array while a request grows", "[storage][virtual_arena]") {
  constexpr index_t heads = 2, dim = 48, longest = 5000;
  auto made = VirtualRows::make(3, longest, heads * dim * 4);
  REQUIRE(made);
  VirtualRows rows = std::move(*made);
  const auto r = rows.open(0);
  REQUIRE(r);
  const auto* first = rows.data(*r);
  std::vector<float> plain;
  for (index_t t = 0; t < 700; ++t) {
    REQUIRE(rows.resize(*r, t + 1) == Status::ok);
    REQUIRE(rows.data(*r) == first);
    auto* row = reinterpret_cast<float*>(rows.data(*r)) + t * heads * dim;
    for (index_t i = 0; i < heads * dim; ++i) plain.push_back(row[i] = random_uniform(1, static_cast<std::uint64_t>(t * 997 + i)));
  }
  // [tokens, heads, dim] seen as [heads, tokens, dim], which policies read without a table.
  const DenseRows seen({reinterpret_cast<const float*>(rows.data(*r)), {heads, 700, dim}, {dim, heads * dim, 1}});
  std::vector<float> got(static_cast<std::size_t>(700 * dim));
  for (index_t h = 0; h < heads; ++h) {
    seen.read(h, 0, {got.data(), 700, dim});
    for (index_t t = 0; t < 700; ++t)
      for (index_t d = 0; d < dim; ++d)
        REQUIRE(got[static_cast<std::size_t>(t * dim + d)] == plain[static_cast<std::size_t>((t * heads + h) * dim + d)]);
  }
  CHECK(rows.committed() < static_cast<std::size_t>(longest * heads * dim * 4) / 4);
}

TEST_CASE("virtual rows: places are reused where memory fits best, and trimmed from the last one", "[storage][virtual_arena]") {
  const auto page = static_cast<index_t>(::sysconf(_SC_PAGESIZE));
  auto made = VirtualRows::make(4, 100, page);
  REQUIRE(made);
  VirtualRows rows = std::move(*made);
  REQUIRE(*rows.open(10) == 0);
  REQUIRE(*rows.open(30) == 1);
  REQUIRE(*rows.open(20) == 2);
  const auto pages = [&] { return static_cast<index_t>(rows.committed()) / page; };
  CHECK(pages() == 60);
  for (const index_t r : {0, 1, 2}) REQUIRE(rows.close(r) == Status::ok);
  CHECK(pages() == 60);             // kept for the next ones
  CHECK(*rows.open(15) == 2);       // 20 is enough and less than 30
  CHECK(*rows.open(25) == 1);
  CHECK(*rows.open(40) == 0);       // nothing fits: the one that needs least
  CHECK(pages() == 90);
  REQUIRE(rows.close(0) == Status::ok);
  REQUIRE(rows.trim(60 * static_cast<std::size_t>(page)) == Status::ok);
  CHECK(pages() == 50);             // the closed one has gone, nothing else had to
  REQUIRE(rows.trim(0) == Status::ok);
  CHECK(pages() == 40);             // rows in use stay: 15 and 25
  REQUIRE(rows.resize(2, 5) == Status::ok);
  REQUIRE(rows.trim(0) == Status::ok);
  CHECK(pages() == 30);

  CHECK(rows.resize(0, 5) == Status::out_of_range);
  CHECK(rows.resize(2, 101) == Status::out_of_range);
  CHECK(rows.close(3) == Status::out_of_range);
  CHECK(rows.close(-1) == Status::out_of_range);
  CHECK(rows.open(101).status() == Status::out_of_range);
  REQUIRE(rows.open(1));
  REQUIRE(rows.open(1));
  CHECK(rows.open(1).status() == Status::out_of_memory);
  CHECK(VirtualRows::make(1, 1, 0).status() == Status::invalid_argument);
  CHECK(VirtualRows::make(index_t{1} << 40, 1 << 20, 1 << 20).status() == Status::invalid_argument);
}
