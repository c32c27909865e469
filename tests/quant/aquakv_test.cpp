#include <cmath>
#include <vector>

#include <catch2/catch.hpp>

#include <kvcondense/quant/aquakv.hpp>
#include <kvcondense/quant/blocks/grid_rows.hpp>
#include <support/fill.hpp>

using namespace kvcondense;
using quant::Aquakv;
using quant::GridRows;

namespace {

/// A row through its codes, on top of zeros.
std::vector<float> round_trip(const GridRows& code, int bits, const std::vector<float>& row, std::vector<half>* lengths = nullptr) {
  std::vector<half> own(static_cast<std::size_t>(code.pieces()));
  std::vector<std::uint8_t> symbols(static_cast<std::size_t>(code.pairs()));
  std::vector<float> scratch(static_cast<std::size_t>(code.stored())), back(row.size());
  const auto grid = quant::normal_grid(bits);
  code.encode(grid, row.data(), own.data(), symbols.data(), scratch.data());
  code.take_points(grid, symbols.data(), scratch.data());
  code.add(own.data(), scratch.data(), back.data());
  if (lengths != nullptr) *lengths = own;
  return back;
}

double square(const std::vector<float>& x) {
  double sum = 0;
  for (const float v : x) sum += static_cast<double>(v) * static_cast<double>(v);
  return sum;
}

double part_lost(const std::vector<float>& a, const std::vector<float>& b) {
  std::vector<float> d(a.size());
  for (std::size_t i = 0; i < a.size(); ++i) d[i] = a[i] - b[i];
  return square(d) / square(a);
}

}  // namespace

TEST_CASE("aquakv: grids leave of normal numbers what they are said to, and no neighbour of a point is better", "[quant][aquakv]") {
  // Sums over a fine lattice in place of the integral.
  const double step = 0.05;
  for (const auto& [bits, published] : {std::pair{2, 0.10759}, {3, 0.02980}, {4, 0.00793}}) {
    const auto grid = quant::normal_grid(bits);
    REQUIRE(grid.size() == std::size_t{1} << (2 * bits));
    double error = 0, all = 0;
    std::vector<double> sum_x(grid.size()), sum_y(grid.size()), weight(grid.size());
    for (double x = -6; x < 6; x += step)
      for (double y = -6; y < 6; y += step) {
        const double w = std::exp(-0.5 * (x * x + y * y));
        const std::size_t best = quant::nearest_point(grid, static_cast<float>(x), static_cast<float>(y));
        const double dx = x - static_cast<double>(grid[best].x), dy = y - static_cast<double>(grid[best].y);
        error += w * (dx * dx + dy * dy), all += w;
        sum_x[best] += w * x, sum_y[best] += w * y, weight[best] += w;
        if (bits > 2 || std::fabs(x) > 2) continue;
        for (const auto& g : grid)
          REQUIRE(dx * dx + dy * dy <= std::pow(x - static_cast<double>(g.x), 2) + std::pow(y - static_cast<double>(g.y), 2) + 1e-5);
      }
    REQUIRE(error / (2 * all) == Approx(published).epsilon(0.005));
    // Lloyd's condition: a point is the mean of what is nearest to it.
    for (std::size_t i = 0; i < grid.size(); ++i) {
      REQUIRE(weight[i] > 0);
      if (weight[i] / all < 1e-3) continue;  // few lattice points
      REQUIRE(sum_x[i] / weight[i] == Approx(static_cast<double>(grid[i].x)).margin(0.02));
      REQUIRE(sum_y[i] / weight[i] == Approx(static_cast<double>(grid[i].y)).margin(0.02));
    }
  }
  REQUIRE(quant::normal_grid(1).empty());
  REQUIRE(quant::normal_grid(5).empty());
}

TEST_CASE("aquakv: of equally near points the first, of far ones the outermost", "[quant][aquakv]") {
  const quant::PlanePoint two[] = {{1, 0}, {-1, 0}, {1, 0}};
  REQUIRE(quant::nearest_point(two, 0.0f, 3.0f) == 0);
  REQUIRE(quant::nearest_point(two, -0.1f, 0.0f) == 1);
  REQUIRE(quant::nearest_point(two, 5.0f, 0.0f) == 0);
  REQUIRE(quant::nearest_point(quant::normal_grid(4), 1e9f, 0.0f) > 200);
}

TEST_CASE("aquakv: rows lose what the grid loses, whatever their length, and outliers cost no more", "[quant][aquakv]") {
  for (const auto& [bits, lost] : {std::pair{2, 0.1076}, {3, 0.0298}, {4, 0.0079}})
    for (const index_t channels : {1024, 256}) {
      const GridRows code = GridRows::of(channels, 1024);
      std::vector<float> x(static_cast<std::size_t>(channels));
      for (const float scale : {1e-3f, 1.0f, 100.0f}) {
        double sum = 0;
        for (std::uint64_t t = 0; t < 20; ++t) {
          test::fill_normal(x.data(), x.size(), t + 1);
          for (float& v : x) v *= scale;
          x[3] *= 12.0f;
          sum += part_lost(x, round_trip(code, bits, x)) / 20;
        }
        CAPTURE(bits, channels, scale);
        REQUIRE(sum == Approx(lost).epsilon(0.15));
      }
    }
}

TEST_CASE("aquakv: lengths are stored in 16 bits and coded with as they are stored", "[quant][aquakv]") {
  const GridRows code = GridRows::of(64, 64);
  std::vector<float> x(64), scaled(64);
  std::vector<half> lengths;
  test::fill_normal(x.data(), x.size(), 5);
  round_trip(code, 4, x, &lengths);
  REQUIRE(static_cast<double>(static_cast<float>(lengths[0])) == Approx(std::sqrt(square(x))).epsilon(1e-3));
  // Some symbols would be others with lengths that nobody rounded.
  const auto grid = quant::normal_grid(4);
  std::vector<std::uint8_t> symbols(32);
  std::vector<float> scratch(64);
  index_t other = 0;
  for (std::uint64_t t = 0; t < 2000; ++t) {
    test::fill_normal(x.data(), x.size(), t + 1);
    code.encode(grid, x.data(), lengths.data(), symbols.data(), scratch.data());
    scaled = x;
    prim::hadamard_mix(64, scaled.data(), 64);
    const float stored = 8.0f / static_cast<float>(lengths[0]), exact = 8.0f / static_cast<float>(std::sqrt(square(scaled)));
    for (std::size_t i = 0; i < 32; ++i) {
      REQUIRE(symbols[i] == quant::nearest_point(grid, scaled[2 * i] * stored, scaled[2 * i + 1] * stored));
      other += symbols[i] != quant::nearest_point(grid, scaled[2 * i] * exact, scaled[2 * i + 1] * exact);
    }
  }
  REQUIRE(other > 0);
  for (const float v : round_trip(code, 2, std::vector<float>(64, 0.0f), &lengths)) REQUIRE(v == 0.0f);
  for (const float huge : {1e30f, 65504.0f}) {
    const auto back = round_trip(code, 2, std::vector<float>(64, huge), &lengths);
    REQUIRE(static_cast<float>(lengths[0]) == 65504.0f);
    for (const float v : back) REQUIRE(std::isfinite(v));
  }
}

TEST_CASE("aquakv: rows of any length, in pieces of the largest power of two that divides it", "[quant][aquakv]") {
  const auto piece = [](index_t channels, index_t most) { return GridRows::of(channels, most).piece; };
  REQUIRE(piece(1024, 1024) == 1024);
  REQUIRE(piece(4096, 1024) == 1024);
  REQUIRE(piece(640, 1024) == 128);
  REQUIRE(piece(640, 32) == 32);
  REQUIRE(piece(8 * 112, 1024) == 128);
  REQUIRE(piece(3, 1024) == 16);
  for (const index_t channels : {1, 2, 3, 15, 16, 17, 40, 64 * 3, 80, 96, 112, 128 * 5}) {
    const GridRows code = GridRows::of(channels, 1024);
    REQUIRE(code.stored() >= channels);
    REQUIRE(code.stored() < channels + 16);
    REQUIRE(code.pairs() * 2 == code.pieces() * code.piece);
    std::vector<float> x(static_cast<std::size_t>(channels));
    test::fill_normal(x.data(), x.size(), 2);
    REQUIRE(part_lost(x, round_trip(code, 4, x)) < 0.06);
  }
}

TEST_CASE("aquakv: what cannot be is refused, and layers get their bits", "[quant][aquakv]") {
  REQUIRE(Aquakv{}.validate() == Status::ok);
  REQUIRE(Aquakv{}.bits(true, 0) == 4);
  REQUIRE(Aquakv{.key_bits = 3}.bits(true, 1) == 3);
  REQUIRE(Aquakv{.key_bits = 3}.bits(false, 1) == 2);
  const auto refused = [](auto&& change) {
    Aquakv m;
    change(m);
    return m.validate() == Status::invalid_argument;
  };
  REQUIRE(refused([](Aquakv& m) { m.key_bits = 1; }));
  REQUIRE(refused([](Aquakv& m) { m.value_bits = 5; }));
  REQUIRE(refused([](Aquakv& m) { m.first_bits = 0; }));
  for (const index_t g : {0, 8, 48, 2048, -16}) REQUIRE(refused([&](Aquakv& m) { m.group = g; }));
  REQUIRE(refused([](Aquakv& m) { m.sinks = -1; }));
  REQUIRE(refused([](Aquakv& m) { m.window = -1; }));
  REQUIRE(refused([](Aquakv& m) { m.chunk = 0; }));
  for (const index_t n : {0, 1025}) REQUIRE(refused([&](Aquakv& m) { m.sub_chunk = n; }));
}
