#include <evict/properties.hpp>
#include <kvcondense/budget/uniform.hpp>
#include <kvcondense/evict/h2o.hpp>
#include <kvcondense/evict/knorm.hpp>
#include <kvcondense/evict/sink_window.hpp>
#include <kvcondense/evict/snapkv.hpp>

using namespace kvcondense;
using namespace kvcondense::test;

TEST_CASE("uniform: is the policy with another budget", "[budget][uniform]") {
  const CacheShape shape{.q_heads = 4, .kv_heads = 2};
  auto own = drive(shape, evict::SnapKV{.tokens = 20, .window = 4});
  auto given = drive(shape, budget::Uniform{evict::SnapKV{.tokens = 999, .window = 4}, 20});
  const PerToken mass = [](index_t h, index_t t) { return number(1, h, t); };
  REQUIRE(own.step(90, Phase::prefill_end, mass) == Status::ok);
  REQUIRE(given.step(90, Phase::prefill_end, mass) == Status::ok);
  REQUIRE(own.held == given.held);
}

TEST_CASE("uniform: fills what a sink window leaves open with the newest tokens", "[budget][uniform]") {
  auto d = drive({}, budget::Uniform{evict::SinkWindow{.recent = 3, .sinks = 2}, 6});
  REQUIRE(d.step(20, Phase::prefill_end) == Status::ok);
  REQUIRE(d.held[0] == Ints{0, 1, 16, 17, 18, 19});
}

TEST_CASE("uniform: keeps its promises over every kind of policy", "[budget][uniform]") {
  check_promises(budget::Uniform{evict::H2O{.heavy = 1, .recent = 8}, 24}, budget::Uniform{evict::H2O{.heavy = 1, .recent = 8}, 300});
  check_promises(budget::Uniform{evict::Knorm{}, 40}, budget::Uniform{evict::Knorm{}, 300});
}

TEST_CASE("uniform: a budget below what is protected is refused", "[budget][uniform]") {
  REQUIRE(budget::Uniform{evict::H2O{.heavy = 1, .recent = 8}, 7}.validate({}) == Status::invalid_argument);
  REQUIRE(budget::Uniform{evict::H2O{.heavy = 1, .recent = 8}, 8}.validate({}) == Status::ok);
  REQUIRE(budget::Uniform{evict::H2O{.heavy = 1, .recent = 0}, 0}.validate({}) == Status::invalid_argument);
  REQUIRE(budget::Uniform{evict::H2O{.heavy = -1, .recent = 0}, 9}.validate({}) == Status::invalid_argument);
}
