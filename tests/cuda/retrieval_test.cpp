// Words of retrieval and of expected attention on CUDA, beside the CPU's.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include <kvcondense/backend/cpu/chunk_memory.hpp>
#include <kvcondense/backend/cpu/expected_attention.hpp>
#include <kvcondense/backend/cpu/k_means.hpp>
#include <kvcondense/backend/cuda/code_scores.cuh>
#include <kvcondense/backend/cuda/expected_attention.cuh>
#include <kvcondense/backend/cuda/k_means.cuh>
#include <kvcondense/backend/cuda/metric_length.cuh>
#include <kvcondense/backend/cuda/retrieve_chunks.cuh>

#include "numbers.hpp"
#include "paged_heads.hpp"

using namespace kvcondense;
using test::at;
using test::close;
using test::normals;

TEST_CASE("cuda expected_attention: to 1e-5 of the CPU's, a slot whose logit is no number, whole heads skipped") {
  struct Tried {
    index_t dim, group;
    bool interleaved, spread;
    index_t skip;
  };
  for (const Tried tried : {Tried{64, 4, false, true, 2}, Tried{80, 1, true, true, 0}, Tried{128, 3, false, false, 2}, Tried{256, 1, false, true, 2}}) {
    const std::vector<index_t> slots{0, 1, 3, 45};
    const index_t dim = tried.dim, group = tried.group, skip = tried.skip;
    const bool interleaved = tried.interleaved, spread = tried.spread;
    const index_t heads = static_cast<index_t>(slots.size()), most = 45, q_heads = heads * group;
    std::vector<float> keys = normals(heads * most * dim, 1), mean = normals(q_heads * dim, 2), covariance = normals(q_heads * dim * dim, 3);
    for (float& x : covariance) x *= 0.1f;
    keys[at((3 * most + 20) * dim + 5)] = NAN;
    const std::vector<index_t> offset = test::offsets(slots);
    prim::ExpectedQueries q;
    q.rope.pairing = interleaved ? prim::RopePairing::interleaved : prim::RopePairing::half_split;
    q.position = 100, q.horizon = 9, q.skip = skip, q.spread = spread, q.scale = 1.0f / std::sqrt(static_cast<float>(dim));
    const auto asked = [&](const float* m, const float* s) {
      prim::ExpectedQueries a = q;
      a.mean = dense_view(m, q_heads, dim), a.covariance = dense_view(s, q_heads, dim, dim);
      return a;
    };
    std::vector<float> expected(45 + 4, 7.0f);
    Context<Cpu> cpu;
    Workspace workspace;
    const std::size_t host_bytes = prim::ExpectedAttention<Cpu>::workspace_bytes(heads, dim, offset.back()) + Scratch::align;
    REQUIRE(workspace.reserve(host_bytes) == Status::ok);
    Scratch host(workspace.bytes());
    const DenseRows dense(dense_view(static_cast<const float*>(keys.data()), heads, most, dim));
    REQUIRE(prim::ExpectedAttention<Cpu>::run(cpu, asked(mean.data(), covariance.data()), dense, {expected.data(), offset.data(), heads}, host) == Status::ok);
    const auto one = [&] {
      test::Device device;
      const test::DeviceRows k(device, keys, slots, most, dim);
      test::OnDevice<float> m(device, mean), s(device, covariance), out(device, std::vector<float>(expected.size(), 7.0f));
      test::OnDevice<index_t> o(device, offset);
      Context<Cuda> ctx = device.with_workspace(prim::ExpectedAttention<Cuda>::workspace_bytes(q_heads, dim, most));
      Scratch small(ctx.workspace().first(ctx.workspace().size() - 1)), scratch(ctx.workspace());
      CHECK(prim::ExpectedAttention<Cuda>::run(ctx, asked(m.data(), s.data()), k.rows(), {out.data(), o.data(), heads}, small) == Status::workspace_too_small);
      REQUIRE(prim::ExpectedAttention<Cuda>::run(ctx, asked(m.data(), s.data()), k.rows(), {out.data(), o.data(), heads}, scratch) == Status::ok);
      close(out.read(), expected, 1e-5f, 1.0f);
      CHECK(std::isnan(out.read()[at(offset[3] + 20)]));
      CHECK(prim::ExpectedAttention<Cuda>::run(ctx, asked(m.data(), s.data()), k.rows(), {out.data(), o.data(), heads + 1}, scratch) == Status::shape_mismatch);
    };
    if (dim == 80) test::each_way(one);
    else one();
  }
}

TEST_CASE("cuda expected_attention: coded keys, a part of the channels turned, an attention factor") {
  constexpr index_t dim = 96, group = 2, page = 32;
  const prim::GroupInt<4> codec{.axis = prim::GroupAxis::channel, .group_size = 32};
  const std::vector<test::ColumnShape> shapes{{.sinks = 3, .coded = 64, .window = 9}, {.sinks = 1}, {.coded = 40, .window = 30, .dead = 3}};
  const auto heads = static_cast<index_t>(shapes.size());
  std::vector<index_t> slots;
  for (const test::ColumnShape& s : shapes) slots.push_back(s.slots());
  const index_t most = *std::max_element(slots.begin(), slots.end()), q_heads = heads * group;
  const std::vector<index_t> offset = test::offsets(slots);
  const test::HostColumn<prim::GroupInt<4>> column(codec, {DType::f16}, dim, page, shapes, 85);
  std::vector<float> keys(at(heads * most * dim));
  for (index_t h = 0; h < heads; ++h)
    column.each(h, 0, slots[at(h)], [&](const prim::SlotRun& run, index_t place, index_t to, index_t count) {
      const prim::RowBlock<float> rows{keys.data() + (h * most + to) * dim, count, dim};
      if (run.coded) prim::PageCodec<Cpu, prim::GroupInt<4>>::decode(codec, column.page(run), place, count, rows);
      else prim::PageCodec<Cpu, prim::ExactRows>::decode(column.exact(), column.page(run), place, count, rows);
    });
  const std::vector<float> mean = normals(q_heads * dim, 86);
  std::vector<float> covariance = normals(q_heads * dim * dim, 87);
  for (float& x : covariance) x *= 0.1f;
  for (const bool interleaved : {false, true}) {
    prim::ExpectedQueries q;
    q.rope = {.pairing = interleaved ? prim::RopePairing::interleaved : prim::RopePairing::half_split, .rotary_dim = 40, .scaling = prim::RopeScaling::linear,
              .factor = 2.0, .attention_factor = 1.3};
    q.position = 50, q.horizon = 5, q.skip = 1, q.scale = 0.1f;
    const auto asked = [&](const float* m, const float* s) {
      prim::ExpectedQueries a = q;
      a.mean = dense_view(m, q_heads, dim), a.covariance = dense_view(s, q_heads, dim, dim);
      return a;
    };
    std::vector<float> expected(at(offset.back()), 7.0f);
    Context<Cpu> cpu;
    Workspace workspace;
    REQUIRE(workspace.reserve(prim::ExpectedAttention<Cpu>::workspace_bytes(heads, dim, offset.back()) + Scratch::align) == Status::ok);
    Scratch host(workspace.bytes());
    const DenseRows dense(dense_view(static_cast<const float*>(keys.data()), heads, most, dim));
    REQUIRE(prim::ExpectedAttention<Cpu>::run(cpu, asked(mean.data(), covariance.data()), dense, {expected.data(), offset.data(), heads}, host) == Status::ok);
    test::each_way([&] {
      test::Device device;
      auto copy = column.on(device);
      test::OnDevice<float> m(device, mean), s(device, covariance), out(device, std::vector<float>(expected.size(), 7.0f));
      test::OnDevice<index_t> o(device, offset), n(device, slots);
      const SlotRows<Cuda> rows(codec, column.exact(), copy.view(), n.data(), heads, most, dim);
      Context<Cuda> ctx = device.with_workspace(prim::ExpectedAttention<Cuda>::workspace_bytes(q_heads, dim, most));
      Scratch scratch(ctx.workspace());
      REQUIRE(prim::ExpectedAttention<Cuda>::run(ctx, asked(m.data(), s.data()), rows, {out.data(), o.data(), heads}, scratch) == Status::ok);
      close(out.read(), expected, 1e-5f, 1.0f);
    });
  }
}

TEST_CASE("cuda k_means: nearest centroids, the CPU's labels, ties and NaN to the one in front") {
  for (const index_t dim : {1, 64, 80, 256})
    for (const index_t clusters : {1, 17, 40}) {
      if (dim == 256 && clusters > 17) continue;
      constexpr index_t rows = 45;
      const index_t step = dim + 3;
      std::vector<float> x = normals(rows * step, 5), centroids = normals(clusters * dim, 6);
      if (clusters > 20) std::copy_n(centroids.begin() + 3 * dim, dim, centroids.begin() + 19 * dim);  // two alike
      for (index_t c = 0; c < dim && clusters > 20; ++c) x[at(7 * step + c)] = centroids[at(3 * dim + c)];
      x[at(9 * step)] = NAN, x[at(10 * step)] = INFINITY;
      std::vector<std::int32_t> expected(rows, -1);
      prim::KMeans<Cpu>::nearest({x.data(), rows, step}, dim, centroids.data(), clusters, expected.data());
      const auto one = [&] {
        test::Device device;
        test::OnDevice<float> in(device, x), c(device, centroids);
        test::OnDevice<std::int32_t> labels(device, std::vector<std::int32_t>(rows, -1));
        REQUIRE(prim::KMeans<Cuda>::nearest(device, {in.data(), rows, step}, dim, c.data(), clusters, labels.data()) == Status::ok);
        CHECK(labels.read() == expected);
      };
      if (dim == 64) test::each_way(one);
      else one();
    }
  test::Device device;
  CHECK(prim::KMeans<Cuda>::nearest(device, {nullptr, 0, 8}, 8, nullptr, 4, nullptr) == Status::ok);
  CHECK(prim::KMeans<Cuda>::nearest(device, {nullptr, 3, 300}, 300, nullptr, 4, nullptr) == Status::shape_mismatch);
}

TEST_CASE("cuda k_means: fit, the CPU's centroids bit for bit, few rows, equal rows") {
  struct Tried {
    index_t count, dim, clusters, iterations;
  };
  for (const Tried tried : {Tried{300, 24, 5, 20}, Tried{70, 64, 9, 2}, Tried{4, 8, 6, 3}, Tried{1, 3, 1, 3}, Tried{50, 2, 4, 0}, Tried{30, 5, 3, 5},
                            Tried{4200, 2, 4, 1}}) {
    const index_t count = tried.count, dim = tried.dim, clusters = tried.clusters, iterations = tried.iterations;
    const index_t step = dim + 1;
    std::vector<float> x = normals(count * step, static_cast<unsigned>(count));
    for (std::size_t i = 0; i < x.size(); ++i) {
      const std::size_t row = i / at(step);
      const bool alike = count == 30 || (count == 4200 && row < 4150);  // draws must pass by what a block goes over at once
      x[i] = alike ? 0.5f : x[i] + 4.0f * static_cast<float>(row % 3);  // clusters
    }
    const prim::KMeansPlan plan{clusters, iterations, 1234567u + static_cast<std::uint64_t>(count)};
    std::vector<float> expected(at(clusters * dim));
    Workspace workspace;
    REQUIRE(workspace.reserve(prim::KMeans<Cpu>::fit_bytes(count, dim, clusters) + Scratch::align) == Status::ok);
    Scratch host(workspace.bytes());
    prim::KMeans<Cpu>::fit(
        [&](index_t first, prim::RowBlock<float> out) {
          for (index_t i = 0; i < out.rows; ++i) std::copy_n(x.data() + (first + i) * step, dim, out.data + i * out.step);
        },
        count, dim, plan, expected.data(), host);
    const auto one = [&] {
      test::Device device;
      test::OnDevice<float> in(device, x), c(device, std::vector<float>(expected.size(), 7.0f));
      Context<Cuda> ctx = device.with_workspace(prim::KMeans<Cuda>::fit_bytes(count, plan));
      Scratch small(ctx.workspace().first(ctx.workspace().size() - 1)), scratch(ctx.workspace());
      CHECK(prim::KMeans<Cuda>::fit(ctx, {in.data(), count, step}, dim, plan, c.data(), small) == Status::workspace_too_small);
      REQUIRE(prim::KMeans<Cuda>::fit(ctx, {in.data(), count, step}, dim, plan, c.data(), scratch) == Status::ok);
      CHECK(c.read() == expected);
    };
    if (count == 70) test::each_way(one);
    else one();
  }
  test::Device device;
  Scratch none;
  CHECK(prim::KMeans<Cuda>::fit(device, {nullptr, 0, 8}, 8, {2}, nullptr, none) == Status::invalid_argument);
  CHECK(prim::KMeans<Cuda>::fit(device, {nullptr, 5, 300}, 300, {2}, nullptr, none) == Status::shape_mismatch);
}

TEST_CASE("cuda code_scores: bit for bit the CPU's, one and two bytes") {
  for (const index_t bytes : {1, 2})
    for (const index_t parts : {0, 1, 16}) {
      constexpr index_t rows = 300, entries = 256, first = 3, count = 280, queries = 7;
      std::vector<std::byte> codes(at(rows * parts * bytes));
      for (std::size_t i = 0; i < codes.size(); ++i) codes[i] = static_cast<std::byte>(bytes == 2 && i % 2 == 1 ? 0 : i * 37 % 256);
      const std::vector<float> tables = normals(queries * (parts * entries + 5), 8);
      std::vector<float> wanted(at(queries * (parts + 1)), 0.0f), expected(queries * 300, 7.0f);
      for (std::size_t i = 0; i < wanted.size(); ++i) wanted[i] = static_cast<float>(i * 37 % 256);
      const auto both = [&](auto&& host, auto&& word, const std::vector<float>& table, index_t step) {
        std::vector<float> want = expected;
        host(prim::RowBlock<const float>{table.data(), queries, step}, prim::RowBlock<float>{want.data(), queries, 300});
        const auto one = [&] {
          test::Device device;
          test::OnDevice<std::byte> c(device, codes);
          test::OnDevice<float> t(device, table), out(device, expected);
          REQUIRE(word(device.context(), c.data(), prim::RowBlock<const float>{t.data(), queries, step}, prim::RowBlock<float>{out.data(), queries, 300}) == Status::ok);
          close(out.read(), want, 0.0f);
        };
        if (parts == 1) test::each_way(one);
        else one();
      };
      both([&](auto t, auto out) { prim::CodeScores<Cpu>::scores(codes.data(), bytes, parts, entries, first, count, t, out); },
           [&](auto& c, const std::byte* at, auto t, auto out) { return prim::CodeScores<Cuda>::scores(c, at, bytes, parts, entries, first, count, t, out); },
           tables, parts * entries + 5);
      both([&](auto t, auto out) { prim::CodeScores<Cpu>::matches(codes.data(), bytes, parts, first, count, t, out); },
           [&](auto& c, const std::byte* at, auto t, auto out) { return prim::CodeScores<Cuda>::matches(c, at, bytes, parts, first, count, t, out); }, wanted,
           parts + 1);
    }
  test::Device device;
  CHECK(prim::CodeScores<Cuda>::scores(device, nullptr, 3, 1, 16, 0, 1, {nullptr, 1, 1}, {nullptr, 1, 1}) == Status::invalid_argument);
  CHECK(prim::CodeScores<Cuda>::scores(device, nullptr, 1, 1, 16, 0, 1, {nullptr, 1, 1}, {nullptr, 2, 1}) == Status::shape_mismatch);
}

TEST_CASE("cuda code_scores: more rows of tables than a grid is high, more codes than blocks go over at once") {
  const auto compare = [](index_t rows, index_t count) {
    std::vector<std::byte> codes(at(count));
    for (std::size_t i = 0; i < codes.size(); ++i) codes[i] = static_cast<std::byte>(i * 37 % 2);
    const std::vector<float> tables = normals(rows * 2, 81);
    std::vector<float> expected(at(rows * count));
    prim::CodeScores<Cpu>::scores(codes.data(), 1, 1, 2, 0, count, {tables.data(), rows, 2}, {expected.data(), rows, count});
    test::Device device;
    test::OnDevice<std::byte> c(device, codes);
    test::OnDevice<float> t(device, tables), out(device, std::vector<float>(expected.size(), 7.0f));
    REQUIRE(prim::CodeScores<Cuda>::scores(device, c.data(), 1, 1, 2, 0, count, {t.data(), rows, 2}, {out.data(), rows, count}) == Status::ok);
    CHECK(out.read() == expected);
  };
  compare(70000, 1);
  compare(1, 262200);
}

TEST_CASE("cuda metric_length: to 1e-5 of the CPU's") {
  for (const index_t dim : {1, 64, 80, 256}) {
    constexpr index_t rows = 3;
    std::vector<float> x = normals(rows * (dim + 2), 9);
    const std::vector<float> metric = normals(dim * dim, 10);
    x[at(dim + 2)] = NAN;
    for (const bool with : {false, true}) {
      std::vector<float> expected;
      for (index_t i = 0; i < rows; ++i) expected.push_back(prim::MetricLength<Cpu>::squared(x.data() + i * (dim + 2), dim, with ? metric.data() : nullptr));
      test::Device device;
      test::OnDevice<float> in(device, x), l(device, metric), out(device, std::vector<float>(rows));
      REQUIRE(prim::MetricLength<Cuda>::squared(device, {in.data(), rows, dim + 2}, dim, with ? l.data() : nullptr, out.data()) == Status::ok);
      close(out.read(), expected, 1e-5f, static_cast<float>(dim));
    }
  }
}

TEST_CASE("cuda retrieve_chunks: means bit for bit, the CPU's chunks, attention to 1e-5") {
  struct Tried {
    index_t dim, width, kv, group, tokens, chunk, places, first, chunks, most;
  };
  for (const Tried& tried : {Tried{64, 48, 2, 4, 3, 4, 9, 7, 9, 3}, Tried{80, 80, 1, 1, 1, 1, 5, 0, 5, 9}, Tried{128, 64, 1, 7, 2, 16, 8, 3, 4, 2},
                            Tried{256, 256, 2, 3, 1, 3, 6, 0, 0, 2}, Tried{64, 64, 1, 2, 0, 2, 3, 0, 3, 1}, Tried{64, 64, 1, 2, 2, 2, 3, 1, 3, 0},
                            Tried{64, 48, 1, 2, 1, 2, 75, 20, 70, 5}, Tried{64, 64, 1, 1, 1, 1, 1100, 300, 1100, 40}}) {
    const index_t dim = tried.dim, width = tried.width, kv = tried.kv, group = tried.group, tokens = tried.tokens, chunk = tried.chunk, places = tried.places, first = tried.first, chunks = tried.chunks, most = tried.most;
    INFO("dim " << dim << " chunks " << chunks << " most " << most);
    const index_t heads = kv * group, rows = heads * tokens;
    std::vector<float> keys = normals(kv * places * chunk * dim, 11), queries = normals(rows * dim, 13);
    const std::vector<float> values = normals(kv * places * chunk * width, 12);
    std::vector<float> means(at(kv * places * dim)), out(at(rows * width)), lse(at(rows));
    std::vector<std::int32_t> chosen(at(rows * most));
    Context<Cpu> cpu;
    REQUIRE(prim::RetrieveChunks<Cpu>::means(cpu, dense_view(static_cast<const float*>(keys.data()), kv, places * chunk, dim), chunk,
                                             dense_view(means.data(), kv, places, dim)) == Status::ok);
    const auto mean_before = means;
    if (chunks > 4) means[at((first + 2) % places * dim)] = NAN;  // never chosen
    const auto memory = [&](const float* k, const float* v, const float* m) {
      return prim::ChunkMemory{dense_view(k, kv, places * chunk, dim), dense_view(v, kv, places * chunk, width), dense_view(m, kv, places, dim), chunk, first, chunks};
    };
    Workspace workspace;
    REQUIRE(workspace.reserve(prim::RetrieveChunks<Cpu>::workspace_bytes(1, most, chunk, dim) + Scratch::align) == Status::ok);
    REQUIRE(prim::RetrieveChunks<Cpu>::run(cpu, memory(keys.data(), values.data(), means.data()), dense_view(static_cast<const float*>(queries.data()), heads, tokens, dim),
                                           most, 0.3f, dense_view(out.data(), heads, tokens, width), dense_view(lse.data(), heads, tokens),
                                           dense_view(chosen.data(), heads, tokens, most), Scratch(workspace.bytes())) == Status::ok);
    const auto one = [&] {
      test::Device device;
      test::OnDevice<float> k(device, keys), v(device, values), m(device, means), made(device, std::vector<float>(means.size())), q(device, queries);
      test::OnDevice<float> o(device, std::vector<float>(out.size(), 7.0f)), l(device, std::vector<float>(lse.size(), 7.0f));
      test::OnDevice<std::int32_t> c(device, std::vector<std::int32_t>(chosen.size(), 7));
      REQUIRE(prim::RetrieveChunks<Cuda>::means(device, dense_view(static_cast<const float*>(k.data()), kv, places * chunk, dim), chunk,
                                                dense_view(made.data(), kv, places, dim)) == Status::ok);
      CHECK(made.read() == mean_before);
      Context<Cuda> ctx = device.with_workspace(prim::RetrieveChunks<Cuda>::workspace_bytes(rows, chunks, most, chunk));
      const auto run = [&](std::span<std::byte> bytes, index_t asked) {
        return prim::RetrieveChunks<Cuda>::run(ctx, memory(k.data(), v.data(), m.data()), dense_view(static_cast<const float*>(q.data()), heads, tokens, dim), asked,
                                               0.3f, dense_view(o.data(), heads, tokens, width), dense_view(l.data(), heads, tokens),
                                               dense_view(c.data(), heads, tokens, most), Scratch(bytes));
      };
      if (!ctx.workspace().empty()) CHECK(run(ctx.workspace().first(ctx.workspace().size() - 1), most) == Status::workspace_too_small);
      if (!chosen.empty()) CHECK(run(ctx.workspace(), most + 1) == Status::shape_mismatch);
      REQUIRE(run(ctx.workspace(), most) == Status::ok);
      CHECK(c.read() == chosen);
      close(o.read(), out, 1e-5f, 1.0f);
      close(l.read(), lse, 1e-5f, 1.0f);
      test::OnDevice<float> alone(device, std::vector<float>(out.size(), 7.0f));  // the output is all that somebody wants
      REQUIRE(prim::RetrieveChunks<Cuda>::run(ctx, memory(k.data(), v.data(), m.data()), dense_view(static_cast<const float*>(q.data()), heads, tokens, dim), most,
                                              0.3f, dense_view(alone.data(), heads, tokens, width), {}, {}, Scratch(ctx.workspace())) == Status::ok);
      CHECK(alone.read() == o.read());
    };
    if (dim == 128) test::each_way(one);
    else one();
  }
}
