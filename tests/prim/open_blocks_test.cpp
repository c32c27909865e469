#include <limits>
#include <vector>

#include <catch2/catch.hpp>

#include <kvcondense/cpu.hpp>
#include <support/guarded.hpp>

using namespace kvcondense;

namespace {

constexpr float inf = std::numeric_limits<float>::infinity();

}  // namespace

TEST_CASE("open_blocks: a block is open when a whole block follows it", "[prim][open_blocks]") {
  for (index_t block = 1; block < 5; ++block)
    for (index_t sinks = 0; sinks < 4; ++sinks)
      for (index_t settled = 0; settled < 6; ++settled)
        for (index_t n = settled; n < 20; ++n) {
          CAPTURE(block, sinks, settled, n);
          const index_t offset[] = {0, n};
          test::Guarded<float> lane(static_cast<std::size_t>(n), 0.5f), scores(static_cast<std::size_t>(n), 7.0f);
          for (index_t j = 0; j < settled; ++j) lane.data()[j] = 1.0f;
          Context<Cpu> ctx;
          REQUIRE(prim::OpenBlocks<Cpu>::mark(ctx, {lane.data(), offset, 1}, sinks, block, {scores.data(), offset, 1}) ==
                  Status::ok);
          index_t first = std::max(sinks, settled), open = 0;
          for (index_t b = first; b + 2 * block <= n; b += block) open += block;
          for (index_t j = 0; j < n; ++j)
            REQUIRE(scores.data()[j] == (j >= first && j < first + open ? 0.0f : inf));
          index_t count = -1;
          REQUIRE(prim::OpenBlocks<Cpu>::count(ctx, {scores.data(), offset, 1}, nullptr, &count) == Status::ok);
          REQUIRE(count == open);
          const prim::Ends ends{first + 1, 0};
          REQUIRE(prim::OpenBlocks<Cpu>::count(ctx, {scores.data(), offset, 1}, &ends, &count) == Status::ok);
          REQUIRE(count == std::max<index_t>(0, open - 1));
          REQUIRE(prim::OpenBlocks<Cpu>::settle(ctx, {scores.data(), offset, 1}, {lane.data(), offset, 1}) == Status::ok);
          for (index_t j = 0; j < n; ++j)
            REQUIRE(lane.data()[j] == (j < settled || (open > 0 && j < first + open) ? 1.0f : 0.5f));
          REQUIRE((lane.ok() && scores.ok()));
        }
}

TEST_CASE("open_blocks: blocks of nothing are refused", "[prim][open_blocks]") {
  const index_t offset[] = {0, 1};
  float lane = 0.0f, score = 7.0f;
  Context<Cpu> ctx;
  REQUIRE(prim::OpenBlocks<Cpu>::mark(ctx, {&lane, offset, 1}, 0, 0, {&score, offset, 1}) == Status::invalid_argument);
  REQUIRE(score == 7.0f);
}
