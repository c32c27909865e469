#include <cmath>
#include <vector>

#include <catch2/catch.hpp>

#include <kvcondense/cpu.hpp>
#include <support/guarded.hpp>

using namespace kvcondense;

TEST_CASE("block_stride: marks the newest places by their tokens, and leaves the others", "[prim][block_stride]") {
  const index_t offset[] = {0, 5, 5, 16};
  for (index_t block = 1; block < 5; ++block)
    for (index_t every = 1; every < 5; ++every)
      for (index_t shift = 0; shift < 3; ++shift)
        for (const index_t count : {0, 1, 4, 9}) {
          CAPTURE(block, every, shift, count);
          test::Guarded<float> marks(16, 0.5f);
          Context<Cpu> ctx;
          REQUIRE(prim::BlockStride<Cpu>::mark(ctx, {block, every, shift}, 30, count, {marks.data(), offset, 3}) == Status::ok);
          for (index_t h = 0; h < 3; ++h)
            for (index_t j = offset[h]; j < offset[h + 1]; ++j) {
              const index_t token = 30 + count - (offset[h + 1] - j);
              const float want = token < 30 ? 0.5f : (token / block + 1 + h * shift) % every == 0 ? 1.0f : 0.0f;
              REQUIRE(marks.data()[j] == want);
            }
          REQUIRE(marks.ok());
        }
}

TEST_CASE("block_stride: patterns of nothing are refused", "[prim][block_stride]") {
  const index_t offset[] = {0, 1};
  float mark = 7.0f;
  Context<Cpu> ctx;
  for (const prim::BlockPattern& p : {prim::BlockPattern{0, 1, 0}, {1, 0, 0}, {1, 1, -1}})
    REQUIRE(prim::BlockStride<Cpu>::mark(ctx, p, 0, 1, {&mark, offset, 1}) == Status::invalid_argument);
  REQUIRE(mark == 7.0f);
}
