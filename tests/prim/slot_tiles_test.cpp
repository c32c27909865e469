#include <bit>
#include <cstdint>
#include <vector>

#include <catch2/catch.hpp>

#include <kvcondense/backend/cpu/slot_tiles.hpp>
#include <kvcondense/cpu.hpp>
#include <support/fill.hpp>

using namespace kvcondense;
using prim::cpu::most_tile_rows;

TEST_CASE("slot_tiles: every slot comes once, in order, and none that nobody wants", "[prim][slot_tiles]") {
  const index_t dim = GENERATE(1, 80, 128, 129, 256), slots = GENERATE(1, 31, 64, 65, 200);
  const index_t first = GENERATE(0, 1, 30);
  std::vector<float> rows(static_cast<std::size_t>(2 * slots * dim));
  test::fill_normal(rows.data(), rows.size(), 3);
  const DenseRows dense(dense_view(static_cast<const float*>(rows.data()), 2, slots, dim));
  index_t next = first;
  bool same = true, all_wanted = true;
  const auto wanted = [&](index_t at, index_t n) {
    if (at > 40) next = at + n;
    return at <= 40;
  };
  prim::cpu::for_slot_tiles(dense, 1, first, slots, [&](index_t at, const float* x, index_t n) {
    all_wanted = all_wanted && at <= 40;
    REQUIRE(at == next);
    REQUIRE(n >= 1);
    REQUIRE(n <= most_tile_rows);
    for (index_t i = 0; i < n * dim; ++i) same = same && x[i] == rows[static_cast<std::size_t>((slots + at) * dim + i)];
    next += n;
  }, wanted);
  REQUIRE(same);
  REQUIRE(all_wanted);
  REQUIRE(next == std::max(first, slots));
}

TEST_CASE("slot_tiles: weighted sums have the bits of rows that are added one by one", "[prim][slot_tiles]") {
  const index_t dim = GENERATE(1, 7, 8, 31, 32, 33, 64, 80, 96, 112, 128, 256), count = GENERATE(0, 1, 2, 17, 64);
  std::vector<float> x(static_cast<std::size_t>(most_tile_rows * dim));
  test::fill_normal(x.data(), x.size(), 4);
  std::vector<double> sum(static_cast<std::size_t>(dim), 0.1), want = sum;
  prim::cpu::WeightedRows rows;
  for (index_t i = 0; i < count; ++i) {
    const float* row = x.data() + (i * 5 % most_tile_rows) * dim;
    const double weight = 1.0 / (3.0 + static_cast<double>(i));
    rows.take(row, weight);
    for (index_t d = 0; d < dim; ++d) want[static_cast<std::size_t>(d)] += weight * static_cast<double>(row[d]);
  }
  rows.add_to(sum.data(), dim);
  bool same = true;
  for (std::size_t d = 0; d < sum.size(); ++d) same = same && std::bit_cast<std::uint64_t>(sum[d]) == std::bit_cast<std::uint64_t>(want[d]);
  REQUIRE(same);
}
