#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include <catch2/catch.hpp>

#include <kvcondense/backend/cpu/simd/choose.hpp>

#include <support/fill.hpp>
#include <support/guarded.hpp>

// The loops over numbers of slots, of every instruction set that this processor has: the bits of plain loops, and so the
// same of all.

using namespace kvcondense;
using prim::cpu::NumberOps;

namespace {

constexpr float infinity = std::numeric_limits<float>::infinity(), not_a_number = std::numeric_limits<float>::quiet_NaN();

template <class F>
void for_isas(F&& use) {
  for (const prim::cpu::Isa isa : prim::cpu::all_isas)
    if (prim::cpu::can_run(isa)) {
      CAPTURE(prim::cpu::row_ops(isa).name);
      use(prim::cpu::number_ops(isa));
    }
}

/// Around the ends of vectors of 4, 8 and 16 numbers, and of eight of them together.
const std::vector<index_t> lengths = {0, 1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129, 143, 255, 256, 257, 300, 512};
const std::vector<index_t> widths = {1, 3, 7, 16, 17, 31, 32, 33, 64, 80, 96, 112, 128, 256};

std::vector<float> normal(index_t n, std::uint64_t seed) {
  std::vector<float> x(static_cast<std::size_t>(n));
  test::fill_normal(x.data(), x.size(), seed);
  return x;
}
/// Many ties, zeros of both signs, infinities and NaN among them.
std::vector<float> unusual(index_t n, std::uint32_t seed) {
  std::mt19937 random(seed);
  std::vector<float> x(static_cast<std::size_t>(n));
  constexpr float kinds[] = {0.0f, -0.0f, 1.0f, -1.0f, infinity, -infinity, not_a_number, 0.5f};
  for (float& e : x) e = kinds[random() % 8];
  return x;
}

template <class T>
bool same_bits(const T* a, const std::vector<T>& b) {
  return b.empty() || std::memcmp(a, b.data(), b.size() * sizeof(T)) == 0;
}

}  // namespace

TEST_CASE("number_ops: multiples of rows are added row after row, each product and sum rounded", "[prim][number_ops]") {
  for_isas([](const NumberOps& ops) {
    for (const index_t n : lengths)
      for (const index_t count : {0, 1, 2, 3, 4, 7, 8, 16, 31, 32}) {
        CAPTURE(n, count);
        const index_t step = n + 3;  // rows begin anywhere
        const std::vector<float> x = normal(count * step, 13), factors = normal(count, 14);
        std::vector<float> want = normal(n, 15);
        test::Guarded<float> out(want.size());
        std::copy(want.begin(), want.end(), out.data());
        std::vector<const float*> rows;
        for (index_t r = 0; r < count; ++r) {
          rows.push_back(x.data() + r * step);
          for (index_t j = 0; j < n; ++j) {
            const float product = rows.back()[j] * factors[static_cast<std::size_t>(r)];
            want[static_cast<std::size_t>(j)] += product;
          }
        }
        ops.add_scaled(rows.data(), factors.data(), count, n, out.data());
        REQUIRE(same_bits(out.data(), want));
        REQUIRE(out.ok());
      }
  });
}

TEST_CASE("number_ops: no numbers, or fewer: nothing touched", "[prim][number_ops]") {
  for_isas([](const NumberOps& ops) {
    const float x = 1.0f, factor = 2.0f, *row = &x;
    float out = 3.0f;
    ops.add_scaled(&row, &factor, 1, -5, &out);
    REQUIRE(out == 3.0f);
    REQUIRE(ops.count_from(&x, 0, 0.0f) == 0);
  });
}

TEST_CASE("number_ops: mixes keep what they are told to, and never read what they do not keep", "[prim][number_ops]") {
  for_isas([](const NumberOps& ops) {
    for (const index_t n : lengths)
      for (const float keep : {0.0f, 1.0f, 0.9f, -2.0f}) {
        CAPTURE(n, keep);
        const std::vector<float> x = normal(n, 16), before = keep == 0.0f ? std::vector<float>(x.size(), not_a_number) : normal(n, 17);
        std::vector<float> want(x.size()), twice(x.size());
        test::Guarded<float> out(x.size()), same(x.size());
        std::copy(before.begin(), before.end(), out.data());
        std::copy(x.begin(), x.end(), same.data());
        for (std::size_t j = 0; j < x.size(); ++j) {
          const float fresh = 0.3f * x[j], kept = keep * before[j], own = keep * x[j];
          want[j] = keep == 0.0f ? fresh : kept + fresh;
          twice[j] = keep == 0.0f ? fresh : own + fresh;
        }
        ops.mix(x.data(), n, 0.3f, keep, out.data());
        ops.mix(same.data(), n, 0.3f, keep, same.data());  // in place
        REQUIRE(same_bits(out.data(), want));
        REQUIRE(same_bits(same.data(), twice));
        REQUIRE(out.ok());
        REQUIRE(same.ok());
      }
  });
}

TEST_CASE("number_ops: the larger of two is the second one where either is no number", "[prim][number_ops]") {
  for_isas([](const NumberOps& ops) {
    for (const index_t n : lengths) {
      CAPTURE(n);
      const std::vector<float> x = unusual(n, 18), y = unusual(n, 19);
      std::vector<float> want(x.size());
      for (std::size_t j = 0; j < x.size(); ++j) want[j] = x[j] > y[j] ? x[j] : y[j];
      test::Guarded<float> out(x.size());
      ops.larger(x.data(), y.data(), n, out.data());
      REQUIRE(same_bits(out.data(), want));
      REQUIRE(out.ok());
      std::copy(y.begin(), y.end(), out.data());
      ops.larger(x.data(), out.data(), n, out.data());
      REQUIRE(same_bits(out.data(), want));
    }
  });
}

TEST_CASE("number_ops: the larger of a number and one behind it, in place", "[prim][number_ops]") {
  for_isas([](const NumberOps& ops) {
    for (const index_t n : lengths)
      for (const index_t step : {1, 2, 3, 5, 16, 31}) {
        CAPTURE(n, step);
        std::vector<float> want = unusual(n + step, 20);
        test::Guarded<float> x(want.size());
        std::copy(want.begin(), want.end(), x.data());
        for (std::size_t j = 0, s = static_cast<std::size_t>(step); j + s < want.size(); ++j) want[j] = want[j + s] > want[j] ? want[j + s] : want[j];
        ops.larger(x.data() + step, x.data(), n, x.data());
        REQUIRE(same_bits(x.data(), want));
        REQUIRE(x.ok());
      }
  });
}

TEST_CASE("number_ops: counts what is at least as large, NaN left out", "[prim][number_ops]") {
  for_isas([](const NumberOps& ops) {
    for (index_t n : lengths)
      for (const float least : {-infinity, -1.0f, 0.0f, -0.0f, std::numeric_limits<float>::denorm_min(), 1.0f, infinity, not_a_number}) {
        CAPTURE(n, least);
        const std::vector<float> x = unusual(n, 21);
        test::Guarded<float> there(x.size());
        std::copy(x.begin(), x.end(), there.data());
        REQUIRE(ops.count_from(there.data(), n, least) == std::count_if(x.begin(), x.end(), [&](float e) { return e >= least; }));
      }
    const std::vector<float> many(100001, 2.0f);
    REQUIRE(ops.count_from(many.data(), 100001, 2.0f) == 100001);
  });
}

TEST_CASE("number_ops: weighted sums of rows have the bits of rows that are added one by one", "[prim][number_ops]") {
  for_isas([](const NumberOps& ops) {
    for (const index_t dim : widths)
      for (const index_t count : {0, 1, 2, 17, 64}) {
        CAPTURE(dim, count);
        const std::vector<float> x = normal(std::max<index_t>(1, count) * dim, 4);
        std::vector<double> want(static_cast<std::size_t>(dim), 0.1), weights;
        test::Guarded<double> sum(want.size(), 0.1);
        std::vector<const float*> rows;
        for (index_t i = 0; i < count; ++i) {
          rows.push_back(x.data() + (i * 5 % count) * dim);
          weights.push_back(1.0 / (3.0 + static_cast<double>(i)));
          for (index_t d = 0; d < dim; ++d) {
            const double product = weights.back() * static_cast<double>(rows.back()[d]);
            want[static_cast<std::size_t>(d)] += product;
          }
        }
        ops.add_weighted(rows.data(), weights.data(), count, dim, sum.data());
        REQUIRE(same_bits(sum.data(), want));
        REQUIRE(sum.ok());
      }
  });
}

TEST_CASE("number_ops: square distances have the bits of sixteen sums that are halved", "[prim][number_ops]") {
  for_isas([](const NumberOps& ops) {
    for (const index_t dim : widths)
      for (const index_t count : {1, 2, 3, 4, 5, 7, 64}) {
        CAPTURE(dim, count);
        const std::vector<float> centre = normal(dim, 9), rows = normal(count * dim, 10);
        test::Guarded<float> out(static_cast<std::size_t>(count));
        ops.square_distances(centre.data(), rows.data(), count, dim, out.data());
        REQUIRE(out.ok());
        for (index_t i = 0; i < count; ++i) {
          float sum[16] = {};
          double exact = 0.0;
          for (index_t d = 0; d < dim; ++d) {
            const float apart = centre[static_cast<std::size_t>(d)] - rows[static_cast<std::size_t>(i * dim + d)], square = apart * apart;
            sum[d % 16] += square, exact += static_cast<double>(square);
          }
          for (const int left : {8, 4, 2, 1})
            for (int j = 0; j < left; ++j) sum[j] += sum[j + left];
          REQUIRE(std::bit_cast<std::uint32_t>(out.data()[i]) == std::bit_cast<std::uint32_t>(sum[0]));
          REQUIRE(static_cast<double>(sum[0]) == Approx(exact).epsilon(1e-5));
        }
      }
  });
}
