#include <algorithm>
#include <catch2/catch.hpp>
#include <kvcondense/storage/page_replacement.hpp>
#include <random>
#include <support/oracle.hpp>
#include <vector>

using namespace kvcondense;
using storage::PageReplacement;
using storage::Replacement;

namespace {

nlohmann::json oracle() { return test::load_oracle("retrieval_reuse_storage.json", "paging"); }

struct Run {
  index_t misses = 0;
  std::vector<std::pair<index_t, std::vector<index_t>>> evictions;  // which request, which pages
};

Run run(Replacement rule, const std::vector<index_t>& requests, index_t capacity, const std::vector<std::uint8_t>& bits = {},
        std::uint64_t seed = 0) {
  auto made = PageReplacement::make(rule, 64, capacity, seed);
  REQUIRE(made);
  Run r;
  for (std::size_t t = 0; t < requests.size(); ++t) {
    REQUIRE(made->request(requests[t], !bits.empty() && bits[t] != 0) == Status::ok);
    CHECK(static_cast<index_t>(made->resident().size()) <= capacity);
    std::vector<index_t> gone(made->evicted().begin(), made->evicted().end());
    std::sort(gone.begin(), gone.end());
    if (!gone.empty()) r.evictions.emplace_back(static_cast<index_t>(t), gone);
  }
  r.misses = made->misses();
  return r;
}

/// The oracle's lists of [request, page] or [request, [pages]].
std::vector<std::pair<index_t, std::vector<index_t>>> evictions(const nlohmann::json& list) {
  std::vector<std::pair<index_t, std::vector<index_t>>> all;
  for (const auto& e : list)
    all.emplace_back(e[0].get<index_t>(), e[1].is_array() ? e[1].get<std::vector<index_t>>() : std::vector<index_t>{e[1].get<index_t>()});
  return all;
}

std::vector<index_t> random_requests(std::mt19937& random, index_t pages, int n) {
  std::vector<index_t> r;
  index_t walk = 0;
  for (int i = 0; i < n; ++i) {
    walk = (walk + static_cast<index_t>(random() % 3)) % pages;
    r.push_back(random() % 3 == 0 ? static_cast<index_t>(random()) % pages : walk);
  }
  return r;
}

}  // namespace

TEST_CASE("page replacement: the worked sequence", "[storage][page_replacement]") {
  const auto o = oracle();
  const auto requests = o.at("sequence").get<std::vector<index_t>>();
  const index_t k = o.at("k");

  storage::BestReplacement best;
  std::vector<std::uint8_t> discard(requests.size()), phase(requests.size());
  REQUIRE(best.run(requests, k, heap_memory(), discard) == Status::ok);
  CHECK(best.misses == o.at("belady").at("faults").get<index_t>());
  CHECK(discard == o.at("discard_bits_from_belady").get<std::vector<std::uint8_t>>());
  REQUIRE(storage::phase_bits(requests, k, heap_memory(), phase) == Status::ok);
  CHECK(phase == o.at("phase_bits_perfect").get<std::vector<std::uint8_t>>());

  const Run lru = run(Replacement::lru, requests, k);
  CHECK(lru.misses == o.at("lru").at("faults").get<index_t>());
  CHECK(lru.evictions == evictions(o.at("lru").at("evictions")));

  const Run advised = run(Replacement::discard, requests, k, discard);
  CHECK(advised.misses == o.at("discard_algorithm").at("faults").get<index_t>());
  CHECK(advised.evictions == evictions(o.at("discard_algorithm").at("evictions")));
  const Run flush = run(Replacement::discard, requests, k);
  CHECK(flush.misses == o.at("discard_algorithm_all_zero_bits").at("faults").get<index_t>());
  CHECK(flush.evictions == evictions(o.at("discard_algorithm_all_zero_bits").at("evictions")));

  const Run marked = run(Replacement::mark_and_predict, requests, k, phase);
  CHECK(marked.misses == o.at("mark_and_predict_smallest_id_tiebreak").at("faults").get<index_t>());
  CHECK(marked.evictions == evictions(o.at("mark_and_predict_smallest_id_tiebreak").at("evictions")));
  CHECK(run(Replacement::mark_and_predict, requests, k).misses == o.at("mark_and_predict_all_zero").at("faults").get<index_t>());
  std::vector<std::uint8_t> inverted = phase;
  for (auto& b : inverted) b = b == 0;
  CHECK(run(Replacement::mark_and_predict, requests, k, inverted).misses == o.at("mark_and_predict_inverted").at("faults").get<index_t>());

  CHECK(run(Replacement::mark0, requests, k, discard).misses == best.misses);
}

TEST_CASE("page replacement: with perfect bits as good as knowing the future", "[storage][page_replacement]") {
  std::mt19937 random(2);
  for (int round = 0; round < 60; ++round) {
    const auto requests = random_requests(random, 5 + static_cast<index_t>(random() % 20), 200);
    const index_t k = 1 + static_cast<index_t>(random() % 8);
    storage::BestReplacement best;
    std::vector<std::uint8_t> bits(requests.size());
    REQUIRE(best.run(requests, k, heap_memory(), bits) == Status::ok);
    CHECK(run(Replacement::discard, requests, k, bits).misses == best.misses);
    CHECK(run(Replacement::mark0, requests, k, bits).misses == best.misses);
    for (const Replacement r : {Replacement::lru, Replacement::lfu, Replacement::mark_and_predict})
      CHECK(run(r, requests, k).misses >= best.misses);
  }
}

TEST_CASE("page replacement: wrong bits cost what the paper says at most", "[storage][page_replacement]") {
  std::mt19937 random(4);
  double marked = 0, marked_bound = 0;
  for (int round = 0; round < 60; ++round) {
    const auto requests = random_requests(random, 16, 300);
    const index_t k = 4;
    storage::BestReplacement best;
    std::vector<std::uint8_t> bits(requests.size());
    REQUIRE(best.run(requests, k, heap_memory(), bits) == Status::ok);
    index_t wrong[2] = {0, 0};
    std::vector<std::uint8_t> said = bits;
    for (auto& b : said)
      if (random() % 5 == 0) b = b == 0, ++wrong[b];
    // Discard predictions, deterministic: OPT + (k - 1) wrong zeros + wrong ones.
    CHECK(run(Replacement::discard, requests, k, said).misses <= best.misses + (k - 1) * wrong[0] + wrong[1]);
    double harmonic = 0;
    for (index_t i = 1; i <= k; ++i) harmonic += 1.0 / static_cast<double>(i);
    for (std::uint64_t seed = 1; seed <= 5; ++seed)
      marked += static_cast<double>(run(Replacement::mark0, requests, k, said, seed).misses) / 5;
    marked_bound += static_cast<double>(best.misses) + 2 * harmonic * static_cast<double>(wrong[0]) + static_cast<double>(wrong[1]);
  }
  CHECK(marked <= marked_bound);
}

TEST_CASE("page replacement: the seed draws, and the same seed draws the same", "[storage][page_replacement]") {
  std::mt19937 random(9);
  const auto requests = random_requests(random, 30, 400);
  const Run zero = run(Replacement::mark_and_predict, requests, 6), one = run(Replacement::mark_and_predict, requests, 6, {}, 1),
            again = run(Replacement::mark_and_predict, requests, 6, {}, 1), two = run(Replacement::mark_and_predict, requests, 6, {}, 2);
  CHECK(one.evictions == again.evictions);
  CHECK(one.evictions != zero.evictions);
  CHECK(one.evictions != two.evictions);
}

TEST_CASE("page replacement: frequent pages stay under lfu, recent ones under lru", "[storage][page_replacement]") {
  const std::vector<index_t> requests{1, 1, 1, 2, 3, 1, 2, 4};
  CHECK(run(Replacement::lfu, requests, 3).evictions.back().second == std::vector<index_t>{3});
  CHECK(run(Replacement::lfu, {1, 1, 2, 3, 3, 4}, 3).evictions.back().second == std::vector<index_t>{2});
  CHECK(run(Replacement::lru, {1, 1, 1, 2, 3, 4}, 3).evictions.back().second == std::vector<index_t>{1});
  CHECK(run(Replacement::lfu, {1, 1, 1, 2, 3, 4}, 3).evictions.back().second == std::vector<index_t>{2});
}

TEST_CASE("page replacement: a page that is not there is refused", "[storage][page_replacement]") {
  auto made = PageReplacement::make(Replacement::lru, 4, 2);
  REQUIRE(made);
  REQUIRE(made->request(3) == Status::ok);
  CHECK(made->request(4) == Status::out_of_range);
  CHECK(made->request(-1) == Status::out_of_range);
  CHECK(made->misses() == 1);
  CHECK(made->is_resident(3));
  CHECK(PageReplacement::make(Replacement::lru, 4, 0).status() == Status::invalid_argument);
  auto large = PageReplacement::make(Replacement::lru, 4, 100);
  REQUIRE(large);
  for (index_t t = 0; t < 20; ++t) REQUIRE(large->request(t % 4) == Status::ok);
  CHECK(large->misses() == 4);
  storage::BestReplacement best;
  const std::vector<index_t> negative{1, -2};
  CHECK(best.run(negative, 2, heap_memory()) == Status::out_of_range);
  CHECK(best.run(negative, 0, heap_memory()) == Status::invalid_argument);
  REQUIRE(best.run({}, 2, heap_memory()) == Status::ok);
  CHECK(best.misses == 0);
}
