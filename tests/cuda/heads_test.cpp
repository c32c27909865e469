// Words about heads on CUDA, beside the CPU's: policies, mixed rows, representatives, what a trained network says, shared directions; what channels of a
// head are found to need.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <set>
#include <vector>

#include <kvcondense/backend/cpu/head_mix.hpp>
#include <kvcondense/backend/cpu/head_policy.hpp>
#include <kvcondense/backend/cpu/representatives.hpp>
#include <kvcondense/backend/cpu/retaining_head.hpp>
#include <kvcondense/backend/cpu/shared_direction.hpp>
#include <kvcondense/backend/cuda/find_rows.cuh>
#include <kvcondense/backend/cuda/head_mix.cuh>
#include <kvcondense/backend/cuda/head_policy.cuh>
#include <kvcondense/backend/cuda/representatives.cuh>
#include <kvcondense/backend/cuda/retaining_head.cuh>
#include <kvcondense/backend/cuda/shared_direction.cuh>
#include <kvcondense/lowrank/kv_heads_svd.hpp>

#include "numbers.hpp"

using namespace kvcondense;
using test::at;
using test::close;
using test::normals;

TEST_CASE("cuda head_policies: the CPU's choices and marks, equal scores, NaN") {
  const std::vector<index_t> slots{0, 1, 2, 40, 300, 300, 300}, offset = test::offsets(slots);
  const auto heads = static_cast<index_t>(slots.size()), total = offset.back();
  std::vector<float> classes = normals(total, 1), sums = normals(total, 2), near = normals(total, 3), scores = normals(total, 4);
  for (std::size_t i = 0; i < classes.size(); ++i) {
    classes[i] = static_cast<float>(i % 23 == 0 ? TokenClass::special : i % 7 == 0 ? TokenClass::punctuation : TokenClass{});
    const bool much = i < at(offset[5]) ? i % 23 == 0 : i % 7 == 0;  // special tokens of some heads, punctuation of the others
    sums[i] = std::fabs(sums[i]) * (much ? 40.0f : 1.0f), near[i] = 0.9f * sums[i];
    scores[i] = std::round(3.0f * scores[i]);
  }
  scores[60] = NAN, sums[at(offset[6])] = NAN;
  std::set<prim::HeadPolicy> chosen;
  for (const double recovery : {0.0, 0.3, 0.7, 0.97, 1.5})
    for (const index_t frequent : {index_t{0}, index_t{20}, index_t{1000}}) {
      const auto sets = [&](const float* c, const index_t* o) { return prim::HeadPolicySets{{c, o, heads}, frequent, 9}; };
      std::vector<float> policy(at(total), 7.0f), marked = scores;
      Context<Cpu> cpu;
      const auto view = [&](std::vector<float>& x) { return RaggedView<float>{x.data(), offset.data(), heads}; };
      REQUIRE(prim::HeadPolicies<Cpu>::choose(cpu, sets(classes.data(), offset.data()), view(sums), view(near), view(scores), recovery, view(policy)) == Status::ok);
      for (const float p : policy) chosen.insert(static_cast<prim::HeadPolicy>(static_cast<int>(p)));
      REQUIRE(prim::HeadPolicies<Cpu>::mark(cpu, sets(classes.data(), offset.data()), view(policy), view(marked)) == Status::ok);
      const auto one = [&] {
        test::Device device;
        test::OnDevice<float> c(device, classes), s(device, sums), n(device, near), x(device, scores), p(device, std::vector<float>(policy.size()));
        test::OnDevice<index_t> o(device, offset);
        const auto there = [&](test::OnDevice<float>& a) { return RaggedView<float>{a.data(), o.data(), heads}; };
        REQUIRE(prim::HeadPolicies<Cuda>::choose(device, sets(c.data(), o.data()), there(s), there(n), there(x), recovery, there(p)) == Status::ok);
        REQUIRE(prim::HeadPolicies<Cuda>::mark(device, sets(c.data(), o.data()), there(p), there(x)) == Status::ok);
        CHECK(p.read() == policy);
        close(x.read(), marked, 0.0f);
      };
      if (recovery == 0.7 && frequent == 20) test::each_way(one);
      else one();
    }
  using enum prim::HeadPolicy;
  CHECK(chosen == std::set{special, punctuation, frequent, local, full});
}

TEST_CASE("cuda head_mixing: join, map and back, to 1e-5 of the CPU's") {
  struct Tried {
    index_t groups, share, dim, columns, stride, tokens;
  };
  for (const Tried tried : {Tried{2, 3, 64, 80, 96, 5}, Tried{1, 1, 256, 256, 256, 1}, Tried{1, 7, 80, 16, 16, 9}, Tried{2, 2, 128, 33, 40, 0}}) {
    const index_t groups = tried.groups, share = tried.share, dim = tried.dim, columns = tried.columns, stride = tried.stride, tokens = tried.tokens;
    const std::vector<float> matrix = normals(groups * share * dim * stride, 5);
    const index_t members = groups * share, heads = 2 * members;
    std::vector<float> wide = normals(heads * tokens * dim, 6);
    const std::vector<float> narrow = normals(heads * tokens * columns, 7);
    if (tokens > 0) wide[3] = NAN;
    const auto run = [&]<Backend B>(Context<B>& c, const float* m, const float* w, const float* n, float* joined, float* mapped, float* back) {
      const prim::HeadMix mix{m, share, dim, stride, columns};
      Status s = prim::HeadMixing<B>::join(c, dense_view(w, members, tokens, dim), mix, dense_view(joined, groups, tokens, columns));
      if (s == Status::ok) s = prim::HeadMixing<B>::map(c, dense_view(w, heads, tokens, dim), mix, groups, dense_view(mapped, heads, tokens, columns));
      if (s == Status::ok) s = prim::HeadMixing<B>::back(c, dense_view(n, heads, tokens, columns), mix, groups, dense_view(back, heads, tokens, dim));
      CHECK(prim::HeadMixing<B>::join(c, dense_view(w, members + 1, tokens, dim), mix, dense_view(joined, groups, tokens, columns)) == Status::shape_mismatch);
      CHECK(prim::HeadMixing<B>::map(c, dense_view(w, heads + 1, tokens, dim), mix, 2 * groups, dense_view(mapped, heads + 1, tokens, columns)) == Status::shape_mismatch);
      return s;
    };
    std::vector<float> joined(at(groups * tokens * columns)), mapped(narrow.size()), back(wide.size());
    Context<Cpu> cpu;
    REQUIRE(run(cpu, matrix.data(), wide.data(), narrow.data(), joined.data(), mapped.data(), back.data()) == Status::ok);
    const auto one = [&] {
      test::Device device;
      test::OnDevice<float> m(device, matrix), w(device, wide), n(device, narrow), j(device, std::vector<float>(joined.size(), 7.0f)),
          to(device, std::vector<float>(mapped.size(), 7.0f)), from(device, std::vector<float>(back.size(), 7.0f));
      REQUIRE(run(device.context(), m.data(), w.data(), n.data(), j.data(), to.data(), from.data()) == Status::ok);
      close(j.read(), joined, 1e-5f, 4.0f);
      close(to.read(), mapped, 1e-5f, 4.0f);
      close(from.read(), back, 1e-5f, 4.0f);
    };
    if (dim == 80) test::each_way(one);
    else one();
  }
}

TEST_CASE("cuda kv_heads_svd: rows of shared heads to 1e-5 of the CPU's, over bases on the device") {
  struct Tried {
    index_t groups, share, queries, dim, width, columns, tokens;
  };
  for (const Tried t : {Tried{2, 2, 1, 64, 48, 80, 5}, Tried{1, 2, 3, 80, 80, 0, 9}, Tried{1, 2, 4, 128, 64, 200, 2}, Tried{2, 1, 7, 256, 64, 64, 3}}) {
    const index_t kv = t.groups * t.share, heads = kv * t.queries, layers = 2;
    const CacheShape model{.layers = layers, .q_heads = heads, .kv_heads = kv, .head_dim = t.dim, .value_dim = t.width};
    const index_t columns = t.share * t.dim, wide = t.share * t.width;
    const std::vector<float> encode = normals(layers * t.groups * columns * columns, 1), decode = normals(layers * t.groups * columns * columns, 2),
                             value_encode = normals(layers * t.groups * wide * wide, 3);
    const auto over = [&](const float* e, const float* d, const float* v, bool on_device) {
      return lowrank::KvHeadsSvd{.keys = {.encode = e, .decode = d, .layers = layers, .groups = t.groups, .dim = columns, .columns = columns},
                                 .values = {.encode = v, .layers = layers, .groups = t.groups, .dim = wide, .columns = wide},
                                 .columns = t.columns, .value_columns = t.width, .on_device = on_device};
    };
    const lowrank::KvHeadsSvd host = over(encode.data(), decode.data(), value_encode.data(), false);
    REQUIRE(host.validate(model) == Status::ok);
    const CacheShape s = host.shape(model);
    const index_t n = t.tokens, k = s.head_dim, v = s.value_dim;
    // Rows of keys, values, queries and outputs, one behind the other, and what becomes of them.
    const std::vector<float> in = normals(n * (kv * (t.dim + t.width) + heads * (t.dim + v)), 4);
    const auto run = [&]<Backend B>(Context<B>& ctx, const lowrank::KvHeadsSvd& m, const float* from, float* to) {
      const auto next = [&](auto*& x, index_t h, index_t dim) {
        const auto view = dense_view(x, h, n, dim);
        x += h * n * dim;
        return view;
      };
      const auto keys = next(from, kv, t.dim), values = next(from, kv, t.width), queries = next(from, heads, t.dim), outs = next(from, heads, v);
      Status done = m.join_keys(ctx, model, 1, keys, next(to, t.groups, k));
      const auto and_then = [&](Status more) { done = done == Status::ok ? more : done; };
      and_then(m.join_values(ctx, model, 1, values, next(to, t.groups, v)));
      and_then(m.map_queries(ctx, model, 1, queries, next(to, heads, k)));
      and_then(m.map_outputs(ctx, model, 1, outs, next(to, heads, t.width)));
      return done;
    };
    std::vector<float> expected(at(n * (t.groups * (k + v) + heads * (k + t.width))));
    Context<Cpu> cpu;
    REQUIRE(run(cpu, host, in.data(), expected.data()) == Status::ok);
    const auto one = [&] {
      test::Device device;
      test::OnDevice<float> e(device, encode), d(device, decode), ve(device, value_encode), from(device, in), to(device, std::vector<float>(expected.size(), 7.0f));
      const lowrank::KvHeadsSvd there = over(e.data(), d.data(), ve.data(), true);
      REQUIRE(there.validate(model) == Status::ok);
      CHECK(run(device.context(), host, from.data(), to.data()) == Status::incompatible);
      CHECK(run(cpu, there, in.data(), expected.data()) == Status::incompatible);
      REQUIRE(run(device.context(), there, from.data(), to.data()) == Status::ok);
      close(to.read(), expected, 1e-5f, 4.0f * std::sqrt(static_cast<float>(columns)));
    };
    if (t.dim == 80) test::each_way(one);
    else one();
  }
}

TEST_CASE("cuda representatives: the CPU's distances and slots, every anchor, slots and blocks") {
  using prim::SignatureAnchor;
  for (const SignatureAnchor anchor : {SignatureAnchor::random, SignatureAnchor::zeros, SignatureAnchor::ones, SignatureAnchor::mean, SignatureAnchor::alternating})
    for (const index_t block : {index_t{0}, index_t{8}}) {
      const std::vector<index_t> slots = block == 0 ? std::vector<index_t>(5, 330) : std::vector<index_t>{0, 5, 40, 330, 331}, offset = test::offsets(slots);
      const auto heads = static_cast<index_t>(slots.size());
      std::vector<float> scores = normals(offset.back(), 8), distances(at(offset.back()));
      for (float& x : scores) x = std::round(4.0f * x);
      scores[9] = NAN;
      std::vector<prim::Ends> skip;
      std::vector<index_t> top, count, kept;
      std::vector<std::int32_t> list(at(offset.back()), -7);
      for (index_t h = 0; h < heads; ++h) {
        const index_t n = slots[at(h)];
        skip.push_back({std::min<index_t>(3, n), std::min<index_t>(4, n - std::min<index_t>(3, n))});
        top.push_back(40 + 30 * h), count.push_back(h * 17), kept.push_back(0);
        for (index_t j = 0; j < n; ++j)
          if (j < 3 || j % 29 == 1 || j >= n - 4) list[at(offset[at(h)] + kept.back()++)] = static_cast<std::int32_t>(j);
      }
      const prim::SignatureRequest request{anchor, 99, block};
      const auto list_before = list;
      const auto kept_before = kept;
      Context<Cpu> cpu;
      REQUIRE(prim::Representatives<Cpu>::distances(cpu, request, {scores.data(), offset.data(), heads}, skip.data(), top.data(), {distances.data(), offset.data(), heads}) == Status::ok);
      std::vector<float> used = distances;
      REQUIRE(prim::Representatives<Cpu>::pick(cpu, block, {used.data(), offset.data(), heads}, skip.data(), count.data(), {list.data(), offset.data(), heads}, kept.data()) == Status::ok);
      const auto one = [&] {
        test::Device device;
        test::OnDevice<float> x(device, scores), d(device, std::vector<float>(distances.size(), 7.0f));
        test::OnDevice<index_t> o(device, offset), t(device, top), c(device, count), k(device, kept_before);
        test::OnDevice<prim::Ends> e(device, skip);
        test::OnDevice<std::int32_t> l(device, list_before);
        REQUIRE(prim::Representatives<Cuda>::distances(device, request, {x.data(), o.data(), heads}, e.data(), t.data(), {d.data(), o.data(), heads}) == Status::ok);
        CHECK(d.read() == distances);
        REQUIRE(prim::Representatives<Cuda>::pick(device, block, {d.data(), o.data(), heads}, e.data(), c.data(), {l.data(), o.data(), heads}, k.data()) == Status::ok);
        CHECK(k.read() == kept);
        const std::vector<std::int32_t> got = l.read();
        for (index_t h = 0; h < heads; ++h)
          CHECK(std::equal(got.begin() + offset[at(h)], got.begin() + offset[at(h)] + kept[at(h)], list.begin() + offset[at(h)]));
      };
      if (anchor == SignatureAnchor::mean) test::each_way(one);
      else one();
    }
  // Heads that are not equally long: the host cannot see it.
  test::Device device;
  test::OnDevice<float> x(device, std::vector<float>(5, 1.0f)), d(device, std::vector<float>(5, 1.0f));
  test::OnDevice<index_t> o(device, {0, 2, 5}), t(device, {1, 1});
  test::OnDevice<prim::Ends> e(device, {{}, {}});
  REQUIRE(prim::Representatives<Cuda>::distances(device, {}, {x.data(), o.data(), 2}, e.data(), t.data(), {d.data(), o.data(), 2}) == Status::ok);
  for (const float v : d.read()) CHECK(std::isnan(v));
}

TEST_CASE("cuda retaining_head: to 1e-5 of usual scores, tokens that are not stored, more heads than warps") {
  struct Tried {
    index_t tokens, q_heads, kv_heads;
  };
  for (const prim::Activation act : {prim::Activation::silu, prim::Activation::gelu_tanh, prim::Activation::relu})
    for (const Tried tried : {Tried{0, 6, 2}, Tried{1, 6, 2}, Tried{11, 6, 2}, Tried{3, 9, 9}}) {
      const index_t tokens = tried.tokens, q_heads = tried.q_heads, kv_heads = tried.kv_heads;
      constexpr index_t dim = 20, width = 12, hidden = 45;
      const prim::RetainingWeights shape{nullptr, nullptr, q_heads * dim + kv_heads * (dim + width), hidden};
      const std::vector<float> in = normals(shape.inputs * hidden, 11), out_weights = normals(hidden * kv_heads, 12), q = normals(q_heads * tokens * dim, 13),
                               k = normals(kv_heads * tokens * dim, 14), v = normals(kv_heads * tokens * width, 15);
      std::vector<index_t> slots(at(kv_heads), 33);
      slots[0] = 2;  // fewer than tokens
      const std::vector<index_t> offset = test::offsets(slots);
      const auto run = [&]<Backend B>(Context<B>& c, const float* wi, const float* wo, const float* qs, const float* ks, const float* vs, float* out, const index_t* o,
                                      index_t inputs) {
        return prim::RetainingHead<B>::write(c, {wi, wo, inputs, hidden}, act, dense_view(qs, q_heads, tokens, dim), dense_view(ks, kv_heads, tokens, dim),
                                             dense_view(vs, kv_heads, tokens, width), {out, o, kv_heads});
      };
      const std::vector<float> before(at(offset.back()), 7.0f);
      std::vector<float> expected = before;
      Context<Cpu> cpu;
      REQUIRE(run(cpu, in.data(), out_weights.data(), q.data(), k.data(), v.data(), expected.data(), offset.data(), shape.inputs) == Status::ok);
      double squares = 0.0;
      index_t written = 0;
      for (const float x : expected)
        if (x != 7.0f) squares += static_cast<double>(x) * static_cast<double>(x), ++written;
      CHECK((written > 0) == (tokens > 0));
      const auto usual = static_cast<float>(std::sqrt(squares / static_cast<double>(std::max<index_t>(1, written))));
      test::each_way([&] {
        test::Device device;
        test::OnDevice<float> wi(device, in), wo(device, out_weights), qs(device, q), ks(device, k), vs(device, v), out(device, before);
        test::OnDevice<index_t> o(device, offset);
        Context<Cuda> ctx = device.with_workspace(prim::RetainingHead<Cuda>::workspace_bytes(tokens, hidden));
        const auto call = [&](Context<Cuda>& c, index_t inputs) {
          return run(c, wi.data(), wo.data(), qs.data(), ks.data(), vs.data(), out.data(), o.data(), inputs);
        };
        Context<Cuda> small = ctx.with_workspace(ctx.workspace().first(ctx.workspace().size() - 1));
        CHECK(call(small, shape.inputs) == Status::workspace_too_small);
        CHECK(call(ctx, shape.inputs + 1) == Status::shape_mismatch);
        REQUIRE(call(ctx, shape.inputs) == Status::ok);
        close(out.read(), expected, 1e-5f, usual);
      });
    }
}

TEST_CASE("cuda shared_direction: distances and directions to 2e-6 of the CPU's, the same rows apart") {
  for (const index_t dim : {1, 64, 80, 256}) {
    constexpr index_t rows = 9;
    const index_t step = dim + 2;
    std::vector<float> a = normals(rows * step, 21), b = normals(rows * step, 22);
    const auto row = [&](std::vector<float>& x, index_t i) { return x.data() + i * step; };
    std::fill_n(row(a, 0), dim, 0.0f);
    std::fill_n(row(b, 1), dim, 0.0f);
    std::fill_n(row(a, 2), dim, 0.0f), std::fill_n(row(b, 2), dim, 0.0f);
    std::copy_n(row(a, 3), dim, row(b, 3));                                                  // one direction
    for (index_t c = 0; c < dim; ++c) row(b, 4)[c] = -2.0f * row(a, 4)[c];                   // opposite ones
    row(a, 5)[0] = NAN;
    std::vector<float> distance, shared(at(rows * dim));
    std::vector<double> lengths(2 * rows);
    for (index_t i = 0; i < rows; ++i) {
      distance.push_back(prim::SharedDirection<Cpu>::distance(row(a, i), row(b, i), dim, lengths.data() + 2 * i));
      prim::SharedDirection<Cpu>::between(0.6f, row(a, i), row(b, i), dim, shared.data() + i * dim);
    }
    const auto one = [&] {
      test::Device device;
      test::OnDevice<float> x(device, a), y(device, b), d(device, std::vector<float>(rows)), out(device, std::vector<float>(shared.size()));
      test::OnDevice<double> l(device, std::vector<double>(2 * rows));
      REQUIRE(prim::SharedDirection<Cuda>::distance(device, {x.data(), rows, step}, {y.data(), rows, step}, dim, d.data(), l.data()) == Status::ok);
      REQUIRE(prim::SharedDirection<Cuda>::between(device, 0.6f, {x.data(), rows, step}, {y.data(), rows, step}, dim, {out.data(), rows, dim}) == Status::ok);
      close(d.read(), distance, 2e-6f, 1e-2f);
      close(out.read(), shared, 2e-6f, 1.0f);
      const std::vector<double> got = l.read();
      for (std::size_t i = 0; i < got.size(); ++i) CHECK((std::isnan(got[i]) ? std::isnan(lengths[i]) : std::fabs(got[i] - lengths[i]) <= 1e-12 * lengths[i]));
      CHECK(prim::SharedDirection<Cuda>::distance(device, {x.data(), rows, step}, {y.data(), rows - 1, step}, dim, d.data(), l.data()) == Status::shape_mismatch);
      CHECK(prim::SharedDirection<Cuda>::between(device, 0.6f, {x.data(), rows, step}, {y.data(), rows, step}, dim, {out.data(), rows - 1, dim}) == Status::shape_mismatch);
    };
    if (dim == 80) test::each_way(one);
    else one();
  }
  for (const index_t n : {0, 1, 400})
    for (const prim::Apart apart : {prim::Apart::fraction, prim::Apart::range})
      for (const float part : {0.0f, 0.05f, 2.0f}) {
        std::vector<float> distance = normals(n, 23);
        for (float& x : distance) x = std::round(std::fabs(x) * 8.0f) / 16.0f;
        if (n > 100) distance[7] = NAN, distance[9] = 0.9999f;
        std::vector<std::uint8_t> kept(at(n), 9);
        const index_t count = prim::SharedDirection<Cpu>::apart({0.6f, apart, part}, distance.data(), n, kept.data());
        test::each_way([&] {
          test::Device device;
          test::OnDevice<float> d(device, distance);
          test::OnDevice<std::uint8_t> k(device, std::vector<std::uint8_t>(kept.size(), 9));
          test::OnDevice<index_t> c(device, {-1});
          REQUIRE(prim::SharedDirection<Cuda>::apart(device, {0.6f, apart, part}, d.data(), n, k.data(), c.data()) == Status::ok);
          CHECK(k.read() == kept);
          CHECK(c.read()[0] == count);
        });
      }
}

TEST_CASE("cuda find_rows: the largest sizes of channels in rows and in queries, of which there may be none") {
  constexpr index_t heads = 3, group = 2, page_slots = 8, pages = 6, first = 3;  // the second head has found its factors, the third has no rows
  const std::vector<prim::KeptRange> ranges{{first, 37, 0, 0}, {0, 40, 0, 0}, {}};
  struct Tried {
    index_t dim, tokens;
  };
  for (const Tried tried : {Tried{64, 0}, Tried{80, 1}, Tried{17, 70}, Tried{256, 5}}) {
    const index_t dim = tried.dim, tokens = tried.tokens;
    INFO("heads of " << dim << ", queries of " << tokens << " tokens");
    std::vector<float> rows = normals(heads * pages * page_slots * dim, 3), queries = normals(heads * group * tokens * dim, 4);
    rows[at(9 * dim + 2)] = NAN, rows[at(21 * dim)] = -INFINITY, rows[at(30 * dim + 5)] = -3e38f, rows[at((first + 37) * dim)] = 9.0f;
    for (index_t i = 0; i < 37; ++i) rows[at((first + i) * dim + 7)] = NAN;
    std::vector<float> expected(at(heads * 2 * dim), NAN);
    std::fill_n(expected.begin(), 2 * dim, 0.0f);
    const auto take = [](float& top, float x) { top = std::isfinite(x) ? std::max(top, std::fabs(x)) : top; };
    for (index_t c = 0; c < dim; ++c) {
      for (index_t i = 0; i < 37; ++i) take(expected[at(c)], rows[at((first + i) * dim + c)]);
      for (index_t i = 0; i < group * tokens; ++i) take(expected[at(dim + c)], queries[at(i * dim + c)]);
    }
    test::each_way([&] {
      test::Device device;
      test::OnDevice<float> x(device, rows), q(device, queries), flags(device, {0.0f, 1.0f, 0.0f}), out(device, std::vector<float>(expected.size(), NAN));
      std::vector<std::byte*> list;
      for (index_t p = 0; p < heads * pages; ++p) list.push_back(reinterpret_cast<std::byte*>(x.data() + p * page_slots * dim));
      test::OnDevice<std::byte*> table(device, list);
      test::OnDevice<index_t> offset(device, {0, pages, 2 * pages, 3 * pages});
      test::OnDevice<prim::KeptRange> due(device, ranges);
      prim::FirstRows these{prim::ExactRows{DType::f32}, {}, {{}, nullptr, due.data()}, {flags.data(), 1}, {}, tokens > 0 ? group : 0};
      these.column.newest = {table.data(), offset.data(), heads, page_slots, dim};
      if (tokens > 0) these.queries = dense_view(static_cast<const float*>(q.data()), heads * group, tokens, dim);  // a turn has no view at all
      REQUIRE(prim::FindRows::observe(device, prim::ChannelScale{.rule = prim::ChannelScale::Rule::balance}, these, out.data(), 2 * dim) == Status::ok);
      close(out.read(), expected, 0.0f);
    });
  }
}
