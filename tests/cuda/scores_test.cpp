// Words that make scores and statistics, on CUDA, beside the CPU's.

#include <cmath>
#include <tuple>
#include <vector>

#include <kvcondense/backend/cpu/forward_pool.hpp>
#include <kvcondense/backend/cpu/lag_spread.hpp>
#include <kvcondense/backend/cpu/output_error.hpp>
#include <kvcondense/backend/cpu/pack_bits.hpp>
#include <kvcondense/backend/cpu/projected_norm.hpp>
#include <kvcondense/backend/cpu/query_moments.hpp>
#include <kvcondense/backend/cpu/row_deviation.hpp>
#include <kvcondense/backend/cpu/row_redundancy.hpp>
#include <kvcondense/backend/cpu/token_surprise.hpp>
#include <kvcondense/backend/cuda/forward_pool.cuh>
#include <kvcondense/backend/cuda/lag_spread.cuh>
#include <kvcondense/backend/cuda/output_error.cuh>
#include <kvcondense/backend/cuda/pack_bits.cuh>
#include <kvcondense/backend/cuda/projected_norm.cuh>
#include <kvcondense/backend/cuda/query_moments.cuh>
#include <kvcondense/backend/cuda/row_deviation.cuh>
#include <kvcondense/backend/cuda/row_redundancy.cuh>
#include <kvcondense/backend/cuda/token_surprise.cuh>

#include "numbers.hpp"

using namespace kvcondense;
using test::at;
using test::close;
using test::normals;

namespace {

/// A head size and what is tried with it.
struct Sized {
  index_t dim, with;
};

}  // namespace

TEST_CASE("cuda row_deviation: to 1e-5 of the CPU's") {
  for (const index_t dim : {1, 80, 128})
    for (const index_t tokens : {0, 1, 5}) {
      constexpr index_t heads = 3;
      std::vector<float> a = normals(heads * tokens * dim, 1);
      const std::vector<float> b = normals(heads * tokens * dim, 2);
      if (tokens == 5) a[at(2 * dim)] = NAN;
      std::vector<float> expected(at(tokens), 0.5f);
      Context<Cpu> cpu;
      const auto view = [&](const float* p) { return dense_view(p, heads, tokens, dim); };
      REQUIRE(prim::RowDeviation<Cpu>::run(cpu, view(a.data()), view(b.data()), expected.data()) == Status::ok);
      test::each_way([&] {
        test::Device device;
        test::OnDevice<float> x(device, a), y(device, b), out(device, std::vector<float>(at(tokens), 0.5f));
        REQUIRE(prim::RowDeviation<Cuda>::run(device, view(x.data()), view(y.data()), out.data()) == Status::ok);
        close(out.read(), expected, 1e-5f);
      });
    }
  test::Device device;
  const float* nothing = nullptr;
  CHECK(prim::RowDeviation<Cuda>::run(device, dense_view(nothing, 1, 2, 3), dense_view(nothing, 1, 2, 4), nullptr) == Status::shape_mismatch);
}

TEST_CASE("cuda token_surprise: to 1e-5 of the CPU's, foreign tokens are NaN") {
  constexpr index_t words = 777;
  for (const index_t n : {0, 1, 6})
    for (const prim::SurpriseOf which : {prim::SurpriseOf::this_token, prim::SurpriseOf::repeated}) {
      std::vector<float> logits = normals(n * words, 3);
      for (float& x : logits) x *= 5.0f;
      std::vector<std::int32_t> tokens;
      for (index_t i = 0; i < n; ++i) tokens.push_back(static_cast<std::int32_t>(i * 131 % words));
      if (n == 6) logits[at(2 * words + 3)] = NAN;
      std::vector<float> expected(at(n));
      Context<Cpu> cpu;
      REQUIRE(prim::TokenSurprise<Cpu>::run(cpu, dense_view(static_cast<const float*>(logits.data()), n, words), tokens, which, expected) == Status::ok);
      test::each_way([&] {
        test::Device device;
        test::OnDevice<float> l(device, logits), out(device, std::vector<float>(at(n), 7.0f));
        test::OnDevice<std::int32_t> t(device, tokens);
        const auto rows = dense_view(static_cast<const float*>(l.data()), n, words);
        REQUIRE(prim::TokenSurprise<Cuda>::run(device, rows, {t.data(), at(n)}, which, {out.data(), at(n)}) == Status::ok);
        close(out.read(), expected, 1e-5f, 1.0f);
        if (n > 0) CHECK(prim::TokenSurprise<Cuda>::run(device, rows, {t.data(), at(n - 1)}, which, {out.data(), at(n - 1)}) == Status::shape_mismatch);
      });
    }
  test::Device device;
  test::OnDevice<float> l(device, std::vector<float>(at(3 * words))), out(device, {7.0f, 7.0f, 7.0f});
  test::OnDevice<std::int32_t> t(device, {0, -1, static_cast<std::int32_t>(words)});
  REQUIRE(prim::TokenSurprise<Cuda>::run(device, dense_view(static_cast<const float*>(l.data()), 3, words), {t.data(), 3}, prim::SurpriseOf::this_token, {out.data(), 3}) ==
          Status::ok);
  for (const float x : out.read()) CHECK(std::isnan(x));
}

TEST_CASE("cuda forward_pool: bit for bit the CPU's, NaN stays where it is") {
  for (const index_t n : {0, 1, 63, 700})
    for (const index_t width : {1, 64}) {
      const std::vector<index_t> offset{0, n, 2 * n, 3 * n};
      std::vector<float> x = normals(3 * n, 4), expected = normals(3 * n, 5);
      if (n > 50) x[40] = NAN, x[at(n + 7)] = INFINITY;
      const std::vector<float> start = expected;
      Context<Cpu> cpu;
      REQUIRE(prim::ForwardPool<Cpu>::add(cpu, {x.data(), offset.data(), 3}, width, {expected.data(), offset.data(), 3}) == Status::ok);
      test::each_way([&] {
        test::Device device;
        test::OnDevice<float> in(device, x), out(device, start);
        test::OnDevice<index_t> o(device, offset);
        REQUIRE(prim::ForwardPool<Cuda>::add(device, {in.data(), o.data(), 3}, width, {out.data(), o.data(), 3}) == Status::ok);
        close(out.read(), expected, 0.0f);
      });
    }
  test::Device device;
  test::OnDevice<float> x(device, normals(9, 6)), out(device, normals(9, 7));
  test::OnDevice<index_t> o(device, {0, 4, 9});
  REQUIRE(prim::ForwardPool<Cuda>::add(device, {x.data(), o.data(), 2}, 3, {out.data(), o.data(), 2}) == Status::ok);
  for (const float v : out.read()) CHECK(std::isnan(v));
  CHECK(prim::ForwardPool<Cuda>::add(device, {}, 0, {}) == Status::invalid_argument);
  CHECK(prim::ForwardPool<Cuda>::add(device, {}, 65, {}) == Status::invalid_argument);
}

TEST_CASE("cuda query_moments: bit for bit the CPU's, token by token and in steps") {
  constexpr index_t heads = 2;
  for (const index_t dim : {3, 80, 130}) {
    const std::vector<float> q = normals(heads * 5 * dim, 8);
    std::vector<float> mean(at(heads * dim), NAN), cov(at(heads * dim * dim), NAN);
    Context<Cpu> cpu;
    // Five vectors, in steps of 0, 3 and 2, of views that are not dense.
    const auto part = [&](const float* data, index_t first, index_t n) {
      TensorView<const float, 3> v = dense_view(data, heads, index_t{5}, dim);
      v.data += first * dim, v.extent[1] = n;
      return v;
    };
    const auto run = [&]<Backend B>(Context<B>& c, const float* queries, float* m, float* s) {
      index_t counted = 0;
      for (const index_t n : {0, 3, 2}) {
        REQUIRE(prim::QueryMoments<B>::add(c, part(queries, counted, n), counted, dense_view(m, heads, dim), dense_view(s, heads, dim, dim)) == Status::ok);
        counted += n;
      }
    };
    run(cpu, q.data(), mean.data(), cov.data());
    test::each_way([&] {
      test::Device device;
      test::OnDevice<float> x(device, q), m(device, std::vector<float>(mean.size(), NAN)), s(device, std::vector<float>(cov.size(), NAN));
      run(device.context(), x.data(), m.data(), s.data());
      close(m.read(), mean, 0.0f);
      close(s.read(), cov, 0.0f);
    });
  }
  test::Device device;
  const float* nothing = nullptr;
  float* out = nullptr;
  CHECK(prim::QueryMoments<Cuda>::add(device, dense_view(nothing, 1, 1, 4), -1, dense_view(out, 1, 4), dense_view(out, 1, 4, 4)) == Status::invalid_argument);
  CHECK(prim::QueryMoments<Cuda>::add(device, dense_view(nothing, 1, 1, 4), 0, dense_view(out, 1, 5), dense_view(out, 1, 4, 4)) == Status::shape_mismatch);
}

namespace {

template <class P>
void compare_packing(const P& packing) {
  std::mt19937 random(9);
  for (const index_t n : {index_t{0}, index_t{1}, packing.run_length(), index_t{1000}}) {
    std::vector<std::uint8_t> codes(at(n));
    for (std::uint8_t& c : codes) c = static_cast<std::uint8_t>(random() % P::levels);
    std::vector<std::byte> expected(at(packing.bytes(n)));
    Context<Cpu> cpu;
    REQUIRE(prim::PackBits<Cpu>::pack(cpu, packing, codes, expected) == Status::ok);
    test::each_way([&] {
      test::Device device;
      test::OnDevice<std::uint8_t> c(device, codes), back(device, std::vector<std::uint8_t>(at(n), 99));
      test::OnDevice<std::byte> bytes(device, std::vector<std::byte>(expected.size(), std::byte{0xaa}));
      REQUIRE(prim::PackBits<Cuda>::pack(device, packing, {c.data(), at(n)}, {bytes.data(), expected.size()}) == Status::ok);
      CHECK(bytes.read() == expected);
      REQUIRE(prim::PackBits<Cuda>::unpack(device, packing, {bytes.data(), expected.size()}, {back.data(), at(n)}) == Status::ok);
      CHECK(back.read() == codes);
      CHECK(prim::PackBits<Cuda>::pack(device, packing, {c.data(), at(n)}, {bytes.data(), expected.size() + 1}) == Status::shape_mismatch);
    });
  }
}

}  // namespace

TEST_CASE("cuda pack_bits: byte for byte the CPU's, and back") {
  compare_packing(prim::DenseLe<3>{});
  compare_packing(prim::DenseLe<8>{});
  compare_packing(prim::LsbWords<32, 5>{});
  compare_packing(prim::SplitHalf{32});
  compare_packing(prim::SplitHalfHigh{80});
  compare_packing(prim::Msb8{});
  compare_packing(prim::Trit5{});
  compare_packing(prim::Qh5{});
  compare_packing(prim::BitPlanes<7>{});
  test::Device device;
  CHECK(prim::PackBits<Cuda>::pack(device, prim::SplitHalf{3}, {}, {}) == Status::invalid_argument);
}

TEST_CASE("cuda lag_spread: to 1e-5 of the CPU's, bad channels and rows too") {
  constexpr index_t heads = 4, most = 130;
  const std::vector<index_t> slots{130, 0, 1, 84}, offset = test::offsets(slots);
  for (const Sized& size : {Sized{33, 7}, {64, 1}, {80, 20}, {128, 40}, {256, 20}}) {
    const index_t dim = size.dim, block = size.with;
    std::vector<float> x = normals(heads * most * dim, 10);
    x[at(3 * dim + 1)] = NAN, x[at(30 * dim)] = INFINITY;
    // Of each head some first places and the last blocks do not compete.
    std::vector<float> scores(at(offset.back()), INFINITY), spread(at(offset.back()), 7.0f);
    for (const std::size_t h : {0u, 3u})
      for (index_t j = 3; j < 3 + (slots[h] - 3 - block) / block * block; ++j) scores[at(offset[h] + j)] = 0.25f;
    const std::vector<float> start = scores;
    Context<Cpu> cpu;
    const DenseRows host(dense_view(static_cast<const float*>(x.data()), heads, most, dim));
    REQUIRE(prim::LagSpread<Cpu>::add(cpu, host, block, 0.5f, {spread.data(), offset.data(), heads}, {scores.data(), offset.data(), heads}) == Status::ok);
    test::each_way([&] {
      test::Device device;
      test::DeviceRows rows(device, x, slots, most, dim);
      test::OnDevice<float> u(device, std::vector<float>(scores.size(), 7.0f)), out(device, start);
      test::OnDevice<index_t> o(device, offset);
      REQUIRE(prim::LagSpread<Cuda>::add(device, rows.rows(), block, 0.5f, {u.data(), o.data(), heads}, {out.data(), o.data(), heads}) == Status::ok);
      close(u.read(), spread, 1e-5f);
      close(out.read(), scores, 1e-5f);
      CHECK(prim::LagSpread<Cuda>::add(device, rows.rows(), 0, 0.5f, {u.data(), o.data(), heads}, {out.data(), o.data(), heads}) == Status::invalid_argument);
      CHECK(prim::LagSpread<Cuda>::add(device, rows.rows(), 1, 0.5f, {u.data(), o.data(), 2}, {out.data(), o.data(), 2}) == Status::shape_mismatch);
    });
  }
}

TEST_CASE("cuda projected_norm: to 1e-5 of the CPU's, groups and ends") {
  constexpr index_t heads = 3, most = 35, outputs = 21;
  const std::vector<index_t> slots{35, 0, 1}, offset = test::offsets(slots);
  const std::vector<prim::Ends> ends{{1, 2}, {4, 4}, {0, 0}};
  for (const Sized& size : {Sized{64, 1}, {80, 3}, {128, 4}, {256, 7}}) {
    const index_t dim = size.dim, group = size.with;
    CacheShape shape;
    shape.kv_heads = heads, shape.q_heads = heads * group, shape.head_dim = shape.value_dim = dim;
    const std::vector<float> x = normals(heads * most * dim, 12), matrix = normals(outputs * heads * group * dim, 13);
    std::vector<float> expected(at(offset.back()), 7.0f);
    const std::vector<float> start = expected;
    Context<Cpu> cpu;
    const DenseRows host(dense_view(static_cast<const float*>(x.data()), heads, most, dim));
    REQUIRE(prim::ProjectedNorm<Cpu>::run(cpu, host, group == 3 ? ends.data() : nullptr, shape, matrix.data(), outputs, {expected.data(), offset.data(), heads}) == Status::ok);
    test::each_way([&] {
      test::Device device;
      test::DeviceRows rows(device, x, slots, most, dim);
      test::OnDevice<float> m(device, matrix), out(device, start);
      test::OnDevice<index_t> o(device, offset);
      test::OnDevice<prim::Ends> e(device, ends);
      REQUIRE(prim::ProjectedNorm<Cuda>::run(device, rows.rows(), group == 3 ? e.data() : nullptr, shape, m.data(), outputs, {out.data(), o.data(), heads}) == Status::ok);
      close(out.read(), expected, 1e-5f);
      CHECK(prim::ProjectedNorm<Cuda>::run(device, rows.rows(), nullptr, shape, m.data(), outputs, {out.data(), o.data(), 2}) == Status::shape_mismatch);
    });
  }
}

TEST_CASE("cuda projected_norm: shares weighed by projected rows, to 1e-5 of the CPU's") {
  constexpr index_t heads = 3, most = 150;
  const std::vector<index_t> slots{150, 0, 33}, offset = test::offsets(slots);
  for (const auto& [rows_of, members, out_of] : {std::tuple<index_t, index_t, index_t>{64, 3, 45}, {80, 1, 200}, {128, 7, 5}}) {
    const index_t dim = rows_of, group = members, outputs = out_of;
    const CacheShape shape{.q_heads = heads * group, .kv_heads = heads, .head_dim = dim};
    const std::vector<float> x = normals(heads * most * dim, 31), matrix = normals(outputs * heads * group * dim, 32);
    std::vector<float> shares = normals(offset.back() * group, 33);
    for (float& s : shares) s = std::fabs(s);
    for (index_t j = 40; j < 140; ++j) shares[at(j)] = 0.0f;  // whole tiles that nobody asked about
    shares[at(5)] = shares[at(150 * group + 3)] = 1e-38f;
    std::vector<float> expected(at(offset.back()), 7.0f);
    const std::vector<float> start = expected;
    Context<Cpu> cpu;
    const DenseRows host(dense_view(x.data(), heads, most, dim));
    REQUIRE(prim::ProjectedNorm<Cpu>::weigh(cpu, host, shape, matrix.data(), outputs, {shares.data(), offset.data(), heads}, {expected.data(), offset.data(), heads}) == Status::ok);
    CHECK(expected[50] == 0.0f);
    test::each_way([&] {
      test::Device device;
      test::DeviceRows rows(device, x, slots, most, dim);
      test::OnDevice<float> m(device, matrix), s(device, shares), out(device, start);
      test::OnDevice<index_t> o(device, offset);
      REQUIRE(prim::ProjectedNorm<Cuda>::weigh(device, rows.rows(), shape, m.data(), outputs, {s.data(), o.data(), heads}, {out.data(), o.data(), heads}) == Status::ok);
      close(out.read(), expected, 1e-5f);
      CHECK(prim::ProjectedNorm<Cuda>::weigh(device, rows.rows(), shape, m.data(), outputs, {s.data(), o.data(), 2}, {out.data(), o.data(), heads}) == Status::shape_mismatch);
    });
  }
}

TEST_CASE("cuda row_redundancy: to 1e-5 of the CPU's, where repetitions are found and where none is, and the workspace") {
  constexpr index_t most = 70;
  const std::vector<index_t> slots{70, 0, 1, 33}, offset = test::offsets(slots);
  for (const Sized& size : {Sized{33, 1}, {64, 0}, {80, 1}, {128, 1}, {256, 0}}) {
    const index_t dim = size.dim;
    const float threshold = size.with == 0 ? 2.0f : 0.25f;  // none, or some
    std::vector<float> x = normals(4 * most * dim, 14);
    for (index_t i = 0; i < most * dim; i += 7) x[at(i)] += 1.0f;
    for (index_t d = 0; d < dim; ++d) x[at(50 * dim + d)] = 2.0f * x[at(20 * dim + d)];  // the newest copy
    x[at(6 * dim)] = NAN, x[at(3 * most * dim)] = INFINITY;
    std::fill_n(x.begin() + 9 * dim, dim, 0.0f);
    std::vector<float> expected(at(offset.back()), 7.0f), inverse = expected;
    Context<Cpu> cpu;
    const DenseRows host(dense_view(static_cast<const float*>(x.data()), index_t{4}, most, dim));
    const std::size_t bytes = prim::row_redundancy_bytes(4 * most, 4, dim);
    Workspace work;
    REQUIRE(work.reserve(bytes) == Status::ok);
    Scratch host_scratch(work.bytes());
    REQUIRE(prim::RowRedundancy<Cpu>::run(cpu, host, threshold, {inverse.data(), offset.data(), 4}, {expected.data(), offset.data(), 4}, host_scratch) == Status::ok);
    test::each_way([&] {
      test::Device device;
      test::DeviceRows rows(device, x, slots, most, dim);
      test::OnDevice<float> scratch(device, inverse), out(device, std::vector<float>(expected.size(), 7.0f));
      test::OnDevice<index_t> o(device, offset);
      Context<Cuda> ctx = device.with_workspace(Scratch::align + bytes), small = ctx.with_workspace(ctx.workspace().first(bytes - 1));
      const auto run = [&](Context<Cuda>& c, index_t heads) {
        Scratch room(c.workspace());
        return prim::RowRedundancy<Cuda>::run(c, rows.rows(), threshold, {scratch.data(), o.data(), heads}, {out.data(), o.data(), heads}, room);
      };
      REQUIRE(run(small, 4) == Status::workspace_too_small);
      REQUIRE(run(ctx, 3) == Status::shape_mismatch);
      REQUIRE(run(ctx, 4) == Status::ok);
      close(out.read(), expected, 1e-5f);
    });
  }
}

TEST_CASE("cuda output_error: errors to 1e-5 of the CPU's, and the same slots leave one after the other") {
  constexpr index_t most = 45;
  const std::vector<index_t> slots{45, 0, 1, 34, 20}, offset = test::offsets(slots), total{30, 0, 0, 2, 25};
  const std::vector<prim::Ends> ends{{2, 3}, {1, 1}, {0, 0}, {1, 0}, {4, 4}};
  struct Over {
    bool skip, ends;  ///< are there ends, and are they in the output?
  };
  for (const Sized& size : {Sized{33, 0}, {64, 1}, {80, 1}, {128, 0}, {256, 1}})
    for (const Over& over : {Over{true, false}, {true, true}, {false, true}}) {
      if (over.skip == (size.dim > 100)) continue;
      const index_t dim = size.dim, heads = 5;
      const bool skip = over.skip;
      const prim::HeadOutput of{size.with == 1, over.ends};
      std::vector<float> x = normals(heads * most * dim, 15), w = normals(offset.back(), 16);
      for (float& v : w) v = std::fabs(v);
      x[at(6 * dim + 2)] = NAN, x[at(9 * dim)] = INFINITY, w[12] = NAN, x[at(43 * dim)] = NAN, w[1] = NAN, w[14] = w[15] = 0.0f;
      for (index_t d = 0; d < dim; ++d) x[at(21 * dim + d)] = x[at(20 * dim + d)];
      w[21] = w[20] = 1e-3f;  // equal errors, among the least
      std::vector<float> errors = w, left(w.size());
      std::vector<std::int32_t> kept(w.size(), -7);
      std::vector<index_t> count(at(heads));
      index_t bad = 3;
      Context<Cpu> cpu;
      const DenseRows host(dense_view(static_cast<const float*>(x.data()), heads, most, dim));
      const prim::Ends* e = skip ? ends.data() : nullptr;
      REQUIRE(prim::OutputError<Cpu>::run(cpu, host, e, of, {errors.data(), offset.data(), heads}) == Status::ok);
      REQUIRE(prim::OutputError<Cpu>::drop(cpu, host, {w.data(), offset.data(), heads}, e, of, total.data(), {left.data(), offset.data(), heads},
                                           {kept.data(), offset.data(), heads}, count.data(), &bad) == Status::ok);
      test::each_way([&] {
        test::Device device;
        test::DeviceRows rows(device, x, slots, most, dim);
        test::OnDevice<float> scores(device, w), weights(device, w), scratch(device, std::vector<float>(w.size(), 7.0f));
        test::OnDevice<index_t> o(device, offset), t(device, total), c(device, std::vector<index_t>(at(heads), -7)), nan_count(device, {3});
        test::OnDevice<std::int32_t> list(device, std::vector<std::int32_t>(w.size(), -7));
        test::OnDevice<prim::Ends> device_ends(device, ends);
        const prim::Ends* de = skip ? device_ends.data() : nullptr;
        REQUIRE(prim::OutputError<Cuda>::run(device, rows.rows(), de, of, {scores.data(), o.data(), heads}) == Status::ok);
        close(scores.read(), errors, 1e-5f);
        REQUIRE(prim::OutputError<Cuda>::drop(device, rows.rows(), {weights.data(), o.data(), heads}, de, of, t.data(), {scratch.data(), o.data(), heads},
                                              {list.data(), o.data(), heads}, c.data(), nan_count.data()) == Status::ok);
        CHECK(c.read() == count);
        CHECK(nan_count.read()[0] == bad);
        std::vector<std::int32_t> got = list.read();
        for (index_t h = 0; h < heads; ++h)  // what lies behind a row's count is nobody's
          for (index_t i = offset[at(h)] + count[at(h)]; i < offset[at(h + 1)]; ++i) got[at(i)] = kept[at(i)];
        CHECK(got == kept);
        CHECK(prim::OutputError<Cuda>::run(device, rows.rows(), de, of, {scores.data(), o.data(), 2}) == Status::shape_mismatch);
      });
    }
}
