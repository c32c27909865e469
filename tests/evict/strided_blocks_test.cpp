#include <evict/properties.hpp>
#include <kvcondense/budget/uniform.hpp>
#include <kvcondense/evict/strided_blocks.hpp>

using namespace kvcondense;
using namespace kvcondense::test;

namespace {

using evict::StridedBlocks;

/// Tokens below `seen` that a query of token `seen` may see, read off the rule.
Ints allowed(const StridedBlocks& p, index_t seen, index_t heads, index_t head) {
  Ints tokens;
  const index_t step = p.shift ? std::max<index_t>(1, p.every / heads) : 0;
  for (index_t t = 0; t < seen; ++t) {
    const index_t a = seen / p.block, b = t / p.block;
    if (a - b < p.local || (b + 1 + head * step) % p.every == 0) tokens.push_back(t);
  }
  return tokens;
}

}  // namespace

TEST_CASE("strided_blocks: chunks of any size leave what later queries may see", "[evict][strided_blocks]") {
  const index_t heads = GENERATE(1, 2, 3, 8), block = GENERATE(1, 4, 7), local = GENERATE(1, 2, 5), every = GENERATE(1, 3, 8);
  const bool shift = GENERATE(false, true);
  const StridedBlocks p{.block = block, .local = local, .every = every, .shift = shift};
  CAPTURE(heads, block, local, every, shift);
  auto d = drive({.q_heads = 7 * heads, .kv_heads = heads}, p);
  std::uint64_t draw = 0;
  while (d.seen < 120) {
    REQUIRE(d.step(1 + static_cast<index_t>(9 * random_uniform(1, ++draw)), Phase::prefill_chunk) == Status::ok);
    for (index_t h = 0; h < heads; ++h) REQUIRE(d.held[at(h)] == allowed(p, d.seen, heads, h));
  }
}

TEST_CASE("strided_blocks: heads that shift see every block together", "[evict][strided_blocks]") {
  auto d = drive({.q_heads = 8, .kv_heads = 8}, StridedBlocks{.block = 4, .local = 1, .every = 8});
  REQUIRE(d.step(320, Phase::prefill_end) == Status::ok);
  std::vector<bool> seen(320);
  for (const auto& row : d.held) {
    REQUIRE(row.size() == 40);
    for (const index_t t : row) seen[at(t)] = true;
  }
  REQUIRE(std::count(seen.begin(), seen.end(), true) == 320);
}

TEST_CASE("strided_blocks: what is taken away around a slot does not change what it is", "[evict][strided_blocks]") {
  const StridedBlocks p{.block = 2, .local = 2, .every = 3};
  auto d = drive({}, p);
  REQUIRE(d.step(20, Phase::prefill_end) == Status::ok);
  REQUIRE(d.held[0] == allowed(p, 20, 1, 0));
  d.held[0].erase(d.held[0].begin()), d.lane[0][0].erase(d.lane[0][0].begin());  // one of the sampled
  Ints want = d.held[0];
  REQUIRE(d.step(10, Phase::decode) == Status::ok);
  want = allowed(p, 30, 1, 0);
  want.erase(want.begin());
  REQUIRE(d.held[0] == want);
}

TEST_CASE("strided_blocks: under a budget of one size the samples stay first", "[evict][strided_blocks]") {
  auto d = drive({}, budget::Uniform{StridedBlocks{.block = 2, .local = 2, .every = 4}, 7});
  REQUIRE(d.step(40, Phase::prefill_end) == Status::ok);
  REQUIRE(d.held[0] == Ints{6, 7, 14, 15, 22, 38, 39});
}

TEST_CASE("strided_blocks: keeps the promises of a pipeline", "[evict][strided_blocks]") {
  // At a block's end nothing is local with one block, and the newest token may leave.
  check_promises(StridedBlocks{.block = 3, .local = 5, .every = 8, .shift = false},
                 StridedBlocks{.block = 3, .local = 200, .every = 8, .shift = false}, {.fills_budget = false});
  check_promises(StridedBlocks{.block = 3, .local = 5, .every = 8}, StridedBlocks{.block = 3, .local = 200, .every = 8},
                 {.fills_budget = false, .heads_alone = false});
}

TEST_CASE("strided_blocks: sizes out of range are refused", "[evict][strided_blocks]") {
  for (const index_t bad : {index_t{-1}, index_t{0}, index_t{1} << 62}) {
    REQUIRE(StridedBlocks{.block = bad}.validate({}) == Status::invalid_argument);
    REQUIRE(StridedBlocks{.local = bad}.validate({}) == Status::invalid_argument);
    REQUIRE(StridedBlocks{.every = bad}.validate({}) == Status::invalid_argument);
  }
  REQUIRE(StridedBlocks{.block = 1, .local = 1, .every = 1}.validate({}) == Status::ok);
}
