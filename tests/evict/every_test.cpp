#include <evict/properties.hpp>
#include <kvcondense/budget/uniform.hpp>
#include <kvcondense/evict/every.hpp>
#include <kvcondense/evict/exit_threshold.hpp>
#include <kvcondense/evict/h2o.hpp>
#include <kvcondense/evict/keydiff.hpp>
#include <kvcondense/evict/snapkv.hpp>

using namespace kvcondense;
using namespace kvcondense::test;
using evict::Every;

namespace {

const PerToken mass = [](index_t h, index_t t) { return number(9, h, t); };

template <class D>
Ints lengths(D d, index_t prompt, std::initializer_list<index_t> answer) {
  d.key = [](index_t h, index_t t, index_t c) { return static_cast<float>(number(3, h, 4 * t + c)); };
  Ints n;
  REQUIRE(d.step(prompt, Phase::prefill_end, mass) == Status::ok);
  n.push_back(static_cast<index_t>(d.held[0].size()));
  for (const index_t more : answer) {
    REQUIRE(d.step(more, Phase::decode, mass) == Status::ok);
    n.push_back(static_cast<index_t>(d.held[0].size()));
  }
  return n;
}

}  // namespace

TEST_CASE("every: condenses after every so many generated tokens, as the oracle does", "[evict][every]") {
  const auto oracle = eviction_oracle("block_triggers")["every_M"];
  const index_t budget = oracle["target"], prompt = oracle["prompt"], m = oracle["M"];
  // A policy that acts at every step, and a prompt that it would cut: the oracle's is not cut.
  struct Late : evict::H2O {
    auto pipeline() const { return evict::H2O::pipeline().with_trigger(evict::Never{}); }
  };
  const Late policy{{.heavy = budget - 2, .recent = 2}};
  Ints want{prompt};
  for (const index_t n : oracle["after_step"]) want.push_back(n);
  REQUIRE(lengths(drive({}, Every{policy, m}), prompt, {1, 1, 1, 1, 1, 1, 1, 1, 1, 1}) == want);
}

TEST_CASE("every: a policy that condenses a prompt once goes on, one that never stops is slowed", "[evict][every]") {
  const evict::SnapKV once{.tokens = 12, .window = 4};
  REQUIRE(lengths(drive({}, once), 30, {1, 1, 1, 1}) == Ints{12, 13, 14, 15, 16});
  REQUIRE(lengths(drive({}, Every{once, 3}), 30, {1, 1, 1, 1}) == Ints{12, 13, 14, 12, 13});
  const evict::H2O always{.heavy = 8, .recent = 4};
  REQUIRE(lengths(drive({}, always), 30, {1, 1, 1, 1}) == Ints{12, 12, 12, 12, 12});
  REQUIRE(lengths(drive({}, Every{always, 3}), 30, {1, 1, 1, 1}) == Ints{12, 13, 14, 12, 13});
  REQUIRE(lengths(drive({}, Every{budget::Uniform{always, 9}, 3}), 30, {1, 1, 1}) == Ints{9, 10, 11, 9});
}

TEST_CASE("every: counts tokens, not calls", "[evict][every]") {
  const Every policy{evict::H2O{.heavy = 8, .recent = 4}, 4};
  REQUIRE(lengths(drive({}, policy), 20, {3, 3, 3, 9}) == Ints{12, 15, 12, 12, 12});
  REQUIRE(lengths(drive({}, policy), 21, {1, 2, 1, 1}) == Ints{12, 13, 15, 12, 13});
  auto d = drive({}, policy);
  REQUIRE(d.step(20, Phase::prefill_end, mass) == Status::ok);
  REQUIRE(d.step(3, Phase::decode, mass) == Status::ok);
  REQUIRE(d.step(5, Phase::prefill_end, mass) == Status::ok);  // a second prompt starts the count anew
  REQUIRE(d.step(3, Phase::decode, mass) == Status::ok);
  REQUIRE(d.held[0].size() == 15);
}

TEST_CASE("every: chunks of a prompt are the policy's own affair", "[evict][every]") {
  auto d = drive({}, Every{evict::KeyDiff{.tokens = 8, .recent = 2}, 100});
  d.key = [](index_t h, index_t t, index_t c) { return static_cast<float>(number(3, h, 4 * t + c)); };
  REQUIRE(d.step(20, Phase::prefill_chunk) == Status::ok);
  REQUIRE(d.held[0].size() == 8);
}

TEST_CASE("every: keeps the promises of a pipeline", "[evict][every]") {
  check_promises(Every{evict::H2O{.heavy = 20, .recent = 4}, 5}, Every{evict::H2O{.heavy = 300, .recent = 4}, 5});
}

TEST_CASE("every: no tokens are no step", "[evict][every]") {
  REQUIRE(Every{evict::H2O{}, 0}.validate({}) == Status::invalid_argument);
  REQUIRE(Every{evict::H2O{.heavy = -1}, 4}.validate({}) == Status::invalid_argument);
  REQUIRE(Every{evict::H2O{}, 1}.validate({}) == Status::ok);
  REQUIRE(Every{evict::ExitThreshold{evict::H2O{}}, 4}.validate({}) == Status::incompatible);
}
