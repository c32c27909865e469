#include <limits>
#include <vector>

#include <catch2/catch.hpp>

#include <kvcondense/io/level_controller.hpp>

using namespace kvcondense;
using io::LevelController;

TEST_CASE("level_controller: the highest level that fits the chunk's share", "[io][level_controller]") {
  const std::vector<double> sizes{30e6, 20e6, 10e6};
  const LevelController c{.recompute_seconds = 0.0};
  // 10 chunks in 2 s: 0.2 s each.
  REQUIRE(c.choose(sizes, 200e6, 2.0, 10) == 0);
  REQUIRE(c.choose(sizes, 150e6, 2.0, 10) == 1);  // exactly its share is not below it
  REQUIRE(c.choose(sizes, 101e6, 2.0, 10) == 1);
  REQUIRE(c.choose(sizes, 100e6, 2.0, 10) == 2);
  REQUIRE(c.choose(sizes, 51e6, 2.0, 10) == 2);
  REQUIRE(c.choose(sizes, 50e6, 2.0, 10) == LevelController::recompute);
  // Time that earlier chunks saved goes to later ones.
  REQUIRE(c.choose(sizes, 100e6, 1.0, 2) == 0);
  REQUIRE(c.choose(sizes, 100e6, 0.3, 2) == 2);
}

TEST_CASE("level_controller: recomputing where it is sooner than the lowest level", "[io][level_controller]") {
  const std::vector<double> sizes{30e6, 10e6};
  REQUIRE(LevelController{.recompute_seconds = 0.2}.choose(sizes, 40e6, 1.0, 10) == LevelController::recompute);
  REQUIRE(LevelController{.recompute_seconds = 0.26}.choose(sizes, 40e6, 1.0, 10) == 1);
  REQUIRE(LevelController{.recompute_seconds = std::numeric_limits<double>::infinity()}.choose(sizes, 1.0, 1.0, 10) == 1);
}

TEST_CASE("level_controller: no time, no throughput, no levels", "[io][level_controller]") {
  const std::vector<double> sizes{30e6, 10e6};
  const double none = std::numeric_limits<double>::quiet_NaN();
  const LevelController c;
  for (const double rate : {0.0, -1.0, none}) REQUIRE(c.choose(sizes, rate, 1.0, 1) == LevelController::recompute);
  for (const double left : {0.0, -1.0, none}) REQUIRE(c.choose(sizes, 10e6, left, 1) == LevelController::recompute);
  REQUIRE(c.choose({}, 10e6, 1.0, 1) == LevelController::recompute);
  REQUIRE(c.choose(sizes, 100e6, 1.0, 0) == 0);
}

// The paper's loop: throughput falls to a tenth in the middle; only the one chunk that is on its way then comes late.
TEST_CASE("level_controller: a link that becomes slow", "[io][level_controller]") {
  const std::vector<double> sizes{30e6, 20e6, 10e6};
  const LevelController c{.recompute_seconds = 0.1};
  double left = 2.0, rate = 200e6;
  int lowest = 0;
  for (index_t chunk = 0; chunk < 10; ++chunk) {
    const double now = chunk < 4 ? 200e6 : 20e6;
    const int level = c.choose(sizes, rate, left, 10 - chunk);
    left -= level == LevelController::recompute ? c.recompute_seconds : sizes[static_cast<std::size_t>(level)] / now;
    rate = now;
    lowest = level == LevelController::recompute ? 3 : lowest;
  }
  REQUIRE(lowest == 3);
  REQUIRE(left > -1.0);  // the one chunk that the slow link surprised took 1.5 s instead of 0.15
  const double all_high = 2.0 - 4 * 30e6 / 200e6 - 6 * 30e6 / 20e6;
  REQUIRE(left > all_high + 5.0);
}
