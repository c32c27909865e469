#include <bit>
#include <cstdint>
#include <vector>

#include <catch2/catch.hpp>

#include <kvcondense/backend/cpu/slot_tiles.hpp>
#include <kvcondense/cpu.hpp>
#include <support/guarded.hpp>
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
  prim::cpu::add_weighted(rows, dim, sum.data());
  bool same = true;
  for (std::size_t d = 0; d < sum.size(); ++d) same = same && std::bit_cast<std::uint64_t>(sum[d]) == std::bit_cast<std::uint64_t>(want[d]);
  REQUIRE(same);
}

TEST_CASE("slot_tiles: square distances have the bits of sixteen sums that are halved", "[prim][slot_tiles]") {
  std::mt19937 random(9);
  std::normal_distribution<float> normal;
  for (const index_t dim : {1, 3, 16, 17, 64, 80, 96, 112, 128, 256})
    for (const index_t count : {1, 2, 4, 7, 64}) {
      CAPTURE(dim, count);
      std::vector<float> centre(static_cast<std::size_t>(dim)), rows(static_cast<std::size_t>(count * dim));
      for (float& x : centre) x = normal(random);
      for (float& x : rows) x = normal(random);
      test::Guarded<float> out(static_cast<std::size_t>(count));
      prim::cpu::square_distances(centre.data(), rows.data(), count, dim, out.data());
      REQUIRE(out.ok());
      for (index_t i = 0; i < count; ++i) {
        float sum[16] = {};
        double exact = 0.0;
        for (index_t d = 0; d < dim; ++d) {
          const float apart = centre[static_cast<std::size_t>(d)] - rows[static_cast<std::size_t>(i * dim + d)];
          sum[d % 16] += apart * apart, exact += static_cast<double>(apart) * static_cast<double>(apart);
        }
        for (const int left : {8, 4, 2, 1})
          for (int j = 0; j < left; ++j) sum[j] += sum[j + left];
        REQUIRE(out.data()[i] == sum[0]);
        REQUIRE(static_cast<double>(sum[0]) == Approx(exact).epsilon(1e-5));
      }
    }
}
