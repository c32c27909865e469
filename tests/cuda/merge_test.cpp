// Words of merging on CUDA, beside the CPU's.

#include <algorithm>
#include <bit>
#include <cmath>
#include <random>
#include <vector>

#include <kvcondense/backend/cpu/merge_partials.hpp>
#include <kvcondense/backend/cpu/merge_weights.hpp>
#include <kvcondense/backend/cpu/row_similarity.hpp>
#include <kvcondense/backend/cuda/merge_partials.cuh>
#include <kvcondense/backend/cuda/merge_weights.cuh>
#include <kvcondense/backend/cuda/row_similarity.cuh>

#include "merge_links.hpp"
#include "numbers.hpp"

using namespace kvcondense;
using test::at;
using test::close;
using test::DeviceLinks;
using test::Links;
using test::normals;
using test::ragged_slots;

TEST_CASE("cuda merge_partials: to 2e-6 of the CPU's, parts without slots, NaN, more parts than lanes, in place") {
  constexpr index_t heads = 3, tokens = 2;
  for (const index_t dim : {64, 80, 128, 256})
    for (const index_t count : {0, 1, 3, 32, 33, 70}) {
      if (dim > 80 && count > 3) continue;
      const index_t n = heads * tokens, size = n * dim;
      std::vector<float> x = normals(count * size, 1), lse = normals(count * n, 2);
      for (index_t p = 0; p < count; ++p) lse[at(p * n)] = -INFINITY;  // the first row sees nothing
      for (index_t p = 1; p < count; p += 2) lse[at(p * n + 1)] = -INFINITY;
      if (count > 1) lse[at(n + 4)] = NAN;
      if (count > 0) lse[2] = 80.0f;
      for (const prim::LogBase base : {prim::LogBase::natural, prim::LogBase::two}) {
        const auto merge = [&]<Backend B>(Context<B>& c, const float* rows, const float* sums, float* out, float* to) {
          std::vector<prim::PartialAttention> parts;
          for (index_t p = 0; p < count; ++p) parts.push_back({dense_view(rows + p * size, heads, tokens, dim), dense_view(sums + p * n, heads, tokens)});
          return prim::MergePartials<B>::run(c, parts, dense_view(out, heads, tokens, dim), dense_view(to, heads, tokens), base);
        };
        std::vector<float> expected(at(size)), expected_lse(at(n));
        Context<Cpu> cpu;
        REQUIRE(merge(cpu, x.data(), lse.data(), expected.data(), expected_lse.data()) == Status::ok);
        test::each_way([&] {
          test::Device device;
          test::OnDevice<float> rows(device, x), sums(device, lse), out(device, std::vector<float>(at(size), 7.0f)), to(device, std::vector<float>(at(n), 7.0f));
          const std::size_t bytes = prim::MergePartials<Cuda>::workspace_bytes(count, heads, tokens, dim);
          CHECK((bytes > 0) == (count > 32));
          Context<Cuda> ctx = device.with_workspace(bytes);
          if (bytes > 0) {
            Context<Cuda> small = ctx.with_workspace(ctx.workspace().first(bytes - 1));
            CHECK(merge(small, rows.data(), sums.data(), out.data(), to.data()) == Status::workspace_too_small);
          }
          REQUIRE(merge(ctx, rows.data(), sums.data(), out.data(), to.data()) == Status::ok);
          close(out.read(), expected, 2e-6f, 4.0f);
          close(to.read(), expected_lse, 2e-6f, 1.0f);
          if (count == 0) return;
          float *last = rows.data() + (count - 1) * size, *last_lse = sums.data() + (count - 1) * n;  // the output is that of a part
          REQUIRE(merge(ctx, rows.data(), sums.data(), last, last_lse) == Status::ok);
          const std::vector<float> all = rows.read();
          close(std::vector<float>(all.end() - size, all.end()), expected, 2e-6f, 4.0f);
        });
      }
    }
  test::Device device;
  const float* nothing = nullptr;
  float* out = nullptr;
  float there = 0.0f;
  const prim::PartialAttention part{dense_view(nothing, 1, 2, 8), dense_view(nothing, 1, 2)};
  CHECK(prim::MergePartials<Cuda>::run(device, {&part, 1}, dense_view(out, 1, 2, 9)) == Status::shape_mismatch);
  CHECK(prim::MergePartials<Cuda>::run(device, {&part, 1}, dense_view(out, 1, 2, 8), dense_view(&there, 2, 2)) == Status::shape_mismatch);
}

namespace {

/// Numbers of slots that leave for good are nobody's.
std::vector<float> linked(std::vector<float> x, const Links& l) {
  for (std::size_t i = 0; i < x.size(); ++i)
    if (l.to[i] < 0) x[i] = 0.0f;
  return x;
}

}  // namespace

TEST_CASE("cuda merge_weights: every kernel and normaliser, to 2e-6 of the CPU's") {
  using prim::MergeKernel;
  for (const bool one_target : {false, true})
    for (const MergeKernel kernel : {MergeKernel::uniform, MergeKernel::middle, MergeKernel::likeness, MergeKernel::half_likeness, MergeKernel::exponential,
                                     MergeKernel::score, MergeKernel::size, MergeKernel::length_share, MergeKernel::spread})
      for (const prim::MergeNormaliser by : {prim::MergeNormaliser::sum, prim::MergeNormaliser::members, prim::MergeNormaliser::none}) {
        if (one_target && (kernel != MergeKernel::exponential || by != prim::MergeNormaliser::sum)) continue;
        Links l(ragged_slots, kernel == MergeKernel::spread ? 3 : 1, 20, one_target);
        l.likeness[50] = NAN;
        std::vector<float> scores = normals(l.total(), 23), sizes = normals(l.total(), 24);
        for (float& x : scores) x = std::fabs(x);
        const Links before = l;
        Context<Cpu> cpu;
        REQUIRE(prim::MergeWeights<Cpu>::run(cpu, {kernel, by, {scores.data(), l.offset.data(), l.heads()}, {sizes.data(), l.offset.data(), l.heads()}, l.targets.data()},
                                             l.view()) == Status::ok);
        const auto compare = [&] {
          test::Device device;
          DeviceLinks d(device, before);
          test::OnDevice<float> s(device, scores), z(device, sizes);
          REQUIRE(prim::MergeWeights<Cuda>::run(device, {kernel, by, d.ragged(s), d.ragged(z), d.targets.data()}, d.view()) == Status::ok);
          close(d.value.read(), linked(l.value, l), 2e-6f, 1e-3f);
          CHECK(d.key.read() == d.value.read());
        };
        if (kernel == MergeKernel::exponential) test::each_way(compare);
        else compare();
      }
}

TEST_CASE("cuda merge_weights: votes, to 1e-5 of the CPU's") {
  for (const bool scaled : {true, false}) {
    Links l(ragged_slots, 1, 30);
    std::vector<float> scores = normals(l.total(), 33), sizes = normals(l.total(), 34);
    scores[at(l.offset[3] + 9)] = -INFINITY;
    const std::vector<float> before_sizes = sizes;
    const Links before = l;
    Context<Cpu> cpu;
    REQUIRE(prim::MergeWeights<Cpu>::votes(cpu, {scores.data(), l.offset.data(), l.heads()}, scaled, {sizes.data(), l.offset.data(), l.heads()}, l.view()) == Status::ok);
    test::each_way([&] {
      test::Device device;
      DeviceLinks d(device, before);
      test::OnDevice<float> s(device, scores), z(device, before_sizes);
      REQUIRE(prim::MergeWeights<Cuda>::votes(device, d.ragged(s), scaled, d.ragged(z), d.view()) == Status::ok);
      close(d.value.read(), linked(l.value, l), 1e-5f, 1e-3f);
      close(d.key.read(), linked(l.key, l), 1e-5f, 1.0f);
      close(z.read(), sizes, 1e-5f, 1.0f);
    });
  }
}

TEST_CASE("cuda merge_weights: sizes and scales of targets, one and several targets of a slot, and the workspace") {
  for (const index_t fan : {1, 2, 5})
    for (const bool logarithms : {true, false}) {
      Links l(ragged_slots, fan, 40);
      std::vector<float> numbers = normals(l.total(), 43);
      for (float& x : numbers) x = std::fabs(x);
      const std::vector<float> start = numbers;
      Context<Cpu> cpu;
      const RaggedView<float> host{numbers.data(), l.offset.data(), l.heads()};
      REQUIRE((logarithms ? prim::MergeWeights<Cpu>::add_sizes(cpu, l.targets.data(), l.view(), host) : prim::MergeWeights<Cpu>::add_scales(cpu, l.targets.data(), l.view(), host)) ==
              Status::ok);
      test::each_way([&] {
        test::Device device;
        DeviceLinks d(device, l);
        test::OnDevice<float> x(device, start);
        const std::size_t bytes = prim::MergeWeights<Cuda>::workspace_bytes(l.total());
        Context<Cuda> ctx = device.with_workspace(bytes), small = ctx.with_workspace(ctx.workspace().first(bytes - 1));
        const auto run = [&](Context<Cuda>& c) {
          return logarithms ? prim::MergeWeights<Cuda>::add_sizes(c, d.targets.data(), d.view(), d.ragged(x), l.total())
                            : prim::MergeWeights<Cuda>::add_scales(c, d.targets.data(), d.view(), d.ragged(x), l.total());
        };
        REQUIRE(run(small) == Status::workspace_too_small);
        REQUIRE(run(ctx) == Status::ok);
        close(x.read(), numbers, 5e-6f, 1.0f);
        CHECK(d.key.read() == l.key);  // weights stay
      });
    }
}

TEST_CASE("cuda merge_weights: places, equal") {
  for (const bool newest : {true, false}) {
    Links l(ragged_slots, 1, 50);
    std::vector<float> places(at(l.total()));
    for (std::size_t i = 0; i < places.size(); ++i) places[i] = std::bit_cast<float>(static_cast<std::int32_t>(i * 37 % 500));
    const std::vector<float> start = places;
    std::vector<std::int32_t> turn(at(l.total()));
    Context<Cpu> cpu;
    REQUIRE(prim::MergeWeights<Cpu>::places(cpu, newest, l.view(), {places.data(), l.offset.data(), l.heads()}, {turn.data(), l.offset.data(), l.heads()}) == Status::ok);
    test::each_way([&] {
      test::Device device;
      DeviceLinks d(device, l);
      test::OnDevice<float> p(device, start);
      test::OnDevice<std::int32_t> t(device, std::vector<std::int32_t>(turn.size(), -9));
      REQUIRE(prim::MergeWeights<Cuda>::places(device, newest, d.view(), d.ragged(p), {t.data(), d.offset.data(), l.heads()}) == Status::ok);
      CHECK(t.read() == turn);
      const std::vector<float> got = p.read();
      for (std::size_t i = 0; i < got.size(); ++i) REQUIRE(std::bit_cast<std::int32_t>(got[i]) == std::bit_cast<std::int32_t>(places[i]));
    });
  }
}

namespace {

struct Sized {
  index_t dim, with;
};

}  // namespace

TEST_CASE("cuda row_similarity: the CPU's nearest targets, with values and in chunks, bad rows and rows of zeros") {
  constexpr index_t most = 77;
  for (const Sized& size : {Sized{33, 0}, {64, 0}, {80, 7}, {128, 0}, {256, 20}})
    for (const bool with_values : {false, true}) {
      const index_t dim = size.dim, chunk = size.with, value_dim = dim == 64 ? 128 : dim;
      if (chunk > 0 && with_values) continue;
      Links l({77, 0, 1, 40}, 1, 60);
      for (std::int32_t& t : l.to)
        if (t < 0 || l.likeness[static_cast<std::size_t>(&t - l.to.data())] > 0.3f) t = prim::unlinked;
      for (std::size_t h = 0; h < 4; ++h)  // no links yet
        for (index_t j = 0; j < l.slots[h]; ++j)
          if (std::int32_t& t = l.to[at(l.offset[h] + j)]; t >= 0) t = j % 3 == 0 ? static_cast<std::int32_t>(j) : j % 7 == 0 ? prim::dropped : prim::unlinked;
      std::vector<float> k = normals(4 * most * dim, 61), v = normals(4 * most * value_dim, 62);
      k[at(6 * dim)] = NAN, k[at(7 * dim + 1)] = INFINITY;  // a target and one that looks for one
      std::fill_n(k.begin() + 9 * dim, dim, 0.0f);
      std::fill_n(k.begin() + 10 * dim, dim, 0.0f);
      for (index_t d = 0; d < dim; ++d) k[at(30 * dim + d)] = k[at(27 * dim + d)] = k[at(20 * dim + d)];  // equal targets
      for (index_t d = 0; d < value_dim; ++d) v[at(30 * value_dim + d)] = v[at(27 * value_dim + d)] = v[at(20 * value_dim + d)];
      const Links before = l;
      Context<Cpu> cpu;
      const DenseRows keys(dense_view(static_cast<const float*>(k.data()), 4, most, dim)), values(dense_view(static_cast<const float*>(v.data()), 4, most, value_dim));
      REQUIRE(prim::RowSimilarity<Cpu>::nearest(cpu, keys, with_values ? &values : nullptr, l.targets.data(), chunk, l.view()) == Status::ok);
      test::each_way([&] {
        test::Device device;
        DeviceLinks d(device, before);
        test::DeviceRows dk(device, k, l.slots, most, dim), dv(device, v, l.slots, most, value_dim);
        REQUIRE(prim::RowSimilarity<Cuda>::nearest(device, dk.rows(), with_values ? &dv.rows() : nullptr, d.targets.data(), chunk, d.view()) == Status::ok);
        CHECK(d.to.read() == l.to);
        close(d.likeness.read(), l.likeness, 2e-6f, 1.0f);
        prim::MergeLinks fewer = d.view();
        fewer.to.heads = 3;
        CHECK(prim::RowSimilarity<Cuda>::nearest(device, dk.rows(), nullptr, d.targets.data(), chunk, fewer) == Status::shape_mismatch);
      });
    }
}

TEST_CASE("cuda row_similarity: adjacent rows and Gaussian links, to 1e-5 of the CPU's") {
  constexpr index_t most = 77;
  for (const Sized& size : {Sized{33, 0}, {80, 1}, {128, 0}, {256, 1}}) {
    const index_t dim = size.dim;
    const float sigma = size.with == 0 ? 0.0f : 9.0f;
    Links l({77, 0, 1, 64}, 1, 70);
    std::vector<float> k = normals(4 * most * dim, 71);
    k[at(6 * dim)] = NAN;
    std::fill_n(k.begin() + 9 * dim, dim, 0.0f);
    const Links before = l;
    std::vector<float> expected(at(l.total()), 7.0f);
    Context<Cpu> cpu;
    const DenseRows keys(dense_view(static_cast<const float*>(k.data()), 4, most, dim));
    REQUIRE(prim::RowSimilarity<Cpu>::adjacent(cpu, keys, {expected.data(), l.offset.data(), 4}) == Status::ok);
    REQUIRE(prim::RowSimilarity<Cpu>::gaussian(cpu, keys, sigma, l.view()) == Status::ok);
    test::each_way([&] {
      test::Device device;
      DeviceLinks d(device, before);
      test::DeviceRows rows(device, k, l.slots, most, dim);
      test::OnDevice<float> out(device, std::vector<float>(expected.size(), 7.0f));
      REQUIRE(prim::RowSimilarity<Cuda>::adjacent(device, rows.rows(), d.ragged(out)) == Status::ok);
      close(out.read(), expected, 1e-5f, 0.2f);
      REQUIRE(prim::RowSimilarity<Cuda>::gaussian(device, rows.rows(), sigma, d.view()) == Status::ok);
      close(d.likeness.read(), l.likeness, 1e-5f, 0.1f);
      CHECK(prim::RowSimilarity<Cuda>::adjacent(device, rows.rows(), {out.data(), d.offset.data(), 3}) == Status::shape_mismatch);
    });
  }
}
