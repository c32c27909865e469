#include <kvcondense/lowrank/kv_heads_svd.hpp>

#include <random>

#include <kvcondense/cpu.hpp>
#include <kvcondense/evict/sink_window.hpp>
#include <kvcondense/lowrank/fit/shared_heads.hpp>
#include <support/cache_rig.hpp>
#include <support/eigen_json.hpp>
#include <support/naive_cache.hpp>
#include <support/oracle.hpp>

using namespace kvcondense;
using namespace kvcondense::test;
using lowrank::KvHeadsSvd;
namespace fit = lowrank::fit;

namespace {

std::size_t at(index_t i) { return static_cast<std::size_t>(i); }

/// Rows of heads side by side, [tokens, heads * dim].
fit::Matrix side_by_side(const std::vector<float>& x, index_t first, index_t heads, index_t tokens, index_t dim) {
  fit::Matrix rows(tokens, heads * dim);
  for (index_t h = 0; h < heads; ++h)
    for (index_t t = 0; t < tokens; ++t)
      for (index_t d = 0; d < dim; ++d) rows(t, h * dim + d) = static_cast<double>(x[at(((first + h) * tokens + t) * dim + d)]);
  return rows;
}

/// Bases of one layer, found from keys and values that are all there.
struct Found {
  std::vector<float> key, value;
  HeadBases keys{}, values{};

  Found(const CacheShape& s, const Tokens& t, index_t groups) {
    const auto one = [&](const std::vector<float>& x, index_t dim, std::vector<float>& list, HeadBases& b) {
      const index_t share = s.kv_heads / groups;
      for (index_t g = 0; g < groups; ++g) {
        const auto d = fit::shared_head(side_by_side(x, g * share, share, t.n, dim));
        REQUIRE(d);
        for (index_t i = 0; i < share * dim; ++i)
          for (index_t j = 0; j < share * dim; ++j) list.push_back(static_cast<float>(d->columns(i, j)));
      }
      b.encode = list.data(), b.layers = 1, b.groups = groups, b.dim = b.columns = share * dim;
    };
    one(t.k, s.head_dim, key, keys), one(t.v, s.values(), value, values);
  }
};

/// Heads of which each is a turned copy of one, with a little of its own.
Tokens alike(const CacheShape& s, index_t n, std::mt19937& random, float own) {
  Tokens t(s, n, random);
  std::normal_distribution<float> normal;
  const auto mix = [&](std::vector<float>& x, index_t dim) {
    std::vector<float> first(x.begin(), x.begin() + n * dim);
    std::vector<float> turn(at(dim));
    for (index_t h = 0; h < s.kv_heads; ++h) {
      std::vector<float> m(at(dim * dim));
      for (float& e : m) e = normal(random) / std::sqrt(static_cast<float>(dim));
      for (index_t i = 0; i < n; ++i)
        for (index_t d = 0; d < dim; ++d) {
          float sum = own * normal(random);
          for (index_t c = 0; c < dim; ++c) sum += first[at(i * dim + c)] * m[at(c * dim + d)];
          x[at((h * n + i) * dim + d)] = sum;
        }
    }
  };
  mix(t.k, s.head_dim), mix(t.v, s.values());
  return t;
}

/// Outputs of the model's attention through a cache of shared heads.
template <class Rig>
std::vector<float> through(Rig& rig, const KvHeadsSvd& m, const CacheShape& model, const Tokens& t) {
  const CacheShape s = m.shape(model);
  std::vector<float> k(at(s.kv_heads * t.n * s.head_dim)), v(at(s.kv_heads * t.n * s.values())), q(at(s.q_heads * t.n * s.head_dim)),
      o(at(s.q_heads * t.n * s.values())), out(at(s.q_heads * t.n * model.values()));
  Context<Cpu>& ctx = rig.ctx;
  const auto shared_k = dense_view(k.data(), s.kv_heads, t.n, s.head_dim), shared_v = dense_view(v.data(), s.kv_heads, t.n, s.values());
  const auto mapped = dense_view(q.data(), s.q_heads, t.n, s.head_dim), inner = dense_view(o.data(), s.q_heads, t.n, s.values());
  REQUIRE(m.join_keys(ctx, model, 0, t.keys(model), shared_k) == Status::ok);
  REQUIRE(m.join_values(ctx, model, 0, t.values(model), shared_v) == Status::ok);
  REQUIRE(m.map_queries(ctx, model, 0, t.queries(model), mapped) == Status::ok);
  REQUIRE(rig.cache.forward(ctx, 0, TensorView<const float, 3>(mapped), TensorView<const float, 3>(shared_k), TensorView<const float, 3>(shared_v),
                            inner) == Status::ok);
  REQUIRE(m.map_outputs(ctx, model, 0, TensorView<const float, 3>(inner), dense_view(out.data(), model.q_heads, t.n, model.values())) == Status::ok);
  return out;
}

template <class Rig>
std::vector<float> plain(Rig& rig, const CacheShape& s, const Tokens& t) {
  std::vector<float> out(at(s.q_heads * t.n * s.values()));
  REQUIRE(rig.cache.forward(rig.ctx, 0, t.queries(s), t.keys(s), t.values(s), dense_view(out.data(), s.q_heads, t.n, s.values())) == Status::ok);
  return out;
}

double distance(const std::vector<float>& a, const std::vector<float>& b) {
  double sum = 0, all = 0;
  for (std::size_t i = 0; i < a.size(); ++i) sum += std::pow(static_cast<double>(a[i]) - b[i], 2), all += std::pow(static_cast<double>(b[i]), 2);
  return std::sqrt(sum / all);
}

}  // namespace

TEST_CASE("kv_heads_svd: the oracle's folded weights, and its logits through the words and a cache", "[lowrank][kv_heads_svd]") {
  const auto o = load_oracle("lowrank.json", "kv_heads_svd");
  const auto& want = o["expected"];
  const fit::Matrix x = matrix(o["inputs"]["X"]);
  fit::Matrix weights(4, 4), keys(x.rows(), 4);
  for (std::size_t h = 0; h < 2; ++h) {
    const fit::Matrix w = matrix(o["inputs"]["W_k"][h]);
    weights.middleRows(static_cast<Eigen::Index>(2 * h), 2) = w;
    keys.middleCols(static_cast<Eigen::Index>(2 * h), 2) = x * w.transpose();
  }
  const auto d = fit::shared_head(keys);
  REQUIRE(d);
  const fit::Matrix basis = d->columns.leftCols(2);
  const fit::Matrix joined = fit::fold_joined(weights, basis);
  REQUIRE(farthest(joined, matrix(want["W_k_new"])) < 1e-8);
  const fit::Vector q = test::vector(o["inputs"]["x_query"]);
  const CacheShape model{.q_heads = 2, .kv_heads = 2, .head_dim = 2, .dtype = DType::f32};
  std::mt19937 random(1);
  Tokens t(model, x.rows(), random);
  for (std::size_t h = 0; h < 2; ++h) {
    const fit::Matrix own = matrix(o["inputs"]["W_q"][h]);
    const fit::Matrix folded = fit::fold_query(own, basis.middleRows(static_cast<Eigen::Index>(2 * h), 2));
    REQUIRE(farthest(folded, matrix(want["W_q_new"][h])) < 1e-8);
    REQUIRE(farthest(fit::Vector(x * joined.transpose() * (folded * q) / std::sqrt(2.0)), test::vector(want["logits_absorbed"][h])) < 1e-8);
    for (index_t i = 0; i < t.n; ++i)
      for (index_t c = 0; c < 2; ++c) {
        t.k[at((static_cast<index_t>(h) * t.n + i) * 2 + c)] = static_cast<float>(keys(i, static_cast<Eigen::Index>(2 * h) + c));
        t.q[at((static_cast<index_t>(h) * t.n + i) * 2 + c)] = static_cast<float>((own * q)(c));
      }
  }
  Found bases(model, t, 1);
  const KvHeadsSvd m{bases.keys, bases.values};
  REQUIRE(m.validate(model) == Status::ok);
  const CacheShape s = m.shape(model);
  REQUIRE((s.kv_heads == 1 && s.q_heads == 2 && s.head_dim == 2 && s.softmax_scale == Approx(1 / std::sqrt(2.0))));
  std::vector<float> shared(at(t.n * 2)), mapped(at(2 * t.n * 2));
  Context<Cpu> ctx;
  REQUIRE(m.join_keys(ctx, model, 0, t.keys(model), dense_view(shared.data(), 1, t.n, 2)) == Status::ok);
  REQUIRE(m.map_queries(ctx, model, 0, t.queries(model), dense_view(mapped.data(), 2, t.n, 2)) == Status::ok);
  const fit::Matrix shared_k = matrix(want["shared_K"]), logits = matrix(want["logits_shared"]);
  for (index_t i = 0; i < t.n; ++i) {
    for (index_t c = 0; c < 2; ++c) REQUIRE(shared[at(i * 2 + c)] == Approx(shared_k(i, c)).margin(2e-6));
    for (index_t h = 0; h < 2; ++h) {
      const float* b = mapped.data() + h * t.n * 2;
      REQUIRE(static_cast<double>(b[0] * shared[at(i * 2)] + b[1] * shared[at(i * 2 + 1)]) / std::sqrt(2.0) == Approx(logits(h, i)).margin(4e-6));
    }
  }
}

TEST_CASE("kv_heads_svd: with all columns attention is the model's own, for any heads", "[lowrank][kv_heads_svd]") {
  for (const auto& [kv, share, group, dim, value] : {std::tuple<index_t, index_t, index_t, index_t, index_t>{4, 2, 1, 64, 64}, {4, 4, 2, 64, 32}, {2, 2, 3, 80, 80},
                                                     {6, 2, 2, 96, 96}, {2, 2, 8, 112, 112}, {4, 2, 1, 128, 128}, {2, 1, 16, 256, 256}}) {
    CAPTURE(kv, share, group, dim, value);
    const CacheShape model{.q_heads = kv * group, .kv_heads = kv, .head_dim = dim, .value_dim = value, .dtype = DType::f32};
    std::mt19937 random(static_cast<unsigned>(dim));
    const Tokens t(model, 12, random), one(model, 1, random);
    Found bases(model, Tokens(model, 2 * dim * share, random), kv / share);
    const KvHeadsSvd m{bases.keys, bases.values, share * dim, share * value};
    REQUIRE(m.validate(model) == Status::ok);
    CacheRig rig(m.shape(model), recipe(evict::KeepAll{}), 32, 16), full(model, recipe(evict::KeepAll{}), 32, 16);
    for (const Tokens* x : {&t, &one}) {
      const auto a = through(rig, m, model, *x), b = plain(full, model, *x);
      for (std::size_t i = 0; i < a.size(); ++i) REQUIRE(a[i] == Approx(b[i]).margin(3e-5));
    }
  }
}

TEST_CASE("kv_heads_svd: heads that are alike lose little in a share of the room, and columns buy precision", "[lowrank][kv_heads_svd]") {
  const CacheShape model{.q_heads = 8, .kv_heads = 4, .head_dim = 64, .dtype = DType::f32};
  std::mt19937 random(5);
  const Tokens t = alike(model, 200, random, 0.02f);
  Found bases(model, t, 1);
  CacheRig full(model, recipe(evict::KeepAll{}), 256, 200);
  const auto want = plain(full, model, t);
  double last = 1;
  for (const index_t columns : {16, 32, 64}) {
    const KvHeadsSvd m{bases.keys, bases.values, columns, columns};
    REQUIRE(m.validate(model) == Status::ok);
    CacheRig rig(m.shape(model), recipe(evict::KeepAll{}), 256, 200);
    const double error = distance(through(rig, m, model, t), want);
    REQUIRE(error < last);
    last = error;
    REQUIRE(rig.cache.report().exact_bytes * 4 * 64 / static_cast<std::size_t>(columns) < full.cache.report().exact_bytes * 5 / 4);
  }
  REQUIRE(last < 0.05);
  // Keys and values each change the result, and any recipe runs on the shared heads.
  const KvHeadsSvd few{bases.keys, bases.values, 32, 64}, other{bases.keys, bases.values, 64, 32};
  CacheRig a(few.shape(model), recipe(evict::KeepAll{}), 256, 200), b(other.shape(model), recipe(evict::KeepAll{}), 256, 200);
  REQUIRE(through(a, few, model, t) != through(b, other, model, t));
  CacheRig evicts(few.shape(model), recipe(evict::SinkWindow{.recent = 20, .sinks = 4}), 256, 200);
  through(evicts, few, model, t);
  REQUIRE(evicts.cache.report().slots == 24);
}

TEST_CASE("kv_heads_svd: what does not fit is refused", "[lowrank][kv_heads_svd]") {
  const CacheShape model{.q_heads = 4, .kv_heads = 4, .head_dim = 8, .dtype = DType::f32};
  std::mt19937 random(7);
  Found bases(model, Tokens(model, 40, random), 2);
  const KvHeadsSvd good{bases.keys, bases.values};
  REQUIRE(good.validate(model) == Status::ok);
  REQUIRE(KvHeadsSvd{}.validate(model) == Status::missing_input);
  REQUIRE(KvHeadsSvd{bases.keys, {}}.validate(model) == Status::missing_input);
  for (const CacheShape& other : {CacheShape{.layers = 2, .q_heads = 4, .kv_heads = 4, .head_dim = 8}, {.q_heads = 4, .kv_heads = 2, .head_dim = 8},
                                  {.q_heads = 3, .kv_heads = 3, .head_dim = 8}, {.q_heads = 4, .kv_heads = 4, .head_dim = 16}})
    REQUIRE(good.validate(other) == Status::shape_mismatch);
  Found fewer(model, Tokens(model, 40, random), 4);
  REQUIRE(KvHeadsSvd{bases.keys, fewer.values}.validate(model) == Status::shape_mismatch);
  REQUIRE(KvHeadsSvd{bases.keys, bases.values, 17}.validate(model) == Status::invalid_argument);
  REQUIRE(KvHeadsSvd{bases.keys, bases.values, -1}.validate(model) == Status::invalid_argument);
  KvHeadsSvd raw = good, mean = good;
  raw.keys.keys = KeyForm::raw;
  REQUIRE(raw.validate(model) == Status::incompatible);
  mean.keys.mean = bases.key.data();
  REQUIRE(mean.validate(model) == Status::invalid_argument);
  bases.value[3] = NAN;
  REQUIRE(good.validate(model) == Status::invalid_argument);
  std::vector<float> rows(4 * 8 * 3), out(2 * 8 * 3);
  Context<Cpu> ctx;
  const auto in = [&](index_t heads) { return dense_view(std::as_const(rows).data(), heads, 3, 8); };
  REQUIRE(good.join_keys(ctx, model, 0, in(3), dense_view(out.data(), 2, 3, 8)) == Status::shape_mismatch);
  REQUIRE(good.join_keys(ctx, model, 0, in(4), dense_view(out.data(), 2, 2, 8)) == Status::shape_mismatch);
  REQUIRE(good.map_queries(ctx, model, 0, in(3), dense_view(out.data(), 3, 2, 8)) == Status::shape_mismatch);
  REQUIRE(good.map_outputs(ctx, model, 0, in(2), dense_view(out.data(), 2, 3, 8)) == Status::shape_mismatch);
  REQUIRE(good.join_keys(ctx, model, 0, dense_view(std::as_const(rows).data(), 4, 0, 8), dense_view(out.data(), 2, 0, 8)) == Status::ok);
}
