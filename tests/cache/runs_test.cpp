#include <cstdint>
#include <numeric>
#include <random>
#include <vector>

#include <catch2/catch.hpp>

#include <kvcondense/cache/runs.hpp>

using namespace kvcondense;

TEST_CASE("runs: every list falls into its longest runs", "[cache][runs]") {
  std::mt19937 random(3);
  for (const unsigned one_in : {1u, 2u, 3u, 10u, 100u}) {
    for (int round = 0; round < 50; ++round) {
      std::vector<std::int32_t> list;
      const auto n = static_cast<std::int32_t>(random() % 300);
      for (std::int32_t i = 0; i < n; ++i)
        if (one_in == 1 || random() % one_in != 0) list.push_back(i);
      std::vector<std::int32_t> seen;
      std::int32_t last = -2;
      cache::for_runs(list.data(), static_cast<index_t>(list.size()), [&](index_t to, index_t from, index_t count) {
        REQUIRE(to == static_cast<index_t>(seen.size()));
        REQUIRE(count > 0);
        REQUIRE(from > last + 1);  // else it were one run
        for (index_t i = 0; i < count; ++i) seen.push_back(last = static_cast<std::int32_t>(from + i));
      });
      REQUIRE(seen == list);

      std::vector<std::int64_t> numbers(300);
      std::iota(numbers.begin(), numbers.end(), std::int64_t{1000});
      cache::gather_down(numbers.data(), list.data(), static_cast<index_t>(list.size()));
      for (std::size_t i = 0; i < list.size(); ++i) REQUIRE(numbers[i] == 1000 + list[i]);
    }
  }
}
