#include <algorithm>
#include <catch2/catch.hpp>
#include <cstring>
#include <kvcondense/storage/row_pool.hpp>
#include <random>
#include <set>
#include <support/memory.hpp>
#include <support/oracle.hpp>
#include <vector>

using namespace kvcondense;
using storage::RowPool;

TEST_CASE("row pool: the worked numbers of rows", "[storage][row_pool]") {
  const auto o = test::load_oracle("retrieval_reuse_storage.json", "slora");
  const index_t hidden = o.at("hidden"), layers = o.at("layers");
  CHECK(storage::cache_rows(137, layers, hidden, hidden) == o.at("kv_pages").get<index_t>());
  index_t total = storage::cache_rows(137, layers, hidden, hidden);
  for (std::size_t i = 0; i < 2; ++i) {
    const index_t rows = storage::adapter_rows(o.at("lora_ranks")[i].get<index_t>(), layers);
    CHECK(rows == o.at("lora_pages_qkvo")[i].get<index_t>());
    total += rows;
  }
  CHECK(total == o.at("total").get<index_t>());
  // With grouped heads four tokens share a row: half a row per token and layer for both tensors.
  CHECK(storage::cache_rows(4000, 1, o.at("gqa_note").at("Hkv_times_d").get<index_t>(), hidden) ==
        static_cast<index_t>(4000 * o.at("gqa_note").at("kv_pages_per_token_per_layer_if_packed").get<double>()));
  CHECK(storage::cache_rows(5, 1, 1024, 4096) == 4);
}

TEST_CASE("row pool: random takers never share a row and lose none", "[storage][row_pool]") {
  test::CountingMemory memory;
  {
    auto made = RowPool::make(97, 16, memory);
    REQUIRE(made);
    RowPool pool = std::move(*made);
    std::mt19937 random(11);
    std::vector<std::vector<index_t>> held;
    std::vector<bool> run_of;
    std::set<index_t> used;
    for (int step = 0; step < 3000; ++step) {
      if (random() % 2 == 0 && !held.empty()) {
        const std::size_t i = random() % held.size();
        for (const index_t r : held[i]) {
          CHECK(static_cast<int>(pool.row(r)[3]) == static_cast<int>(held[i][0] & 127));
          used.erase(r);
        }
        if (run_of[i]) REQUIRE(pool.give_back_run(held[i][0], static_cast<index_t>(held[i].size())) == Status::ok);
        else REQUIRE(pool.give_back(held[i]) == Status::ok);
        held.erase(held.begin() + static_cast<std::ptrdiff_t>(i));
        run_of.erase(run_of.begin() + static_cast<std::ptrdiff_t>(i));
      } else {
        const bool run = random() % 2 == 0;
        std::vector<index_t> rows(1 + random() % 12);
        const auto n = static_cast<index_t>(rows.size());
        if (run) {
          const auto first = pool.take_run(n);
          index_t longest = 0, here = 0;  // the long way
          for (index_t r = 0; r < 97; ++r) here = used.count(r) != 0 ? 0 : here + 1, longest = std::max(longest, here);
          REQUIRE(first.has_value() == (longest >= n));
          if (!first) continue;
          for (index_t k = 0; k < n; ++k) rows[static_cast<std::size_t>(k)] = *first + k;
        } else {
          const Status s = pool.take(rows);
          REQUIRE((s == Status::ok) == (97 - static_cast<index_t>(used.size()) >= n));
          if (s != Status::ok) continue;
        }
        for (const index_t r : rows) {
          REQUIRE(used.insert(r).second);
          std::memset(pool.row(r), static_cast<int>(rows[0] & 127), 16);
        }
        held.push_back(rows);
        run_of.push_back(run);
      }
      REQUIRE(pool.free_rows() == 97 - static_cast<index_t>(used.size()));
    }
  }
  CHECK(memory.live_bytes == 0);
  CHECK(memory.wrong_releases == 0);
}

TEST_CASE("row pool: runs come from the smallest gap that fits", "[storage][row_pool]") {
  auto made = RowPool::make(20, 1);
  REQUIRE(made);
  RowPool pool = std::move(*made);
  std::vector<index_t> all(20);
  REQUIRE(pool.take(all) == Status::ok);
  REQUIRE(pool.give_back_run(2, 6) == Status::ok);
  REQUIRE(pool.give_back_run(12, 3) == Status::ok);
  CHECK(*pool.take_run(3) == 12);
  CHECK(*pool.take_run(3) == 2);
  CHECK(pool.take_run(4).status() == Status::out_of_memory);
  CHECK(pool.free_rows() == 3);
}

TEST_CASE("row pool: what was not taken is not returned, and nothing changes", "[storage][row_pool]") {
  auto made = RowPool::make(8, 4);
  REQUIRE(made);
  RowPool pool = std::move(*made);
  std::vector<index_t> rows(3);
  REQUIRE(pool.take(rows) == Status::ok);
  using Rows = std::vector<index_t>;
  for (const Rows& bad : {Rows{0, 1, 1}, Rows{0, 5}, Rows{0, -1}, Rows{0, 8}}) {
    CHECK(pool.give_back(bad) == Status::invalid_argument);
    CHECK(pool.free_rows() == 5);
  }
  CHECK(pool.give_back_run(1, 3) == Status::invalid_argument);
  CHECK(pool.give_back_run(7, 2) == Status::invalid_argument);
  std::vector<index_t> many(6);
  CHECK(pool.take(many) == Status::out_of_memory);
  CHECK(pool.free_rows() == 5);
  REQUIRE(pool.give_back(Rows{0, 1, 2}) == Status::ok);
  CHECK(pool.take_run(0).status() == Status::invalid_argument);
  CHECK(RowPool::make(0, 4).status() == Status::invalid_argument);
  CHECK(RowPool::make(index_t{1} << 40, 4096).status() == Status::invalid_argument);
  test::CountingMemory none;
  none.refuse_from = 1;
  CHECK(RowPool::make(8, 4, none).status() == Status::out_of_memory);
  CHECK(none.live_bytes == 0);
}
