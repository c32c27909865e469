#include <cmath>

#include <evict/properties.hpp>
#include <kvcondense/evict/expected_attention.hpp>
#include <kvcondense/position/reindex.hpp>
#include <support/cache_rig.hpp>
#include <support/naive_cache.hpp>

using namespace kvcondense;
using namespace kvcondense::test;

namespace {

/// Mean and covariance of queries [head][token][channel] from token `first` on, by prim::QueryMoments.
struct Moments {
  std::vector<float> mean, covariance;
  index_t heads, dim;

  Moments(index_t h, index_t d) : mean(at(h * d)), covariance(at(h * d * d)), heads(h), dim(d) {}
  void add(TensorView<const float, 3> q, index_t counted) {
    Context<Cpu> ctx;
    REQUIRE(prim::QueryMoments<Cpu>::add(ctx, q, counted, dense_view(mean.data(), heads, dim),
                                         dense_view(covariance.data(), heads, dim, dim)) == Status::ok);
  }
  StepInputs inputs() const {
    return {.query_mean = dense_view(mean.data(), heads, dim), .query_covariance = dense_view(covariance.data(), heads, dim, dim)};
  }
};

}  // namespace

TEST_CASE("expected_attention: scores and kept tokens equal the oracle", "[evict][expected_attention]") {
  const auto o = eviction_oracle("expected_attention");
  const index_t n = o["params"]["seq_len"], dim = 4, sinks = o["params"]["n_sink"];
  std::vector<float> q;
  for (index_t h = 0; h < 2; ++h)
    for (index_t t = sinks; t < n; ++t)
      for (index_t d = 0; d < dim; ++d) q.push_back(o["Q_pre_rope"][at(h)][at(t)][at(d)]);
  Moments m(2, dim);
  m.add(dense_view(static_cast<const float*>(q.data()), 2, n - sinks, dim), 0);
  for (index_t h = 0; h < 2; ++h)
    for (index_t d = 0; d < dim; ++d)
      REQUIRE(m.mean[at(h * dim + d)] == Approx(o["heads"][at(h)]["mu"][at(d)].get<double>()).margin(1e-6));

  const CacheShape shape{.q_heads = 2, .kv_heads = 1, .head_dim = dim, .softmax_scale = 0.5f};
  const evict::ExpectedAttention policy{.keep = 4.0 / 6.0, .sinks = sinks, .horizon = o["params"]["n_future"]};
  auto d = drive(shape, policy);
  d.inputs = m.inputs();
  d.key = [&](index_t, index_t t, index_t c) { return o["K"][at(t)][at(c)].get<float>(); };
  d.value = [&](index_t, index_t t, index_t c) { return o["V"][at(t)][at(c)].get<float>(); };
  REQUIRE(d.step(n, Phase::prefill_end) == Status::ok);
  REQUIRE(d.held[0] == o["kept_top4_incl_sink"].get<Ints>());

  // The scores themselves, through the block.
  std::vector<float> key, value;
  for (index_t t = 0; t < n; ++t)
    for (index_t c = 0; c < dim; ++c) key.push_back(d.key(0, t, c)), value.push_back(d.value(0, t, c));
  const DenseRows keys(dense_view(static_cast<const float*>(key.data()), 1, n, dim));
  const DenseRows values(dense_view(static_cast<const float*>(value.data()), 1, n, dim));
  const index_t offset[] = {0, n};
  StepView<Cpu> view;
  view.shape = shape, view.offset = offset, view.seen = view.next_position = view.appended = n;
  view.inputs = m.inputs(), view.keys = &keys, view.values = &values;
  const auto p = policy.pipeline();
  std::vector<std::byte> memory(p.workspace_bytes(shape, n) + Scratch::align);
  Guarded<float> out(at(n));
  const RaggedView<float> scores{out.data(), offset, 1};
  Context<Cpu> ctx;
  Scratch a{memory}, b{memory};
  REQUIRE(p.source.score(ctx, view, {}, scores, a) == Status::ok);
  for (index_t t = sinks; t < n; ++t) {
    double both = 0;
    for (const auto& head : o["heads"]) both += head["softmax"][at(t - sinks)].get<double>();
    REQUIRE(out.data()[t] == Approx(both / 2).epsilon(1e-4));
  }
  REQUIRE(p.pool.run(ctx, view, nullptr, scores, b) == Status::ok);
  for (index_t t = sinks; t < n; ++t)
    REQUIRE(out.data()[t] == Approx(o["scores_non_sink"][at(t - sinks)].get<double>()).epsilon(1e-4));
  REQUIRE(out.ok());
}

TEST_CASE("expected_attention: the closed form is the mean over queries that are drawn", "[evict][expected_attention]") {
  // Unnormalised: exp(scale k.q + ...) of Gaussian queries, rotated by one position, has exactly this mean.
  for (const auto pairing : {prim::RopePairing::half_split, prim::RopePairing::interleaved})
    for (const index_t dim : {6, 80}) {
      const index_t n = 9;
      std::mt19937 random(4);
      std::normal_distribution<float> normal(0, 0.5f);
      std::vector<float> mean(at(dim)), cov(at(dim * dim)), key(at(n * dim)), root(at(dim * dim));
      for (float& x : mean) x = normal(random);
      for (float& x : key) x = normal(random);
      for (float& x : root) x = normal(random) / std::sqrt(static_cast<float>(dim));
      for (index_t i = 0; i < dim; ++i)
        for (index_t j = 0; j < dim; ++j)
          for (index_t r = 0; r < dim; ++r) cov[at(i * dim + j)] += root[at(i * dim + r)] * root[at(j * dim + r)];
      prim::ExpectedQueries q;
      q.mean = dense_view(static_cast<const float*>(mean.data()), 1, dim);
      q.covariance = dense_view(static_cast<const float*>(cov.data()), 1, dim, dim);
      q.rope.pairing = pairing, q.rope.rotary_dim = dim - 2;  // the last two channels do not turn
      q.position = 37, q.horizon = 1, q.scale = 0.4f;
      const DenseRows keys(dense_view(static_cast<const float*>(key.data()), 1, n, dim));
      const index_t offset[] = {0, n};
      std::vector<float> out(at(n));
      std::vector<std::byte> memory(prim::ExpectedAttention<Cpu>::workspace_bytes(1, dim, n) + Scratch::align);
      Scratch scratch{memory};
      Context<Cpu> ctx;
      REQUIRE(prim::ExpectedAttention<Cpu>::run(ctx, q, keys, {out.data(), offset, 1}, scratch) == Status::ok);
      const auto angles = prim::rope_angles(q.rope, dim);
      REQUIRE(angles);
      auto table = prim::RopeTable::make(q.rope, dim, heap_memory());
      REQUIRE(table);
      std::vector<double> want(at(n));
      double all = 0;
      for (index_t j = 0; j < n; ++j) {
        std::vector<float> k(key.begin() + j * dim, key.begin() + (j + 1) * dim);
        table->rotate(k.data(), -37);  // R(p) q . k = q . R(-p) k
        double e = 0, square = 0;
        for (index_t a = 0; a < dim; ++a) e += 0.4 * k[at(a)] * mean[at(a)];
        for (index_t a = 0; a < dim; ++a)
          for (index_t b = 0; b < dim; ++b) square += static_cast<double>(k[at(a)]) * cov[at(a * dim + b)] * k[at(b)];
        all += want[at(j)] = std::exp(e + 0.08 * square);
      }
      for (index_t j = 0; j < n; ++j) REQUIRE(out[at(j)] == Approx(want[at(j)] / all).epsilon(2e-4));
      Scratch less{std::span<std::byte>(memory).first(memory.size() - 2 * Scratch::align)};
      REQUIRE(prim::ExpectedAttention<Cpu>::run(ctx, q, keys, {out.data(), offset, 1}, less) == Status::workspace_too_small);
    }
}

TEST_CASE("query_moments: pieces give what the whole gives, and the definition", "[prim][query_moments]") {
  const index_t heads = 3, n = 50, dim = 7;
  std::mt19937 random(4);
  std::normal_distribution<float> normal(2, 1);
  std::vector<float> q(at(heads * n * dim));
  for (float& x : q) x = normal(random);
  const auto all = dense_view(static_cast<const float*>(q.data()), heads, n, dim);
  Moments whole(heads, dim), parts(heads, dim);
  std::fill(parts.mean.begin(), parts.mean.end(), NAN);  // not read when nothing is counted
  std::fill(parts.covariance.begin(), parts.covariance.end(), NAN);
  whole.add(all, 0);
  for (index_t first = 0; first < n; first += 20) {
    auto piece = all;
    piece.data += first * dim, piece.extent[1] = std::min<index_t>(20, n - first);
    parts.add(piece, first);
  }
  REQUIRE(parts.mean == whole.mean);
  REQUIRE(parts.covariance == whole.covariance);
  for (index_t h = 0; h < heads; ++h)
    for (index_t a = 0; a < dim; ++a)
      for (index_t b = 0; b < dim; ++b) {
        double ma = 0, mb = 0, c = 0;
        for (index_t t = 0; t < n; ++t) ma += all(h, t, a) / double(n), mb += all(h, t, b) / double(n);
        for (index_t t = 0; t < n; ++t) c += (all(h, t, a) - ma) * (all(h, t, b) - mb) / double(n);
        REQUIRE(whole.covariance[at((h * dim + a) * dim + b)] == Approx(c).margin(1e-5));
        REQUIRE(whole.mean[at(h * dim + a)] == Approx(ma));
      }
  Context<Cpu> ctx;
  REQUIRE(prim::QueryMoments<Cpu>::add(ctx, all, -1, dense_view(whole.mean.data(), heads, dim),
                                       dense_view(whole.covariance.data(), heads, dim, dim)) == Status::invalid_argument);
  REQUIRE(prim::QueryMoments<Cpu>::add(ctx, all, 0, dense_view(whole.mean.data(), 2, dim),
                                       dense_view(whole.covariance.data(), heads, dim, dim)) == Status::shape_mismatch);
}

TEST_CASE("expected_attention: a cache that stores raw keys is refused, one without moments says so", "[evict][expected_attention]") {
  const CacheShape shape{.q_heads = 4, .kv_heads = 2, .head_dim = 32};
  REQUIRE(make_cache<Cpu>(shape, recipe(evict::ExpectedAttention{}, position::Reindex{})).status() == Status::incompatible);
  CacheRig r(shape, recipe(evict::ExpectedAttention{.keep = 0.25}), 64, 64);
  std::mt19937 random(1);
  const Tokens t(shape, 40, random);
  REQUIRE(r.cache.append(r.ctx, 0, t.keys(shape), t.values(shape)) == Status::ok);
  REQUIRE(std::string(r.cache.missing(0, {})) == "moments");
  REQUIRE(r.cache.step(r.ctx, 0, StepInputs{}) == Status::missing_input);
  Moments m(4, 32);
  m.add(t.queries(shape), 0);
  REQUIRE(r.cache.step(r.ctx, 0, m.inputs()) == Status::ok);
  REQUIRE(r.cache.slots(0, 0) == 10);
  for (index_t s = 0; s < 4; ++s) REQUIRE(r.cache.token(0, 1, s) == s);
  using E = evict::ExpectedAttention;
  REQUIRE(E{.keep = 0}.validate(shape) == Status::invalid_argument);
  REQUIRE(E{.keep = 1.1}.validate(shape) == Status::invalid_argument);
  REQUIRE(E{.sinks = -1}.validate(shape) == Status::invalid_argument);
  REQUIRE(E{.horizon = 0}.validate(shape) == Status::invalid_argument);
  REQUIRE(E{.epsilon = -1}.validate(shape) == Status::invalid_argument);
  REQUIRE(E{.epsilon = 1.1e6f}.validate(shape) == Status::invalid_argument);
  REQUIRE(E{.rope = {.base = -3}}.validate(shape) != Status::ok);
}
