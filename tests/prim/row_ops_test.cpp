#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include <catch2/catch.hpp>

#include <kvcondense/backend/cpu/simd/choose.hpp>
#include <kvcondense/prim/rope.hpp>

#include <support/fill.hpp>
#include <support/guarded.hpp>

// The inner loops of attention, of every instruction set that this processor has, against double.

using namespace kvcondense;
using prim::cpu::Isa;
using prim::cpu::RowOps;

namespace {

constexpr DType types[] = {DType::f32, DType::f16, DType::bf16};
constexpr float infinity = std::numeric_limits<float>::infinity(), not_a_number = std::numeric_limits<float>::quiet_NaN();

/// Calls use(kernels) for every instruction set of this processor.
template <class F>
void for_isas(F&& use) {
  for (const Isa isa : prim::cpu::all_isas) {
    if (!prim::cpu::can_run(isa)) {
      WARN("this processor or compiler has no kernels number " << static_cast<int>(isa));
      continue;
    }
    const RowOps& ops = prim::cpu::row_ops(isa);
    CAPTURE(ops.name);
    use(ops);
  }
}

/// Rows in a type, with canaries around them, and what they mean.
struct Rows {
  Rows(DType t, index_t count, index_t dim, std::uint64_t seed)
      : values(static_cast<std::size_t>(count * dim)), type(t), wide(values.size()), narrow(values.size()) {
    test::fill_normal(values.data(), values.size(), seed);
    for (std::size_t i = 0; i < values.size(); ++i) {
      const bool half = t == DType::f16;
      narrow.data()[i] = half ? detail::half_bits(values[i]) : detail::bfloat16_bits(values[i]);
      if (t != DType::f32) values[i] = half ? detail::half_value(narrow[i]) : detail::bfloat16_value(narrow[i]);
      wide.data()[i] = values[i];
    }
  }
  const void* data() const { return type == DType::f32 ? static_cast<const void*>(wide.data()) : narrow.data(); }

  std::vector<float> values;
  DType type;
  test::Guarded<float> wide;
  test::Guarded<std::uint16_t> narrow;
};

void require_dots(const RowOps& ops, DType type, index_t rows, index_t count, index_t dim) {
  CAPTURE(static_cast<int>(type), rows, count, dim);
  const Rows x(type, count, dim, 5), next(type, count, dim, 6);
  const index_t q_step = dim + 3, o_step = count + 5;
  std::vector<float> q(static_cast<std::size_t>(rows * q_step));
  test::fill_normal(q.data(), q.size(), 7);
  test::Guarded<float> out(static_cast<std::size_t>(rows * o_step), -7.0f), again(static_cast<std::size_t>(rows * o_step), -7.0f);
  ops.dot_rows(type, x.data(), count, dim, {q.data(), rows, q_step}, {out.data(), rows, o_step}, nullptr);
  ops.dot_rows(type, x.data(), count, dim, {q.data(), rows, q_step}, {again.data(), rows, o_step}, next.data());
  bool close = true, same = true, untouched = true;
  for (index_t r = 0; r < rows; ++r) {
    for (index_t i = 0; i < count; ++i) {
      double want = 0, size = 0;
      for (index_t d = 0; d < dim; ++d) {
        const double term = static_cast<double>(q[static_cast<std::size_t>(r * q_step + d)]) *
                            static_cast<double>(x.values[static_cast<std::size_t>(i * dim + d)]);
        want += term, size += std::abs(term);
      }
      const float got = out.data()[r * o_step + i];
      close = close && std::abs(want - static_cast<double>(got)) <= 1e-6 * size + 1e-30;
      float one = 0;  // the same bits alone
      const std::size_t skip = static_cast<std::size_t>(i * dim) * size_of(type);
      ops.dot_rows(type, static_cast<const std::byte*>(x.data()) + skip, 1, dim, {q.data() + r * q_step, 1, q_step}, {&one, 1, 1}, nullptr);
      same = same && one == got && again.data()[r * o_step + i] == got;
    }
    for (index_t i = count; i < o_step; ++i) untouched = untouched && out.data()[r * o_step + i] == -7.0f;
  }
  REQUIRE(close);
  REQUIRE(same);
  REQUIRE(untouched);
  REQUIRE(out.ok());
}

void require_sums(const RowOps& ops, DType type, index_t rows, index_t count, index_t dim) {
  CAPTURE(static_cast<int>(type), rows, count, dim);
  const Rows x(type, count, dim, 8), next(type, count, dim, 9);
  const index_t w_step = count + 2, o_step = dim + 4;
  std::vector<float> w(static_cast<std::size_t>(rows * w_step));
  test::fill_uniform(w.data(), w.size(), 10);
  const auto size = static_cast<std::size_t>(rows * o_step);
  test::Guarded<float> out(size, 0.25f), pieces(size, 0.25f);
  ops.add_rows(type, x.data(), count, dim, {w.data(), rows, w_step}, {out.data(), rows, o_step}, next.data());
  for (index_t at = 0; at < count; at += 3) {  // slot after slot, however they are cut
    const std::size_t skip = static_cast<std::size_t>(at * dim) * size_of(type);
    ops.add_rows(type, static_cast<const std::byte*>(x.data()) + skip, std::min<index_t>(3, count - at), dim,
                 {w.data() + at, rows, w_step}, {pieces.data(), rows, o_step}, nullptr);
  }
  bool close = true, untouched = true;
  for (index_t r = 0; r < rows; ++r) {
    for (index_t d = 0; d < dim; ++d) {
      double want = 0.25, sum = 0.25;
      for (index_t i = 0; i < count; ++i) {
        const double term = static_cast<double>(w[static_cast<std::size_t>(r * w_step + i)]) *
                            static_cast<double>(x.values[static_cast<std::size_t>(i * dim + d)]);
        want += term, sum += std::abs(term);
      }
      close = close && std::abs(want - static_cast<double>(out.data()[r * o_step + d])) <= 1e-6 * sum;
    }
    for (index_t d = dim; d < o_step; ++d) untouched = untouched && out.data()[r * o_step + d] == 0.25f;
  }
  REQUIRE(close);
  REQUIRE(untouched);
  REQUIRE(std::memcmp(out.data(), pieces.data(), size * sizeof(float)) == 0);
  REQUIRE(out.ok());
}

}  // namespace

TEST_CASE("row_ops: dot products of every query count and row size equal double", "[prim][row_ops]") {
  for_isas([](const RowOps& ops) {
    for (const DType type : types) {
      for (index_t rows = 1; rows <= 17; ++rows) require_dots(ops, type, rows, 13, 80);
      for (const index_t dim : {1, 3, 4, 7, 8, 9, 15, 16, 17, 31, 64, 96, 112, 128, 250, 256}) require_dots(ops, type, 3, 11, dim);
      for (const index_t count : {1, 2, 3, 4, 5, 8, 16, 64}) require_dots(ops, type, 4, count, 64);
      require_dots(ops, type, 40, 5, 33);
    }
  });
}

TEST_CASE("row_ops: a row by itself is what its dot product is, bit for bit", "[prim][row_ops]") {
  for_isas([](const RowOps& ops) {
    for (const index_t dim : {1, 3, 4, 7, 8, 15, 16, 17, 64, 80, 96, 112, 128, 250, 256})
      for (const index_t count : {0, 1, 3, 4, 5, 16, 63}) {
        CAPTURE(dim, count);
        Rows x(DType::f32, count, dim, 11);
        if (count > 3) x.wide.data()[3 * dim] = not_a_number, x.wide.data()[dim - 1] = infinity;
        test::Guarded<float> out(static_cast<std::size_t>(count));
        ops.squares(x.wide.data(), count, dim, out.data());
        bool same = true;
        for (index_t i = 0; i < count; ++i) {
          float one = 0.0f;
          const float* row = x.wide.data() + i * dim;
          ops.dot_rows(DType::f32, row, 1, dim, {row, 1, dim}, {&one, 1, 1}, nullptr);
          same = same && (std::isnan(one) ? std::isnan(out[i]) : std::bit_cast<std::uint32_t>(one) == std::bit_cast<std::uint32_t>(out[i]));
        }
        REQUIRE(same);
        REQUIRE(out.ok());
      }
  });
}

TEST_CASE("row_ops: weighted sums of every query count and row size equal double", "[prim][row_ops]") {
  for_isas([](const RowOps& ops) {
    for (const DType type : types) {
      for (index_t rows = 1; rows <= 17; ++rows) require_sums(ops, type, rows, 13, 80);
      for (const index_t dim : {1, 3, 4, 7, 8, 9, 15, 16, 17, 31, 64, 96, 112, 128, 250, 256}) require_sums(ops, type, 3, 11, dim);
      for (const index_t count : {1, 2, 3, 4, 5, 8, 16, 64}) require_sums(ops, type, 4, count, 64);
      require_sums(ops, type, 40, 5, 33);
    }
  });
}

TEST_CASE("row_ops: no slots, no rows, nothing touched", "[prim][row_ops]") {
  for_isas([](const RowOps& ops) {
    float x = 3.0f, out = 5.0f;
    ops.dot_rows(DType::f32, &x, 0, 1, {&x, 1, 1}, {&out, 1, 1}, nullptr);
    ops.dot_rows(DType::f32, &x, 1, 1, {&x, 0, 1}, {&out, 0, 1}, nullptr);
    ops.add_rows(DType::f32, &x, 0, 1, {&x, 1, 1}, {&out, 1, 1}, nullptr);
    ops.add_rows(DType::f32, &x, 1, 1, {&x, 0, 1}, {&out, 0, 1}, nullptr);
    REQUIRE(ops.largest(&x, 0, 2.0f) == 2.0f);
    REQUIRE(ops.exp_below(&x, 0, 2.0f, &out) == 0.0f);
    REQUIRE(out == 5.0f);
  });
}

TEST_CASE("row_ops: exp is within two units of the last place, and 0 far below", "[prim][row_ops]") {
  for_isas([](const RowOps& ops) {
    std::vector<float> x;
    for (int i = 0; i <= 200000; ++i) x.push_back(-86.5f * static_cast<float>(i) / 200000.0f);
    for (float f = 1.0f; f > 1e-40f; f *= 0.37f) x.push_back(-f);
    std::vector<float> out(x.size());
    const float sum = ops.exp_below(x.data(), static_cast<index_t>(x.size()), 0.0f, out.data());
    double worst = 0, all = 0;
    for (std::size_t i = 0; i < x.size(); ++i) {
      const double want = std::exp(static_cast<double>(x[i]));
      worst = std::max(worst, std::abs(static_cast<double>(out[i]) / want - 1.0));
      all += want;
    }
    REQUIRE(worst < 2e-7);
    REQUIRE(std::abs(static_cast<double>(sum) / all - 1.0) < 1e-4);  // a float sum of 200,000

    const float odd[] = {0.0f, -0.0f, -90.0f, -infinity, not_a_number, -3e38f, -1.0f};
    float got[7];
    ops.exp_below(odd, 7, 0.0f, got);
    REQUIRE(got[0] == 1.0f);
    REQUIRE(got[1] == 1.0f);
    REQUIRE(got[2] == 0.0f);
    REQUIRE(got[3] == 0.0f);
    REQUIRE(std::isnan(got[4]));
    REQUIRE(got[5] == 0.0f);
    REQUIRE(got[6] == Approx(std::exp(-1.0)).epsilon(2e-7));

    for (const std::size_t n : {std::size_t{7}, std::size_t{37}, x.size()}) {  // in place
      std::vector<float> same(x.begin(), x.begin() + static_cast<std::ptrdiff_t>(n));
      const float again = ops.exp_below(same.data(), static_cast<index_t>(n), 0.0f, same.data());
      REQUIRE(again == ops.exp_below(x.data(), static_cast<index_t>(n), 0.0f, out.data()));
      REQUIRE(std::equal(same.begin(), same.end(), out.begin()));
    }
  });
}

TEST_CASE("row_ops: the largest number, NaN left out, at every place", "[prim][row_ops]") {
  for_isas([](const RowOps& ops) {
    std::mt19937 random(3);
    std::normal_distribution<float> normal;
    bool right = true;
    for (index_t n = 1; n <= 140; ++n) {
      std::vector<float> x(static_cast<std::size_t>(n));
      for (float& e : x) e = normal(random);
      const auto at = static_cast<std::size_t>(random()) % x.size(), bad = static_cast<std::size_t>(random()) % x.size();
      x[at] = 50.0f;
      if (bad != at) x[bad] = not_a_number;
      right = right && ops.largest(x.data(), n, -infinity) == 50.0f && ops.largest(x.data(), n, 60.0f) == 60.0f;
      std::vector<float> twice = x;
      ops.scale(twice.data(), n, 2.0f);
      for (std::size_t i = 0; i < x.size(); ++i) right = right && (std::isnan(x[i]) || twice[i] == 2.0f * x[i]);
    }
    REQUIRE(right);
    const float none[] = {not_a_number, not_a_number, -infinity};
    REQUIRE(ops.largest(none, 3, -infinity) == -infinity);
  });
}

TEST_CASE("row_ops: rows turn as rotate_row turns them, bit for bit", "[prim][row_ops]") {
  const auto turns = [](const RowOps& ops, index_t pairs, prim::RopePairing pairing, bool back, index_t step) {
    const index_t count = 3, dim = 2 * pairs + 5;
    CAPTURE(pairs, static_cast<int>(pairing), back, step);
    std::vector<float> rows(static_cast<std::size_t>(count * dim)), angles(static_cast<std::size_t>(2 * pairs * count));
    test::fill_normal(rows.data(), rows.size(), 5);
    test::fill_normal(angles.data(), angles.size(), 6);
    std::vector<float> expected = rows;
    for (index_t i = 0; i < count; ++i) {
      float* row = expected.data() + i * dim;
      const float* cos = angles.data() + i * step;
      prim::rotate_row(row, row, cos, cos + pairs, pairs, pairing, back);
    }
    ops.turn_rows(rows.data(), count, dim, angles.data(), step, pairs, pairing == prim::RopePairing::interleaved, back);
    REQUIRE(rows == expected);
  };
  for_isas([&](const RowOps& ops) {
    for (const index_t pairs : {1, 2, 7, 15, 16, 17, 32, 40, 48, 56, 64, 128})
      for (const prim::RopePairing pairing : {prim::RopePairing::half_split, prim::RopePairing::interleaved})
        for (const bool back : {false, true})
          for (const index_t step : {index_t{0}, 2 * pairs}) turns(ops, pairs, pairing, back, step);
  });
}

TEST_CASE("row_ops: 16-bit numbers keep their bits: all halves, and floats around every one of them", "[prim][row_ops]") {
  for_isas([](const RowOps& ops) {
    std::vector<std::uint16_t> bits(65536), back(65536);
    for (std::size_t i = 0; i < bits.size(); ++i) bits[i] = static_cast<std::uint16_t>(i);
    std::vector<float> wide(65536);
    for (const DType type : {DType::f16, DType::bf16}) {
      const bool half = type == DType::f16;
      ops.widen(type, bits.data(), 65536, wide.data());
      std::size_t wrong = 0;
      for (std::size_t i = 0; i < bits.size(); ++i) {
        const float want = half ? detail::half_value(bits[i]) : detail::bfloat16_value(bits[i]);
        wrong += std::isnan(want) ? !std::isnan(wide[i]) : std::bit_cast<std::uint32_t>(want) != std::bit_cast<std::uint32_t>(wide[i]);
      }
      REQUIRE(wrong == 0);
      // Each number, its neighbours, and the ties between it and the next one.
      for (const std::uint32_t add : {0u, 1u, 0xffffffffu, 0x7fffu, 0x8000u, 0x8001u, 0x0fffu, 0x1000u, 0x1001u, 0x2000u}) {
        std::vector<float> near(65536);
        for (std::size_t i = 0; i < near.size(); ++i) near[i] = std::bit_cast<float>(std::bit_cast<std::uint32_t>(wide[i]) + add);
        ops.narrow(type, near.data(), 65536, back.data());
        for (std::size_t i = 0; i < near.size(); ++i)
          wrong += back[i] != (half ? detail::half_bits(near[i]) : detail::bfloat16_bits(near[i]));
      }
      REQUIRE(wrong == 0);
      std::mt19937 random(4);
      for (float& x : wide) x = std::bit_cast<float>(static_cast<std::uint32_t>(random()));
      ops.narrow(type, wide.data(), 65533, back.data());
      for (std::size_t i = 0; i < 65533; ++i) wrong += back[i] != (half ? detail::half_bits(wide[i]) : detail::bfloat16_bits(wide[i]));
      REQUIRE(wrong == 0);
    }
  });
}
