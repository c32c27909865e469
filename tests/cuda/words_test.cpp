// The smaller words on CUDA: rotations, transforms, lengths, numbers per slot, moving what is kept.

#include <cmath>
#include <cstring>
#include <numeric>
#include <random>
#include <vector>

#include <kvcondense/backend/cpu/chunk_pool.hpp>
#include <kvcondense/backend/cpu/column_pool.hpp>
#include <kvcondense/backend/cpu/corrected.hpp>
#include <kvcondense/backend/cpu/exact_rows.hpp>
#include <kvcondense/backend/cpu/group_quant.hpp>
#include <kvcondense/backend/cpu/keep_rows.hpp>
#include <kvcondense/backend/cpu/rope.hpp>
#include <kvcondense/backend/cpu/row_direction.hpp>
#include <kvcondense/backend/cpu/row_norm.hpp>
#include <kvcondense/backend/cpu/row_transform.hpp>
#include <kvcondense/backend/cpu/slot_exposure.hpp>
#include <kvcondense/backend/cpu/slot_numbers.hpp>
#include <kvcondense/backend/cpu/softmax_rows.hpp>
#include <kvcondense/backend/cpu/token_numbers.hpp>
#include <kvcondense/backend/cuda/words.cuh>

#include "device.hpp"
#include "paged_heads.hpp"

using namespace kvcondense;
using test::at;

namespace {

std::vector<float> normal_numbers(index_t n, unsigned seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  std::vector<float> x(at(n));
  for (float& v : x) v = normal(random);
  return x;
}

}  // namespace

TEST_CASE("cuda rope: as the CPU, forth, back and in place") {
  constexpr index_t heads = 3, tokens = 5;
  for (const prim::RopePairing pairing : {prim::RopePairing::half_split, prim::RopePairing::interleaved})
    for (const index_t dim : {2, 64, 80, 256})
      for (const index_t rotary : {index_t{0}, index_t{2}, dim / 4 * 2})
        for (const index_t place_heads : {index_t{1}, heads}) {
          if (rotary == 0 && dim == 2) continue;
          const auto angles = prim::rope_angles({.pairing = pairing, .rotary_dim = rotary}, dim);
          if (!angles) continue;
          const std::vector<float> x = normal_numbers(heads * tokens * dim, 3);
          std::vector<index_t> positions(at(place_heads * tokens));
          for (std::size_t i = 0; i < positions.size(); ++i) positions[i] = static_cast<index_t>(i * 977) - 400;
          for (const bool back : {false, true}) {
            const prim::RopeTurn turn{.back = back, .scale = back ? 1.0f : 1.25f};
            std::vector<float> expected(x.size());
            Context<Cpu> cpu;
            REQUIRE(prim::Rope<Cpu>::rotate(cpu, *angles, dense_view(x.data(), heads, tokens, dim), dense_view(static_cast<const index_t*>(positions.data()), place_heads, tokens),
                                            dense_view(expected.data(), heads, tokens, dim), turn) == Status::ok);
            test::Device device;
            test::OnDevice<float> in(device, x), out(device, std::vector<float>(x.size(), 7.0f));
            test::OnDevice<index_t> where(device, positions);
            const auto place = dense_view(static_cast<const index_t*>(where.data()), place_heads, tokens);
            REQUIRE(prim::Rope<Cuda>::rotate(device, *angles, dense_view(static_cast<const float*>(in.data()), heads, tokens, dim), place,
                                             dense_view(out.data(), heads, tokens, dim), turn) == Status::ok);
            REQUIRE(prim::Rope<Cuda>::rotate(device, *angles, dense_view(static_cast<const float*>(in.data()), heads, tokens, dim), place,
                                             dense_view(in.data(), heads, tokens, dim), turn) == Status::ok);
            const std::vector<float> got = out.read(), same = in.read();
            for (std::size_t i = 0; i < x.size(); ++i) REQUIRE(std::fabs(got[i] - expected[i]) <= 1e-6f * (1.0f + std::fabs(expected[i])));
            CHECK(got == same);
          }
        }
  test::Device device;
  const auto angles = prim::rope_angles({}, 64);
  const TensorView<const float, 3> rows = dense_view(static_cast<const float*>(nullptr), 2, 3, 64);
  const TensorView<float, 3> out = dense_view(static_cast<float*>(nullptr), 2, 3, 64);
  CHECK(prim::Rope<Cuda>::rotate(device, *angles, rows, dense_view(static_cast<const index_t*>(nullptr), 1, 4), out) == Status::shape_mismatch);
  CHECK(prim::Rope<Cuda>::rotate(device, *angles, dense_view(static_cast<const float*>(nullptr), 2, 3, 63), dense_view(static_cast<const index_t*>(nullptr), 1, 3),
                                 dense_view(static_cast<float*>(nullptr), 2, 3, 63)) == Status::shape_mismatch);
}

TEST_CASE("cuda hadamard: bit for bit the CPU's") {
  for (const index_t dim : {1, 8, 64, 80, 96, 112, 128, 256})
    for (const prim::Hadamard t : {prim::Hadamard{}, prim::Hadamard{.block = 4, .seed = 9}, prim::Hadamard{.seed = 5, .overlap = true}}) {
      if (!t.valid(dim)) continue;
      const std::vector<float> x = normal_numbers(7 * (dim + 2), 4);
      std::vector<float> forth = x, back = x;
      prim::RowTransform<Cpu, prim::Hadamard>::forward(t, dim, {forth.data(), 7, dim + 2});
      prim::RowTransform<Cpu, prim::Hadamard>::backward(t, dim, {back.data(), 7, dim + 2});
      test::each_way([&] {
        test::Device device;
        test::OnDevice<float> a(device, x), b(device, x);
        REQUIRE(prim::RowTransform<Cuda, prim::Hadamard>::query(device, t, dim, {a.data(), 7, dim + 2}) == Status::ok);
        REQUIRE(prim::RowTransform<Cuda, prim::Hadamard>::backward(device, t, dim, {b.data(), 7, dim + 2}) == Status::ok);
        CHECK(a.read() == forth);
        CHECK(b.read() == back);
      });
    }
  test::Device device;
  CHECK(prim::RowTransform<Cuda, prim::Hadamard>::forward(device, {.block = 16}, 72, {nullptr, 1, 72}) == Status::invalid_argument);
}

TEST_CASE("cuda row_norm: rows in every stored form") {
  const std::vector<test::ColumnShape> shapes{{4, 100, 9, 2}, {0, 0, 3}, {0, 0, 0}, {1, 64, 0}};
  const std::vector<index_t> slots{113, 3, 0, 65}, offset{0, 113, 116, 116, 181};
  const auto compare = [&](const auto& codec, index_t dim) {
    using Codec = std::remove_cvref_t<decltype(codec)>;
    const test::HostColumn<Codec> column(codec, {DType::f16}, dim, 64, shapes, 21);
    std::vector<float> expected(181, 7.0f);
    constexpr index_t newest = 90;
    for (std::size_t h = 0; h < 4; ++h)
      for (index_t j = std::max<index_t>(0, slots[h] - newest); j < slots[h]; ++j)
        column.each(static_cast<index_t>(h), j, 1, [&](const prim::SlotRun& run, index_t place, index_t, index_t) {
          std::vector<float> x(at(dim));
          if (run.coded) prim::PageCodec<Cpu, Codec>::decode(column.codec(), column.page(run), place, 1, {x.data(), 1, dim});
          else prim::PageCodec<Cpu, prim::ExactRows>::decode(column.exact(), column.page(run), place, 1, {x.data(), 1, dim});
          double sum = 0.0;
          for (const float v : x) sum += static_cast<double>(v) * static_cast<double>(v);
          expected[at(offset[h] + j)] = -2.0f * static_cast<float>(std::sqrt(sum));
        });
    test::each_way([&] {
      test::Device device;
      auto copy = column.on(device);
      test::OnDevice<index_t> n(device, slots), o(device, offset);
      test::OnDevice<float> out(device, std::vector<float>(181, 7.0f));
      SlotRows<Cuda> rows;
      if constexpr (std::is_same_v<Codec, prim::ExactRows>) rows = SlotRows<Cuda>(codec, copy.view(), n.data(), 4, 113, dim);
      else rows = SlotRows<Cuda>(prim::DeviceForm<Codec>::of(codec, nullptr, 0, dim), {DType::f16}, copy.view(), n.data(), 4, 113, dim);
      REQUIRE(prim::RowNorm<Cuda>::run(device, rows, newest, -2.0f, {out.data(), o.data(), 4}) == Status::ok);
      const std::vector<float> got = out.read();
      for (std::size_t i = 0; i < got.size(); ++i) REQUIRE(std::fabs(got[i] - expected[i]) <= 1e-5f * std::fabs(expected[i]));
      CHECK(prim::RowNorm<Cuda>::run(device, rows, newest, 1.0f, {out.data(), o.data(), 3}) == Status::shape_mismatch);
    });
  };
  compare(prim::ExactRows{DType::f16}, 33);
  compare(prim::GroupInt<4>{.axis = prim::GroupAxis::channel, .group_size = 32}, 128);
  compare(prim::GroupInt<2>{.axis = prim::GroupAxis::token, .group_size = 32, .form = prim::GroupForm::integer_zero}, 64);
  compare(prim::GroupInt<3>{.axis = prim::GroupAxis::token, .group_size = 0, .form = prim::GroupForm::symmetric, .params = prim::ParamType::bf16}, 50);
  compare(prim::GroupInt<8>{.axis = prim::GroupAxis::token, .group_size = 20, .params = prim::ParamType::f32}, 80);
  compare(prim::Corrected<prim::GroupInt<2>>{{.axis = prim::GroupAxis::channel, .group_size = 16}, prim::GroupAxis::channel, 32, 0.1, 2}, 64);
}

TEST_CASE("cuda row_product: rows in exact and coded form, each with the direction of its head") {
  const std::vector<test::ColumnShape> shapes{{4, 100, 9, 2}, {0, 0, 3}, {0, 0, 0}, {1, 64, 0}};
  const std::vector<index_t> slots{113, 3, 0, 65}, offset{0, 113, 116, 116, 181};
  const auto compare = [&](const auto& codec, index_t dim) {
    using Codec = std::remove_cvref_t<decltype(codec)>;
    const test::HostColumn<Codec> column(codec, {DType::f16}, dim, 64, shapes, 21);
    std::vector<float> expected(181, 7.0f), size(181), directions(at(4 * dim));
    for (std::size_t i = 0; i < directions.size(); ++i) directions[i] = static_cast<float>(i * 7 % 11) - 5.0f;
    constexpr index_t newest = 90;
    for (std::size_t h = 0; h < 4; ++h)
      for (index_t j = std::max<index_t>(0, slots[h] - newest); j < slots[h]; ++j)
        column.each(static_cast<index_t>(h), j, 1, [&](const prim::SlotRun& run, index_t place, index_t, index_t) {
          std::vector<float> x(at(dim));
          if (run.coded) prim::PageCodec<Cpu, Codec>::decode(column.codec(), column.page(run), place, 1, {x.data(), 1, dim});
          else prim::PageCodec<Cpu, prim::ExactRows>::decode(column.exact(), column.page(run), place, 1, {x.data(), 1, dim});
          double sum = 0.0, sizes = 0.0;
          for (std::size_t c = 0; c < x.size(); ++c) {
            const double y = static_cast<double>(x[c]) * static_cast<double>(directions[h * x.size() + c]);
            sum += y, sizes += std::fabs(y);
          }
          expected[at(offset[h] + j)] = -2.0f * static_cast<float>(sum), size[at(offset[h] + j)] = static_cast<float>(sizes);
        });
    test::each_way([&] {
      test::Device device;
      auto copy = column.on(device);
      test::OnDevice<index_t> n(device, slots), o(device, offset);
      test::OnDevice<float> out(device, std::vector<float>(181, 7.0f)), along(device, directions);
      SlotRows<Cuda> rows;
      if constexpr (std::is_same_v<Codec, prim::ExactRows>) rows = SlotRows<Cuda>(codec, copy.view(), n.data(), 4, 113, dim);
      else rows = SlotRows<Cuda>(prim::DeviceForm<Codec>::of(codec, nullptr, 0, dim), {DType::f16}, copy.view(), n.data(), 4, 113, dim);
      REQUIRE(prim::RowProduct<Cuda>::run(device, rows, newest, along.data(), -2.0f, {out.data(), o.data(), 4}) == Status::ok);
      const std::vector<float> got = out.read();
      for (std::size_t i = 0; i < got.size(); ++i) REQUIRE(std::fabs(got[i] - expected[i]) <= 1e-5f * size[i]);
      CHECK(prim::RowProduct<Cuda>::run(device, rows, newest, along.data(), 1.0f, {out.data(), o.data(), 3}) == Status::shape_mismatch);
    });
  };
  compare(prim::ExactRows{DType::f16}, 33);
  compare(prim::GroupInt<4>{.axis = prim::GroupAxis::channel, .group_size = 32}, 128);
}

TEST_CASE("cuda row_norm: a row that is not finite is the longest") {
  std::vector<float> x(3 * 40, 1.0f);
  x[5] = NAN, x[45] = INFINITY;
  test::Device device;
  test::OnDevice<float> page(device, x), out(device, std::vector<float>(3));
  test::OnDevice<prim::SlotRun> runs(device, {{reinterpret_cast<std::byte*>(page.data()), 0, 0, false}});
  test::OnDevice<index_t> offset(device, {0, 1}), slots(device, {3}), places(device, {0, 3});
  const SlotRows<Cuda> rows(prim::ExactRows{DType::f32}, {runs.data(), offset.data(), 0}, slots.data(), 1, 3, 40);
  REQUIRE(prim::RowNorm<Cuda>::run(device, rows, 3, -1.0f, {out.data(), places.data(), 1}) == Status::ok);
  const std::vector<float> got = out.read();
  CHECK(got[0] == -INFINITY);
  CHECK(got[1] == -INFINITY);
  CHECK(got[2] == Approx(-std::sqrt(40.0f)));
}

namespace {

/// call(ctx, x, out) on both backends. `within` 0: equal bit for bit, NaN too.
template <class Call>
void compare_numbers(const std::vector<index_t>& offset, const std::vector<float>& x, const std::vector<float>& y, Call&& call, float within = 0.0f) {
  const auto heads = static_cast<index_t>(offset.size()) - 1;
  std::vector<float> expected = y;
  Context<Cpu> cpu;
  REQUIRE(call(cpu, RaggedView<const float>{x.data(), offset.data(), heads}, RaggedView<float>{expected.data(), offset.data(), heads}) == Status::ok);
  test::each_way([&] {
    test::Device device;
    test::OnDevice<float> in(device, x), out(device, y);
    test::OnDevice<index_t> o(device, offset);
    REQUIRE(call(device.context(), RaggedView<const float>{in.data(), o.data(), heads}, RaggedView<float>{out.data(), o.data(), heads}) == Status::ok);
    const std::vector<float> got = out.read();
    if (within == 0.0f) CHECK(std::memcmp(got.data(), expected.data(), got.size() * sizeof(float)) == 0);
    for (std::size_t i = 0; within > 0.0f && i < got.size(); ++i) {
      if (got[i] == expected[i] || (std::isnan(got[i]) && std::isnan(expected[i]))) continue;
      if (!(std::fabs(got[i] - expected[i]) <= within * std::fabs(expected[i]))) FAIL_CHECK(i << ": " << got[i] << " instead of " << expected[i]);
    }
  });
}

}  // namespace

TEST_CASE("cuda slot_numbers: bit for bit the CPU's") {
  const std::vector<index_t> offset{0, 5000, 5000, 5001, 5333};
  const std::vector<float> x = normal_numbers(5333, 5), y = normal_numbers(5333, 6);
  const auto compare = [&](auto&& call) { compare_numbers(offset, x, y, call); };
  compare([]<Backend B>(Context<B>& c, RaggedView<const float>, RaggedView<float> out) { return prim::SlotNumbers<B>::fill(c, 0.3f, out); });
  compare([]<Backend B>(Context<B>& c, RaggedView<const float>, RaggedView<float> out) { return prim::SlotNumbers<B>::index(c, out); });
  compare([]<Backend B>(Context<B>& c, RaggedView<const float> in, RaggedView<float> out) { return prim::SlotNumbers<B>::mix(c, in, 0.7f, 0.9f, out); });
  compare([]<Backend B>(Context<B>& c, RaggedView<const float> in, RaggedView<float> out) { return prim::SlotNumbers<B>::mix(c, in, 0.7f, 0.0f, out); });
  compare([]<Backend B>(Context<B>& c, RaggedView<const float> in, RaggedView<float> out) { return prim::SlotNumbers<B>::larger(c, in, out); });
  compare([]<Backend B>(Context<B>& c, RaggedView<const float> in, RaggedView<float> out) { return prim::SlotNumbers<B>::times(c, in, 0.1f, out); });
  std::vector<float> sizes = x;
  for (float& v : sizes) v = std::fabs(v);
  const auto brought = []<Backend B>(Context<B>& c, RaggedView<const float> in, RaggedView<float> out) { return prim::SlotNumbers<B>::larger_brought(c, in, out); };
  compare_numbers(offset, sizes, y, brought, 1e-6f);
  compare_numbers({0, 3, 6}, {0, 0, 0, 1, 2, 3}, {1, -2, 3, 5, 1, 0}, brought, 1e-6f);  // a mean of 0 leaves out as it is
}

TEST_CASE("cuda slot_exposure: counts, means and logarithms of means") {
  const std::vector<index_t> offset{0, 5000, 5000, 5001, 5333};
  constexpr index_t stepped = 1 << 20;
  std::vector<float> mark = normal_numbers(5333, 16), x = normal_numbers(5333, 17);
  for (float& v : mark) v = prim::exposure_mark(v < -0.5f ? 0 : static_cast<std::uint32_t>(std::floor(v * 40.0f) + 20.0f), stepped);
  x[7] = NAN, x[8] = INFINITY;
  for (const index_t appended : {0, 1, 40})
    for (const index_t rows : {0, 1, 40, 100000})
      compare_numbers(offset, x, mark, [&]<Backend B>(Context<B>& c, RaggedView<const float>, RaggedView<float> out) { return prim::SlotExposure<B>::count(c, stepped, appended, rows, out); });
  compare_numbers(offset, x, mark, []<Backend B>(Context<B>& c, RaggedView<const float>, RaggedView<float> out) { return prim::SlotExposure<B>::begin(c, stepped, 40, out); });
  // `out` is the marks, and is replaced by the means.
  compare_numbers(offset, x, mark, []<Backend B>(Context<B>& c, RaggedView<const float> in, RaggedView<float> out) { return prim::SlotExposure<B>::mean(c, in, out, stepped, out); });
  for (const index_t appended : {0, 1, 40})
    compare_numbers(offset, mark, x, [&]<Backend B>(Context<B>& c, RaggedView<const float>, RaggedView<float> out) { return prim::SlotExposure<B>::open_logs(c, appended, out); });
  for (const float decay : {0.5f, 0.99f})
    compare_numbers(offset, x, mark, [&]<Backend B>(Context<B>& c, RaggedView<const float> in, RaggedView<float> out) { return prim::SlotExposure<B>::decayed_mean(c, in, out, stepped, decay, out); }, 2e-5f);
  for (const index_t rows : {0, 1, 300, 700}) {
    std::vector<float> expected(at(rows) + 1, 7.0f);
    Context<Cpu> cpu;
    REQUIRE(prim::SlotExposure<Cpu>::row_divisors(cpu, 700, rows, expected.data()) == Status::ok);
    test::each_way([&] {
      test::Device device;
      test::OnDevice<float> out(device, std::vector<float>(expected.size(), 7.0f));
      REQUIRE(prim::SlotExposure<Cuda>::row_divisors(device, 700, rows, out.data()) == Status::ok);
      CHECK(out.read() == expected);
    });
  }
}

TEST_CASE("cuda chunk_pool: bit for bit the CPU's, ends and NaN left alone") {
  const std::vector<index_t> offset{0, 4500, 4500, 4501, 4540};
  std::vector<float> y = normal_numbers(4540, 18);
  y[3] = y[900] = NAN, y[901] = INFINITY, y[4510] = NAN;
  const std::vector<prim::Ends> ends{{4, 32}, {4, 32}, {0, 1}, {10, 3}};
  test::Device device;
  test::OnDevice<prim::Ends> on_device(device, ends);
  for (const prim::ChunkReduce reduce : {prim::ChunkReduce::sum, prim::ChunkReduce::mean})
    for (const index_t chunk : {1, 2, 20, 10000})
      for (const bool skip : {false, true})
        compare_numbers(offset, y, y, [&]<Backend B>(Context<B>& c, RaggedView<const float>, RaggedView<float> out) {
          const prim::Ends* e = !skip ? nullptr : std::is_same_v<B, Cpu> ? ends.data() : on_device.data();
          return prim::ChunkPool<B>::run(c, e, reduce, chunk, out);
        });
  CHECK(prim::ChunkPool<Cuda>::run(device, nullptr, prim::ChunkReduce::sum, 0, {}) == Status::invalid_argument);
}

TEST_CASE("cuda row_direction: cosines with the mean of rows, bad rows and rows that cancel out") {
  constexpr index_t heads = 3, n = 70;
  for (const index_t dim : {33, 128, 256}) {
    std::vector<float> x = normal_numbers(heads * n * dim, 19);
    for (index_t i = 0; i < n * dim; ++i) x[at(i)] += 0.5f;
    x[at(3 * dim + 1)] = NAN, x[at(5 * dim)] = INFINITY;
    std::fill_n(x.begin() + 9 * dim, dim, 0.0f);
    for (index_t j = 1; j < n; j += 2)  // of the last head, rows and their opposites
      for (index_t d = 0; d < dim; ++d) x[at((2 * n + j) * dim + d)] = -x[at((2 * n + j - 1) * dim + d)];
    const std::vector<index_t> offset{0, n, 2 * n, 3 * n}, slots{n, n, n}, one{0, 1, 2, 3};
    for (const prim::Anchor anchor : {prim::Anchor::mean_direction, prim::Anchor::mean_row}) {
      std::vector<float> expected(at(heads * n), 7.0f);
      Context<Cpu> cpu;
      const DenseRows host(dense_view(static_cast<const float*>(x.data()), heads, n, dim));
      REQUIRE(prim::RowDirection<Cpu>::run(cpu, host, anchor, -2.0f, {expected.data(), offset.data(), heads}) == Status::ok);
      CHECK(std::isnan(expected[3]));
      CHECK(expected[9] == 0.0f);
      CHECK(expected[2 * n + 5] == 0.0f);
      test::each_way([&] {
        test::Device device;
        test::OnDevice<float> pages(device, x), out(device, std::vector<float>(at(heads * n), 7.0f));
        auto* page = reinterpret_cast<std::byte*>(pages.data());
        const std::ptrdiff_t head_bytes = n * dim * static_cast<index_t>(sizeof(float));
        test::OnDevice<prim::SlotRun> runs(device, {{page, 0, 0, false}, {page + head_bytes, 0, 0, false}, {page + 2 * head_bytes, 0, 0, false}});
        test::OnDevice<index_t> o(device, offset), s(device, slots), r(device, one);
        const SlotRows<Cuda> rows(prim::ExactRows{DType::f32}, {runs.data(), r.data(), 0}, s.data(), heads, n, dim);
        REQUIRE(prim::RowDirection<Cuda>::run(device, rows, anchor, -2.0f, {out.data(), o.data(), heads}) == Status::ok);
        const std::vector<float> got = out.read();
        for (std::size_t i = 0; i < got.size(); ++i)
          REQUIRE(((std::isnan(got[i]) && std::isnan(expected[i])) || std::fabs(got[i] - expected[i]) <= 2e-6f));
        CHECK(prim::RowDirection<Cuda>::run(device, rows, anchor, 1.0f, {out.data(), o.data(), 2}) == Status::shape_mismatch);
      });
    }
  }
}

TEST_CASE("cuda slot_numbers: sums over heads, in place too") {
  const std::vector<index_t> equal{0, 700, 1400, 2100};
  const std::vector<float> x = normal_numbers(2100, 7), y = normal_numbers(2100, 8);
  for (const float keep : {0.0f, 0.9f}) {
    compare_numbers(equal, x, y, [&]<Backend B>(Context<B>& c, RaggedView<const float> in, RaggedView<float> out) { return prim::SlotNumbers<B>::sum_heads(c, in, 0.7f, keep, out); });
    compare_numbers(equal, x, y, [&]<Backend B>(Context<B>& c, RaggedView<const float>, RaggedView<float> out) { return prim::SlotNumbers<B>::sum_heads(c, out, 0.7f, keep, out); });
  }
  // Heads of different lengths, which only the device sees.
  test::Device device;
  test::OnDevice<float> in(device, x), out(device, y);
  test::OnDevice<index_t> offset(device, {0, 700, 1401, 2100});
  REQUIRE(prim::SlotNumbers<Cuda>::sum_heads(device, {in.data(), offset.data(), 3}, 1.0f, 0.0f, {out.data(), offset.data(), 3}) == Status::ok);
  for (const float v : out.read()) REQUIRE(std::isnan(v));
  CHECK(prim::SlotNumbers<Cuda>::sum_heads(device, {nullptr, nullptr, 0}, 1.0f, 0.0f, {nullptr, nullptr, 0}) == Status::ok);
}

TEST_CASE("cuda softmax_rows: rows of numbers, of -inf, with NaN, and folds of rows") {
  const std::vector<index_t> offset{0, 3000, 3000, 3001, 3100, 3140};
  std::vector<float> x = normal_numbers(3140, 9);
  x[17] = x[3005] = NAN, x[30] = -INFINITY;
  for (std::size_t i = 3100; i < 3140; ++i) x[i] = i == 3120 ? NAN : -INFINITY;
  for (const float scale : {1.0f, 7.5f})
    compare_numbers(offset, x, x, [&]<Backend B>(Context<B>& c, RaggedView<const float>, RaggedView<float> out) { return prim::SoftmaxRows<B>::run(c, scale, out); }, 2e-6f);
  const std::vector<index_t> rows{0, 500, 1000, 1500, 2000, 2500, 3000}, two{0, 500, 1000};
  for (const prim::RowFold how : {prim::RowFold::largest, prim::RowFold::sum, prim::RowFold::mean})
    for (const index_t group : {1, 3}) {
      std::vector<float> expected(1000), start(1000, 7.0f);
      Context<Cpu> cpu;
      REQUIRE(prim::FoldRows<Cpu>::run(cpu, {x.data(), rows.data(), 6}, group, how, {expected.data(), two.data(), 2}) == Status::ok);
      test::Device device;
      test::OnDevice<float> in(device, x), out(device, start);
      test::OnDevice<index_t> from(device, rows), to(device, two);
      REQUIRE(prim::FoldRows<Cuda>::run(device, {in.data(), from.data(), 6}, group, how, {out.data(), to.data(), 2}) == Status::ok);
      const std::vector<float> got = out.read();
      for (std::size_t i = 0; i < got.size(); ++i) REQUIRE((got[i] == expected[i] || (std::isnan(got[i]) && std::isnan(expected[i]))));
    }
}

TEST_CASE("cuda column_pool: bit for bit the CPU's, ends left alone") {
  const std::vector<index_t> offset{0, 4500, 4500, 4501, 4540};
  std::vector<float> x = normal_numbers(4540, 10);
  x[3] = x[900] = NAN, x[901] = INFINITY;
  const std::vector<float> y = normal_numbers(4540, 11);
  const std::vector<prim::Ends> ends{{4, 32}, {4, 32}, {0, 1}, {10, 3}};
  test::Device device;
  test::OnDevice<prim::Ends> on_device(device, ends);
  for (const prim::Pool pool : {prim::Pool::average, prim::Pool::average_valid, prim::Pool::maximum})
    for (const index_t kernel : {1, 5, 63})
      for (const bool skip : {false, true})
        compare_numbers(offset, x, y, [&]<Backend B>(Context<B>& c, RaggedView<const float> in, RaggedView<float> out) {
          const prim::Ends* e = !skip ? nullptr : std::is_same_v<B, Cpu> ? ends.data() : on_device.data();
          return prim::ColumnPool<B>::run(c, in, e, pool, kernel, out);
        });
  CHECK(prim::ColumnPool<Cuda>::run(device, {}, nullptr, prim::Pool::average, 4, {}) == Status::invalid_argument);
}

TEST_CASE("cuda token_numbers: written to the newest slots, NaN replaced, extended") {
  const std::vector<index_t> offset{0, 300, 300, 305, 800};
  const std::vector<float> y = normal_numbers(800, 12);
  std::vector<float> numbers = normal_numbers(4 * 200, 13);
  numbers[5] = numbers[250] = NAN;
  std::fill_n(numbers.begin() + 400, 200, NAN);
  for (std::size_t i = 600; i < 800; ++i) numbers[i] = i % 3 == 0 ? NAN : -std::fabs(numbers[i]);
  const std::vector<TokenClass> classes(200, static_cast<TokenClass>(1));
  test::Device device;
  test::OnDevice<float> on_device(device, numbers);
  test::OnDevice<TokenClass> device_classes(device, classes);
  for (const prim::MissingNumber missing : {prim::MissingNumber::stays, prim::MissingNumber::largest})
    for (const index_t heads : {1, 4})
      for (const index_t back : {0, 1, 150})
        compare_numbers(offset, y, y, [&]<Backend B>(Context<B>& c, RaggedView<const float>, RaggedView<float> out) {
          const float* from = std::is_same_v<B, Cpu> ? numbers.data() : on_device.data();
          return prim::TokenNumbers<B>::write(c, dense_view(from, heads, index_t{200}), back == 1 ? -1.0f : 1.0f, back, missing, out);
        });
  compare_numbers(offset, y, y, [&]<Backend B>(Context<B>& c, RaggedView<const float>, RaggedView<float> out) {
    return prim::TokenNumbers<B>::write(c, {std::is_same_v<B, Cpu> ? classes.data() : device_classes.data(), classes.size()}, out);
  });
  for (const index_t tokens : {0, 4, 5, 299})
    compare_numbers(offset, y, y, [&]<Backend B>(Context<B>& c, RaggedView<const float>, RaggedView<float> out) { return prim::TokenNumbers<B>::extend(c, tokens, out); });
  CHECK(prim::TokenNumbers<Cuda>::write(device, dense_view(static_cast<const float*>(nullptr), index_t{3}, index_t{2}), 1.0f, 0, prim::MissingNumber::stays, {nullptr, nullptr, 4}) == Status::shape_mismatch);
}

namespace {

template <class Codec>
void compare_keep(const Codec& codec, index_t dim, index_t page_slots) {
  const std::vector<index_t> slots{150, 64, 0, 9, 130}, count{70, 64, 0, 0, 129};
  std::mt19937 random(8);
  const std::size_t bytes = codec.page_bytes(page_slots, dim);
  std::vector<test::HostPage> pages;
  std::vector<std::byte*> table;
  std::vector<index_t> page_offset{0}, offset{0};
  std::vector<std::int32_t> keep;
  std::vector<std::vector<float>> before;
  for (std::size_t h = 0; h < slots.size(); ++h) {
    for (index_t s = 0; s < slots[h]; s += page_slots) {
      pages.emplace_back(bytes);
      table.push_back(pages.back().bytes.get());
      const auto x = normal_numbers(page_slots * dim, static_cast<unsigned>(s + 1));
      prim::PageCodec<Cpu, Codec>::encode(codec, {table.back(), page_slots, dim}, 0, page_slots, {x.data(), page_slots, dim});
    }
    page_offset.push_back(static_cast<index_t>(table.size()));
    offset.push_back(offset.back() + slots[h]);
    std::vector<std::int32_t> all(at(slots[h]));
    std::iota(all.begin(), all.end(), 0);
    while (static_cast<index_t>(all.size()) > count[h]) all.erase(all.begin() + static_cast<std::ptrdiff_t>(random() % all.size()));
    all.resize(at(slots[h]), -1);
    keep.insert(keep.end(), all.begin(), all.end());
  }
  const auto decode = [&](std::size_t h, index_t s) {
    std::vector<float> x(at(dim));
    prim::PageCodec<Cpu, Codec>::decode(codec, {table[at(page_offset[h] + s / page_slots)], page_slots, dim}, s % page_slots, 1, {x.data(), 1, dim});
    return x;
  };
  for (std::size_t h = 0; h < slots.size(); ++h)
    for (index_t i = 0; i < count[h]; ++i) before.push_back(decode(h, keep[at(offset[h] + i)]));

  std::vector<std::vector<std::byte>> original;
  for (const auto& p : pages) original.emplace_back(p.bytes.get(), p.bytes.get() + p.size);
  Context<Cpu> cpu;
  const prim::PageTable host{table.data(), page_offset.data(), 5, page_slots, dim};
  REQUIRE(prim::KeepRows<Cpu>::rows(cpu, codec, host, {keep.data(), offset.data(), 5}, count.data()) == Status::ok);
  std::size_t at_row = 0;
  for (std::size_t h = 0; h < slots.size(); ++h)
    for (index_t i = 0; i < count[h]; ++i) REQUIRE(decode(h, i) == before[at_row++]);

  test::each_way([&] {
    test::Device device;
    std::vector<test::OnDevice<std::byte>> copies;
    std::vector<std::byte*> device_table;
    for (const auto& o : original) copies.emplace_back(device, o), device_table.push_back(copies.back().data());
    test::OnDevice<std::byte*> t(device, device_table);
    test::OnDevice<index_t> po(device, page_offset), o(device, offset), c(device, count);
    test::OnDevice<std::int32_t> k(device, keep);
    REQUIRE(prim::KeepRows<Cuda>::rows(device, codec, {t.data(), po.data(), 5, page_slots, dim}, {k.data(), o.data(), 5}, c.data()) == Status::ok);
    for (std::size_t p = 0; p < pages.size(); ++p) {
      const std::vector<std::byte> got = copies[p].read();
      REQUIRE(std::memcmp(got.data(), pages[p].bytes.get(), got.size()) == 0);
    }
  });
}

}  // namespace

TEST_CASE("cuda keep_rows: codes in lanes") {
  using prim::CodeLayout;
  compare_keep(prim::GroupInt<4>{.axis = prim::GroupAxis::token, .group_size = 32, .layout = CodeLayout::slot_lanes}, 128, 64);
  compare_keep(prim::GroupInt<2>{.axis = prim::GroupAxis::token, .group_size = 0, .form = prim::GroupForm::symmetric, .layout = CodeLayout::slot_lanes}, 64, 64);
  compare_keep(prim::GroupInt<8>{.axis = prim::GroupAxis::token, .group_size = 40, .params = prim::ParamType::f32, .layout = CodeLayout::slot_lanes}, 80, 16);
  compare_keep(prim::GroupInt<4>{.axis = prim::GroupAxis::token, .group_size = 64, .params = prim::ParamType::bf16, .layout = CodeLayout::channel_lanes}, 64, 32);
}

TEST_CASE("cuda keep_rows: exact rows and codes with parameters of their own") {
  compare_keep(prim::ExactRows{DType::f16}, 64, 64);
  compare_keep(prim::ExactRows{DType::f32}, 33, 16);
  compare_keep(prim::GroupInt<4>{.axis = prim::GroupAxis::token, .group_size = 32}, 128, 64);
  compare_keep(prim::GroupInt<3>{.axis = prim::GroupAxis::token, .group_size = 0, .form = prim::GroupForm::symmetric}, 50, 64);
  test::Device device;
  const prim::GroupInt<4> shared{.axis = prim::GroupAxis::channel, .group_size = 32};
  CHECK(prim::KeepRows<Cuda>::rows(device, shared, {nullptr, nullptr, 1, 64, 64}, {}, nullptr) == Status::not_supported);
  Context<Cpu> cpu;
  CHECK(prim::KeepRows<Cpu>::rows(cpu, shared, {nullptr, nullptr, 1, 64, 64}, {}, nullptr) == Status::not_supported);
}

TEST_CASE("cuda keep_rows: numbers of slots") {
  const std::vector<index_t> offset{0, 1000, 1003, 1003}, count{400, 3, 0};
  std::vector<std::int32_t> keep(1003, -1);
  for (std::size_t i = 0; i < 400; ++i) keep[i] = static_cast<std::int32_t>(i * 2 + i % 2);
  for (std::size_t i = 0; i < 3; ++i) keep[1000 + i] = static_cast<std::int32_t>(i);
  const std::vector<float> x = normal_numbers(1003, 9);
  std::vector<float> expected = x;
  Context<Cpu> cpu;
  REQUIRE(prim::KeepRows<Cpu>::numbers(cpu, {keep.data(), offset.data(), 3}, count.data(), {expected.data(), offset.data(), 3}) == Status::ok);
  for (std::size_t i = 0; i < 400; ++i) REQUIRE(expected[i] == x[i * 2 + i % 2]);
  test::each_way([&] {
    test::Device device;
    test::OnDevice<float> numbers(device, x);
    test::OnDevice<std::int32_t> k(device, keep);
    test::OnDevice<index_t> o(device, offset), c(device, count);
    REQUIRE(prim::KeepRows<Cuda>::numbers(device, {k.data(), o.data(), 3}, c.data(), {numbers.data(), o.data(), 3}) == Status::ok);
    CHECK(numbers.read() == expected);
  });
}
