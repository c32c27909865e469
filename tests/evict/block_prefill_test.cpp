#include <evict/properties.hpp>
#include <kvcondense/evict/block_prefill.hpp>
#include <kvcondense/evict/every.hpp>
#include <kvcondense/evict/exit_threshold.hpp>
#include <kvcondense/evict/h2o.hpp>
#include <kvcondense/evict/keydiff.hpp>
#include <kvcondense/evict/snapkv.hpp>

using namespace kvcondense;
using namespace kvcondense::test;
using evict::BlockPrefill;

namespace {

const PerToken mass = [](index_t h, index_t t) { return number(9, h, t); };

template <class D>
Ints lengths(D d, std::initializer_list<index_t> chunks, index_t last, std::initializer_list<index_t> answer = {}) {
  d.key = [](index_t h, index_t t, index_t c) { return static_cast<float>(number(3, h, 4 * t + c)); };
  Ints n;
  const auto step = [&](index_t more, Phase phase) {
    REQUIRE(d.step(more, phase, mass) == Status::ok);
    n.push_back(static_cast<index_t>(d.held[0].size()));
  };
  for (const index_t more : chunks) step(more, Phase::prefill_chunk);
  step(last, Phase::prefill_end);
  for (const index_t more : answer) step(more, Phase::decode);
  return n;
}

}  // namespace

TEST_CASE("block_prefill: memory stays within budget and a block while a prompt comes", "[evict][block_prefill]") {
  const evict::SnapKV policy{.tokens = 12, .window = 4};
  REQUIRE(lengths(drive({}, policy), {16, 16, 16}, 16, {1}) == Ints{16, 32, 48, 12, 13});
  REQUIRE(lengths(drive({}, BlockPrefill{policy, 16}), {16, 16, 16}, 16, {1}) == Ints{12, 12, 12, 12, 13});
  REQUIRE(lengths(drive({}, BlockPrefill{policy, 32}), {16, 16, 16}, 16, {1}) == Ints{16, 12, 28, 12, 13});
  REQUIRE(lengths(drive({}, BlockPrefill{policy, 16}), {10, 10, 10}, 1) == Ints{10, 12, 22, 12});  // at 20, not at 30
}

TEST_CASE("block_prefill: each block is what the policy makes of it alone", "[evict][block_prefill]") {
  const evict::SnapKV policy{.tokens = 12, .window = 4};
  auto blocks = drive({.q_heads = 2, .kv_heads = 2}, BlockPrefill{policy, 8});
  auto by_hand = drive({.q_heads = 2, .kv_heads = 2}, policy);
  for (int i = 0; i < 6; ++i) {
    REQUIRE(blocks.step(8, Phase::prefill_chunk, mass) == Status::ok);
    REQUIRE(by_hand.step(8, Phase::prefill_end, mass) == Status::ok);
    REQUIRE(blocks.held == by_hand.held);
  }
}

TEST_CASE("block_prefill: slows a policy that acts in every chunk", "[evict][block_prefill]") {
  const evict::KeyDiff policy{.tokens = 8, .recent = 2};
  REQUIRE(lengths(drive({}, policy), {10, 10, 10}, 2, {1, 1}) == Ints{8, 8, 8, 8, 8, 8});
  REQUIRE(lengths(drive({}, BlockPrefill{policy, 20}), {10, 10, 10}, 2, {1, 1}) == Ints{10, 8, 18, 8, 8, 8});
  REQUIRE(lengths(drive({}, evict::Every{BlockPrefill{policy, 20}, 2}), {10, 10, 10}, 2, {1, 1}) == Ints{10, 8, 18, 8, 9, 8});
}

TEST_CASE("block_prefill: keeps the promises of a pipeline", "[evict][block_prefill]") {
  check_promises(BlockPrefill{evict::H2O{.heavy = 20, .recent = 4}, 5}, BlockPrefill{evict::H2O{.heavy = 300, .recent = 4}, 5});
}

TEST_CASE("block_prefill: no tokens are no block", "[evict][block_prefill]") {
  REQUIRE(BlockPrefill{evict::H2O{}, 0}.validate({}) == Status::invalid_argument);
  REQUIRE(BlockPrefill{evict::H2O{.heavy = -1}, 4}.validate({}) == Status::invalid_argument);
  REQUIRE(BlockPrefill{evict::H2O{}, 1}.validate({}) == Status::ok);
  REQUIRE(BlockPrefill{evict::ExitThreshold{evict::H2O{}}, 4}.validate({}) == Status::incompatible);
}
