// How calls of attention are cut into pieces, and how blocks share them.

#include <random>
#include <vector>

#include <kvcondense/backend/cuda/piece_walk.cuh>

#include "device.hpp"

using namespace kvcondense;
using namespace kvcondense::prim::cuda_kernels;
using test::at;

namespace {

constexpr int threads = 128;

struct Visit {
  index_t block = -1, times = 0, order = 0;
};

/// Writes down which block comes to which piece, and as its how manieth.
__global__ void __launch_bounds__(threads)
    walk_pieces(const index_t* slots, index_t heads, PieceRule rule, index_t most, Visit* visits) {
  index_t order = 0;
  for (PieceWalk<threads> walk(slots, heads, rule); walk.any(); walk.next()) {
    if (threadIdx.x == 0) {
      Visit& v = visits[(walk.head() * most + walk.piece()) * gridDim.x + blockIdx.x];
      v.block = blockIdx.y, v.order = order++, v.times += 1;
    }
  }
}

index_t work_of(const PieceRule& rule, index_t slots, index_t piece) {
  const index_t size = rule.piece_slots(slots), left = slots - piece * size;
  return cuda::covering(left < size ? left : size, work_tile) + 1;
}

/// Each piece is one block's, blocks go through them in their order, and none has more than its
/// share and a piece.
void shared_out(const std::vector<index_t>& slots, const PieceRule& rule, index_t runs,
                index_t bound) {
  test::Device device;
  const auto heads = static_cast<index_t>(slots.size());
  const index_t most = rule.most(bound);
  test::OnDevice<index_t> lengths(device, slots);
  test::OnDevice<Visit> on_device(device, std::vector<Visit>(at(heads * most * rule.row_blocks)));
  REQUIRE(cuda::launch(device.context(), walk_pieces, {rule.row_blocks, runs}, threads, 1024,
                       lengths.data(), heads, rule, most, on_device.data()) == Status::ok);
  const std::vector<Visit> visits = on_device.read();
  CAPTURE(heads, runs, rule.row_blocks);
  for (index_t rows = 0; rows < rule.row_blocks; ++rows) {
    index_t block = 0, order = 0, all = 0, longest = 0, wrong = 0;
    std::vector<index_t> of_block(at(runs));
    for (index_t h = 0; h < heads; ++h) {
      const index_t pieces = rule.pieces(slots[at(h)]);
      wrong += pieces > most;
      index_t of_head = 0;
      for (index_t p = 0; p < most; ++p) {
        const Visit& v = visits[at((h * most + p) * rule.row_blocks + rows)];
        wrong += v.times != (p < pieces);
        if (p >= pieces || v.times == 0) continue;
        wrong += v.block == block ? v.order != order : v.block < block || v.order != 0;
        block = v.block, order = v.order + 1;
        const index_t work = work_of(rule, slots[at(h)], p);
        of_block[at(block)] += work, of_head += work, longest = std::max(longest, work);
      }
      wrong += of_head != rule.head_work(slots[at(h)]);
      all += of_head;
    }
    for (const index_t work : of_block) wrong += work >= all / runs + 1 + longest;
    REQUIRE(wrong == 0);
  }
}

}  // namespace

TEST_CASE("cuda pieces: how a head is cut depends on its own length and the rows of the call") {
  constexpr PieceRule few, eight{.row_blocks = 8}, halves{.least = 7},
      many{.row_blocks = most_pieces};
  static_assert(few.pieces(0) == 1 && few.pieces(1) == 1 && few.pieces(64) == 1 &&
                few.pieces(65) == 2);
  static_assert(few.pieces(1024) == 16 && few.pieces(1025) == 9 && few.piece_slots(1025) == 128);
  static_assert(few.pieces(4096) == 32 && few.pieces(16384) == 64 && few.pieces(65536) == 128 &&
                few.pieces(65537) == 65);
  static_assert(few.pieces(index_t{1} << 31) == 128);
  static_assert(halves.pieces(128) == 1 && halves.pieces(2048) == 16 && halves.pieces(4096) == 16 &&
                halves.pieces(1 << 17) == 128);
  static_assert(eight.pieces(128) == 2 && eight.pieces(129) == 2 && eight.pieces(65536) == 16);
  static_assert(many.pieces(64) == 1 && many.pieces(100000) == 1 &&
                many.piece_slots(100000) == 1 << 17);
}

TEST_CASE("cuda pieces: memory is for the most that shorter heads and fewer rows have") {
  for (const int least : {6, 7})
    for (const index_t rows : {1, 3, 8, 9, 24, 64, 200, 1000, 2000}) {
      const PieceRule rule{.least = least, .row_blocks = cuda::covering(rows, row_block)};
      index_t most = 0;
      for (index_t n = 0; n <= 70000; n += n < 2500 ? 1 : 251) {
        most = std::max(most, rule.pieces(n));
        if (n % 7 != 0) continue;
        CAPTURE(least, rows, n);
        const index_t partials = most_partials(n, rows);
        REQUIRE((rule.most(n) >= most && partials >= most * rows &&
                 partials <= std::max(rows, row_block * most_pieces)));
        REQUIRE((partials <= most_partials(n, rows + 1) && partials <= most_partials(n + 1, rows)));
      }
      if (least == 6) REQUIRE(rule.most(70000) == most);  // no more than there can be
    }
  CHECK(PieceRule{.row_blocks = 0}.most(3000) == PieceRule{}.most(3000));  // a call of no rows
  CHECK(most_partials(3000, 0) == 0);
}

TEST_CASE("cuda pieces: blocks have equal shares of ragged heads") {
  std::mt19937 random(3);
  std::vector<index_t> some{0, 1, 63, 64, 65, 2500, 0, 0, 4097, 1024, 1025, 7};
  std::vector<index_t> many(at(200));  // more than a block has threads
  for (index_t& n : many)
    n = random() % 4 == 0 ? static_cast<index_t>(random() % 3000)
                          : static_cast<index_t>(random() % 3);
  test::each_way([&] { shared_out(some, {.row_blocks = 2}, 3, 5000); });
  for (const std::vector<index_t>& slots :
       {some, many, {0}, {1}, {4096}, std::vector<index_t>(129, 0), std::vector<index_t>(8, 4096)})
    for (const index_t runs : {1, 3, 60})
      shared_out(slots, runs == 3 ? PieceRule{.least = 7, .row_blocks = 2} : PieceRule{}, runs,
                 5000);
  shared_out(many, {.row_blocks = most_pieces}, 3, 5000);  // heads are whole
}

TEST_CASE("cuda pieces: as many blocks as the device holds at once") {
  cuda::DeviceFacts big{.multiprocessors = 132,
                        .capability = 90,
                        .shared_per_block = 227 << 10,
                        .shared_per_multiprocessor = 228 << 10},
      one = big;
  one.multiprocessors = 1;
  const auto grid = [](const cuda::DeviceFacts& facts, std::size_t shared, index_t row_blocks,
                       index_t most) {
    const cuda::Grid g = walk_grid(facts, 3, shared, row_blocks, most);
    CHECK(g.x == row_blocks);
    CHECK(g.z == 1);
    return g.y;
  };
  CHECK(grid(big, 72704, 1, 100000) == 3 * 132);
  CHECK(grid(big, 78848, 1, 100000) == 2 * 132);  // shared memory is for two
  CHECK(grid(big, 227 << 10, 1, 100000) == 132);
  CHECK(grid(big, 72704, 1, 8) == 8);  // no more than there are pieces
  CHECK(grid(big, 72704, 8, 100000) == 49);
  CHECK(grid(big, 72704, 396, 100000) == 1);
  CHECK(grid(big, 72704, 200, 100000) == 8);  // waves, where half the device would be idle
  CHECK(grid(big, 72704, 397, 100000) == 4);
  CHECK(grid(big, 72704, 8 * (index_t{1} << 17), 8) ==
        1);  // a million tokens, eight queries a head: x alone may be so many
  CHECK(grid(one, 72704, 1, 100000) == 3);
  CHECK(walk_grid(big, 3, 72704, 0, 100000).x == 0);  // no rows
  one.shared_per_multiprocessor = 0;                  // nobody said
  CHECK(grid(one, 72704, 1, 100000) == 1);
  // Eight heads of 4096 slots and a device of 132: 256 pieces, or 128 of tensor cores.
  CHECK(grid(big, 72704, 1, 8 * PieceRule{}.most(4096)) == 256);
}
