#include <cmath>
#include <limits>
#include <random>
#include <thread>
#include <vector>

#include <catch2/catch.hpp>

#include <kvcondense/cpu.hpp>
#include <support/guarded.hpp>

using namespace kvcondense;

namespace {

std::size_t at(index_t i) { return static_cast<std::size_t>(i); }

struct Rows {
  std::vector<float> key, value;
  index_t kd, vd;
  index_t key_dim() const { return kd; }
  index_t value_dim() const { return vd; }
};
struct Head {
  Rows* r;
  index_t key_dim() const { return r->kd; }
  index_t value_dim() const { return r->vd; }
  void key(index_t j, float* x) const { std::copy_n(r->key.data() + j * r->kd, r->kd, x); }
  void value(index_t j, float* x) const { std::copy_n(r->value.data() + j * r->vd, r->vd, x); }
  void set_key(index_t j, float* x) { std::copy_n(x, r->kd, r->key.data() + j * r->kd); }
  void set_value(index_t j, float* x) { std::copy_n(x, r->vd, r->value.data() + j * r->vd); }
};

/// Tasks on threads, the last one first.
struct Threads final : Executor {
  index_t workers() const noexcept override { return 3; }
  void run(index_t tasks, void (*body)(void*, index_t, index_t), void* state) noexcept override {
    for (index_t first = tasks; first > 0; first -= std::min<index_t>(3, first)) {
      std::vector<std::thread> all;
      for (index_t w = 0; w < std::min<index_t>(3, first); ++w) all.emplace_back([=] { body(state, first - 1 - w, w); });
      for (auto& t : all) t.join();
    }
  }
};

}  // namespace

TEST_CASE("segmented combine: sums of any members and any fan, as a formula in double says, on any number of threads",
          "[prim][segmented_combine]") {
  for (const index_t dim : {1, 8, 64, 80, 96, 112, 128, 256})
    for (const index_t fan : {1, 3}) {
      CAPTURE(dim, fan);
      const std::vector<index_t> lengths{40, 0, 1, 65};
      std::vector<index_t> offset{0};
      for (const index_t n : lengths) offset.push_back(offset.back() + n);
      const index_t total = offset.back();
      std::mt19937 random(static_cast<std::uint32_t>(dim * 7 + fan));
      std::normal_distribution<float> normal;
      std::vector<Rows> rows;
      test::Guarded<std::int32_t> to(at(total)), order(at(total));
      test::Guarded<float> like(at(total)), wk(at(total)), wv(at(total));
      std::vector<prim::SlotRange> targets;
      const auto view = [&](auto& x) { return RaggedView<std::remove_reference_t<decltype(*x.data())>>{x.data(), offset.data(), 4}; };
      const prim::MergeLinks links{view(to), view(like), view(wk), view(wv), fan};
      for (index_t h = 0; h < 4; ++h) {
        const index_t n = lengths[at(h)];
        targets.push_back({n / 8, n / 4, n});
        Rows r{std::vector<float>(at(n * dim)), std::vector<float>(at(n * 5)), dim, 5};
        for (float& x : r.key) x = normal(random);
        for (float& x : r.value) x = normal(random);
        rows.push_back(r);
        std::vector<std::int32_t> may;
        for (index_t j = 0; j < n; j += 2)
          if (targets[at(h)].has(j)) may.push_back(static_cast<std::int32_t>(j));
        for (index_t j = 0; j < n; ++j) {
          links.to.row(h)[j] = j % 2 == 0 || may.empty() ? static_cast<std::int32_t>(j) : j % 5 == 0 ? prim::dropped : may[random() % may.size()];
          links.key.row(h)[j] = normal(random), links.value.row(h)[j] = normal(random);
        }
      }
      // In double: a member counts in its target and the next ones that may be written.
      std::vector<std::vector<double>> want_k, want_v;
      for (index_t h = 0; h < 4; ++h) {
        std::vector<double> k(rows[at(h)].key.begin(), rows[at(h)].key.end()), v(rows[at(h)].value.begin(), rows[at(h)].value.end());
        std::vector<bool> joined(at(lengths[at(h)]));
        const auto add = [&](index_t t, index_t j) {
          for (index_t d = 0; d < dim; ++d) k[at(t * dim + d)] += static_cast<double>(links.key.row(h)[j]) * rows[at(h)].key[at(j * dim + d)];
          for (index_t d = 0; d < 5; ++d) v[at(t * 5 + d)] += static_cast<double>(links.value.row(h)[j]) * rows[at(h)].value[at(j * 5 + d)];
        };
        for (index_t j = 0; j < lengths[at(h)]; ++j) {
          if (!links.folds(h, j)) continue;
          for (index_t t = links.to.row(h)[j], seen = 0; t < lengths[at(h)] && seen < fan; ++t) {
            if (links.to.row(h)[t] != t || !targets[at(h)].has(t)) continue;
            ++seen;
            if (!joined[at(t)]) {
              joined[at(t)] = true;
              for (index_t d = 0; d < dim; ++d) k[at(t * dim + d)] = 0;
              for (index_t d = 0; d < 5; ++d) v[at(t * 5 + d)] = 0;
              add(t, t);
            }
            add(t, j);
          }
        }
        want_k.push_back(k), want_v.push_back(v);
      }
      prim::CombineRequest request;
      request.links = links, request.targets = targets.data(), request.order = view(order);
      auto other = rows;
      Context<Cpu> ctx;
      REQUIRE(prim::SegmentedCombine<Cpu>::run(ctx, request, [&](index_t h) { return Head{&rows[at(h)]}; }) == Status::ok);
      Threads threads;
      Context<Cpu> many({}, &threads);
      REQUIRE(prim::SegmentedCombine<Cpu>::run(many, request, [&](index_t h) { return Head{&other[at(h)]}; }) == Status::ok);
      REQUIRE((to.ok() && order.ok() && like.ok() && wk.ok() && wv.ok()));
      for (std::size_t h = 0; h < 4; ++h) {
        REQUIRE((rows[h].key == other[h].key && rows[h].value == other[h].value));
        for (std::size_t i = 0; i < want_k[h].size(); ++i) REQUIRE(rows[h].key[i] == Approx(want_k[h][i]).margin(2e-5));
        for (std::size_t i = 0; i < want_v[h].size(); ++i) REQUIRE(rows[h].value[i] == Approx(want_v[h][i]).margin(2e-5));
      }
    }
}

TEST_CASE("segmented combine: directions and lengths apart, with zeros, parallel and opposite rows", "[prim][segmented_combine]") {
  const auto run = [](std::vector<float> key, std::vector<float> weight) {
    Rows r{key, key, 2, 2};
    const index_t n = static_cast<index_t>(weight.size());
    const index_t offset[] = {0, n};
    std::vector<std::int32_t> to(at(n), 0), order(at(n));
    std::vector<float> like(at(n)), value = weight;
    const prim::SlotRange all{0, 0, n};
    prim::CombineRequest request;
    request.links = {{to.data(), offset, 1}, {like.data(), offset, 1}, {weight.data(), offset, 1}, {value.data(), offset, 1}, 1};
    request.targets = &all, request.order = {order.data(), offset, 1}, request.split = prim::RowSplit::direction;
    Context<Cpu> ctx;
    REQUIRE(prim::SegmentedCombine<Cpu>::run(ctx, request, [&](index_t) { return Head{&r}; }) == Status::ok);
    return std::vector<float>{r.key[0], r.key[1]};
  };
  const auto parallel = run({3, 4, 6, 8}, {0.5f, 0.5f});
  REQUIRE(parallel[0] == Approx(4.5f));
  REQUIRE(parallel[1] == Approx(6.0f));
  const auto right = run({2, 0, 0, 4}, {0.5f, 0.5f});
  REQUIRE(right[0] == Approx(3.0 / std::sqrt(2.0)));
  REQUIRE(right[1] == Approx(3.0 / std::sqrt(2.0)));
  REQUIRE(run({1, 0, -1, 0}, {0.5f, 0.5f}) == std::vector<float>{0, 0});     // no direction is left
  REQUIRE(run({0, 0, 0, 2}, {0.5f, 0.5f}) == std::vector<float>{0, 1});      // a row of zeros has a length only
  REQUIRE(run({0, 0, 0, 0}, {0.5f, 0.5f}) == std::vector<float>{0, 0});
}

TEST_CASE("segmented combine: a bias is the mass of what folded, and what all weighed where that is no number", "[prim][segmented_combine]") {
  const float nan = std::numeric_limits<float>::quiet_NaN(), inf = std::numeric_limits<float>::infinity();
  const auto run = [](std::vector<float> key, std::vector<float> query) {
    Rows r{key, key, 2, 2};
    const index_t offset[] = {0, 3};
    std::vector<std::int32_t> to(3, 0), order(3);
    std::vector<float> like(3), weight(3, 1.0f / 3), bias{0.0f, 1.0f, -2.0f};
    const prim::SlotRange all{0, 0, 3};
    prim::CombineRequest request;
    request.links = {{to.data(), offset, 1}, {like.data(), offset, 1}, {weight.data(), offset, 1}, {weight.data(), offset, 1}, 1};
    request.targets = &all, request.order = {order.data(), offset, 1}, request.bias = {bias.data(), offset, 1};
    request.queries = dense_view(query.data(), 2, 1, 2), request.softmax_scale = 1.0f;
    Context<Cpu> ctx;
    REQUIRE(prim::SegmentedCombine<Cpu>::run(ctx, request, [&](index_t) { return Head{&r}; }) == Status::ok);
    REQUIRE((bias[1] == 1.0f && bias[2] == -2.0f));
    return bias[0];
  };
  const std::vector<float> key{1, 2, 0.5f, -1, 3, 0}, query{0.3f, -0.2f, 1.0f, 0.4f};
  double want = 0;
  for (std::size_t g = 0; g < 2; ++g) {
    double sum = 0, mean = 0;
    for (std::size_t j = 0; j < 3; ++j) {
      const double dot = static_cast<double>(query[2 * g]) * key[2 * j] + static_cast<double>(query[2 * g + 1]) * key[2 * j + 1];
      sum += std::exp(dot + std::vector<double>{0, 1, -2}[j]), mean += dot / 3;
    }
    want += (std::log(sum) - mean) / 2;
  }
  REQUIRE(run(key, query) == Approx(want).margin(1e-5));
  const double sizes = std::log(1 + std::exp(1.0) + std::exp(-2.0));
  REQUIRE(run({1, 2, 1, 2, 1, 2}, query) == Approx(sizes).margin(1e-5));  // alike, they weigh that whatever the query
  for (const float bad : {nan, inf, -inf}) REQUIRE(run(key, {bad, 0, 1, 1}) == Approx(sizes).margin(1e-5));
  REQUIRE(run({3e38f, 3e38f, 1, 1, 1, 1}, {10, 10, 1, 1}) == Approx(sizes).margin(1e-5));
  REQUIRE(run({-3e38f, -3e38f, 1, 1, 1, 1}, {10, 10, 1, 1}) == Approx(sizes).margin(1e-5));
  REQUIRE(run({nan, 1, 1, 1, 1, 1}, query) == Approx(sizes).margin(1e-5));
}
