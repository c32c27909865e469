#include <algorithm>
#include <catch2/catch.hpp>
#include <cstring>
#include <kvcondense/storage/swap_plan.hpp>
#include <random>
#include <support/memory.hpp>
#include <support/oracle.hpp>
#include <vector>

using namespace kvcondense;
using storage::PageMove;
using storage::SwapPlan;

TEST_CASE("swap plan: the worked transfer, page by page and in groups", "[storage][swap_plan]") {
  const auto o = test::load_oracle("retrieval_reuse_storage.json", "offload").at("fastswitch");
  const double bytes = o.at("total_bytes"), block = o.at("block_bytes");
  const storage::Link link{o.at("bw").get<double>(), o.at("launch_s").get<double>()};
  CHECK(storage::copies_of(bytes, block) == o.at("blocks").get<double>());
  CHECK(link.seconds(bytes, storage::copies_of(bytes, block)) == Approx(o.at("seconds_blockwise").get<double>()));
  const double groups = storage::copies_of(bytes, 64 * block);
  CHECK(groups == o.at("group_of_64_calls").get<double>());
  CHECK(link.seconds(bytes, groups) == Approx(o.at("seconds_group").get<double>()));

  // The same from a plan of 7500 neighbouring pages.
  std::vector<PageMove> moves;
  for (index_t i = 0; i < 7500; ++i) moves.push_back({i + 11, i});
  SwapPlan plan;
  REQUIRE(plan.plan(moves, 8000, 7500, 64) == Status::ok);
  CHECK(plan.copies() == 118);
  CHECK(plan.seconds(link, block) == Approx(o.at("seconds_group").get<double>()));
  REQUIRE(plan.plan(moves, 8000, 7500, 1) == Status::ok);
  CHECK(plan.seconds(link, block) == Approx(o.at("seconds_blockwise").get<double>()));
}

TEST_CASE("swap plan: runs are neighbours on both sides, and bytes arrive", "[storage][swap_plan]") {
  std::mt19937 random(3);
  constexpr std::size_t page = 24;
  for (int round = 0; round < 200; ++round) {
    const index_t pages = 1 + static_cast<index_t>(random() % 40);
    std::vector<index_t> from(static_cast<std::size_t>(pages) + 7), to(from.size());
    for (std::size_t i = 0; i < from.size(); ++i) from[i] = to[i] = static_cast<index_t>(i);
    if (round % 2 == 0) std::shuffle(from.begin(), from.end(), random);
    if (round % 3 == 0) std::shuffle(to.begin(), to.end(), random);
    std::vector<PageMove> moves;
    for (index_t i = 0; i < pages; ++i) moves.push_back({from[static_cast<std::size_t>(i)], to[static_cast<std::size_t>(i)]});
    const index_t most = 1 + static_cast<index_t>(random() % 8);
    SwapPlan plan;
    REQUIRE(plan.plan(moves, pages + 7, pages + 7, most) == Status::ok);
    CHECK(plan.pages() == pages);
    std::vector<std::byte> source(from.size() * page), got(source.size()), want(source.size());
    for (std::byte& b : source) b = static_cast<std::byte>(random());
    for (const PageMove& m : moves)
      std::memcpy(want.data() + m.to * static_cast<index_t>(page), source.data() + m.from * static_cast<index_t>(page), page);
    plan.run(got.data(), source.data(), page);
    CHECK(got == want);
    for (const auto& r : plan.runs()) CHECK(r.pages <= most);
    if (round % 6 == 1) CHECK(plan.copies() == (pages + most - 1) / most);
  }
}

TEST_CASE("swap plan: a move that cannot be is refused and the plan stays", "[storage][swap_plan]") {
  SwapPlan plan;
  const std::vector<PageMove> good{{0, 1}, {1, 2}};
  REQUIRE(plan.plan(good, 4, 4) == Status::ok);
  for (const auto& [moves, why] : std::vector<std::pair<std::vector<PageMove>, Status>>{
           {{{-1, 0}}, Status::out_of_range}, {{{4, 0}}, Status::out_of_range}, {{{0, 4}}, Status::out_of_range},
           {{{0, -1}}, Status::out_of_range}, {{{0, 1}, {2, 1}}, Status::invalid_argument}}) {
    CHECK(plan.plan(moves, 4, 4) == why);
    CHECK(plan.copies() == 1);
    CHECK(plan.pages() == 2);
  }
  CHECK(plan.plan(good, 4, 4, 0) == Status::invalid_argument);
  REQUIRE(plan.plan({}, 0, 0) == Status::ok);
  CHECK(plan.copies() == 0);
  test::CountingMemory none;
  none.refuse_from = 0;
  SwapPlan poor(none);
  CHECK(poor.plan(good, 4, 4) == Status::out_of_memory);
}

TEST_CASE("swap plan: only what was written since the last copy is stale", "[storage][swap_plan]") {
  const std::vector<std::uint64_t> version{3, 1, 4, 1, 5}, saved{3, 0, 4, 2};
  Buffer<index_t> stale(heap_memory());
  REQUIRE(storage::stale_pages(version, saved, stale) == Status::ok);
  CHECK(std::vector<index_t>(stale.begin(), stale.end()) == std::vector<index_t>{1, 4});
}
