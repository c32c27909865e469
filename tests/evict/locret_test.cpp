#include <cmath>
#include <string>

#include <evict/properties.hpp>
#include <kvcondense/budget/uniform.hpp>
#include <kvcondense/evict/locret.hpp>
#include <support/cache_rig.hpp>
#include <support/naive_cache.hpp>

using namespace kvcondense;
using namespace kvcondense::test;

namespace {

/// Scores as the projections' first query channel: the weights pick it out for every KV head.
struct PickHeads {
  std::vector<float> in, out;
  const float *in_at, *out_at;
  CacheShape shape;

  explicit PickHeads(const CacheShape& s) : shape(s) {
    const index_t inputs = s.q_heads * s.head_dim + s.kv_heads * (s.head_dim + s.values());
    in.assign(at(inputs * s.kv_heads), 0.0f), out.assign(at(s.kv_heads * s.kv_heads), 0.0f);
    for (index_t h = 0; h < s.kv_heads; ++h) {
      in[at(h * s.group() * s.head_dim * s.kv_heads + h)] = 1.0f;
      out[at(h * s.kv_heads + h)] = 1.0f;
    }
    in_at = in.data(), out_at = out.data();
  }
  evict::Locret policy(index_t tokens, index_t stabilizers, index_t local) const {
    const index_t inputs = static_cast<index_t>(in.size()) / shape.kv_heads;
    return {.tokens = tokens, .stabilizers = stabilizers, .local = local, .activation = prim::Activation::relu,
            .retain_in = {&in_at, 1, inputs, shape.kv_heads}, .retain_out = {&out_at, 1, shape.kv_heads, shape.kv_heads}};
  }
};

/// Projections whose first channel of a head's first query is the head's score of the token.
struct Scored {
  std::vector<float> q, k, v;
  CacheShape shape;
  index_t n;
  Scored(const CacheShape& s, index_t first, index_t count, const std::function<float(index_t, index_t)>& score)
      : q(at(s.q_heads * count * s.head_dim)), k(at(s.kv_heads * count * s.head_dim)), v(at(s.kv_heads * count * s.values())), shape(s), n(count) {
    for (index_t h = 0; h < s.kv_heads; ++h)
      for (index_t t = 0; t < count; ++t) q[at((h * s.group() * count + t) * s.head_dim)] = score(h, first + t);
  }
  StepInputs inputs() const {
    return {.raw_queries = dense_view(q.data(), shape.q_heads, n, shape.head_dim),
            .raw_keys = dense_view(k.data(), shape.kv_heads, n, shape.head_dim),
            .values = dense_view(v.data(), shape.kv_heads, n, shape.values())};
  }
};

}  // namespace

TEST_CASE("locret: a retaining head equals the oracle", "[evict][locret]") {
  const auto m = eviction_oracle("locret")["mlp"];
  const auto q = m["q"].get<std::vector<float>>(), k = m["k"].get<std::vector<float>>(), v = m["v"].get<std::vector<float>>();
  std::vector<float> in, out;
  for (const auto& row : m["W1"])
    for (const float x : row) in.push_back(x);
  for (const auto& row : m["W2"])
    for (const float x : row) out.push_back(x);
  Guarded<float> score(2);
  const index_t offset[] = {0, 1, 2};
  Context<Cpu> ctx;
  const prim::RetainingWeights w{in.data(), out.data(), 8, 3};
  const RaggedView<float> to{score.data(), offset, 2};
  const auto run = [&](const prim::RetainingWeights& weights, prim::Activation act) {
    return prim::RetainingHead<Cpu>::write(ctx, weights, act, dense_view(q.data(), 4, 1, 1), dense_view(k.data(), 2, 1, 1),
                                           dense_view(v.data(), 2, 1, 1), to);
  };
  REQUIRE(run(w, prim::Activation::silu) == Status::ok);
  for (std::size_t h = 0; h < 2; ++h) REQUIRE(score.data()[h] == Approx(m["cis"][h].get<double>()).epsilon(1e-5));
  const float silu = score.data()[0];
  REQUIRE(run(w, prim::Activation::relu) == Status::ok);
  REQUIRE(score.data()[0] != silu);
  REQUIRE(run({in.data(), out.data(), 7, 3}, prim::Activation::silu) == Status::shape_mismatch);
  REQUIRE(score.ok());
}

TEST_CASE("locret: chunks of a prompt leave what the oracle says", "[evict][locret]") {
  const auto c = eviction_oracle("locret")["chunked"];
  const CacheShape shape{.q_heads = 4, .kv_heads = 2, .head_dim = 2};
  const PickHeads pick(shape);
  const auto& p = c["params"];
  const auto score = [&](index_t h, index_t t) { return t < 9 ? c["cis"][at(h)][at(t)].get<float>() : 0.0f; };
  // The prompt's last token comes as one of the last chunk, or as the first generated one.
  for (const bool with_tail : {false, true}) {
    auto d = drive(shape, pick.policy(p["budget"], p["stabilizers"], with_tail ? p["local_len"].get<index_t>() : 0));
    for (index_t chunk = 0; chunk < 3; ++chunk) {
      const index_t n = with_tail && chunk == 2 ? 4 : 3;
      const Scored tokens(shape, 3 * chunk, n, score);
      d.inputs = tokens.inputs();
      REQUIRE(d.step(n, chunk == 2 ? Phase::prefill_end : Phase::prefill_chunk) == Status::ok);
      for (index_t h = 0; h < 2 && !(with_tail && chunk == 2); ++h)
        REQUIRE(d.held[at(h)] == c["heads"][at(h)]["trace"][at(chunk)]["kept"].get<Ints>());
    }
    if (!with_tail) {
      const Scored last(shape, 9, 1, score);
      d.inputs = last.inputs();
      REQUIRE(d.step(1, Phase::decode) == Status::ok);
    }
    for (index_t h = 0; h < 2; ++h) REQUIRE(d.held[at(h)] == c["heads"][at(h)]["final_cache"].get<Ints>());
  }
}

TEST_CASE("locret: many tokens, heads and units score as one by one in double", "[evict][locret]") {
  for (const CacheShape shape : {CacheShape{.q_heads = 7, .kv_heads = 1, .head_dim = 80}, CacheShape{.q_heads = 6, .kv_heads = 3, .head_dim = 5, .value_dim = 9},
                                 CacheShape{.q_heads = 4, .kv_heads = 4, .head_dim = 128}}) {
    std::mt19937 random(3);
    const index_t n = 19, hidden = 70, inputs = shape.q_heads * shape.head_dim + shape.kv_heads * (shape.head_dim + shape.values());
    std::normal_distribution<float> normal(0, 0.2f);
    std::vector<float> in(at(inputs * hidden)), out(at(hidden * shape.kv_heads));
    for (float& x : in) x = normal(random);
    for (float& x : out) x = normal(random);
    const Tokens t(shape, n, random);
    Ints offset{0};
    for (index_t h = 0; h < shape.kv_heads; ++h) offset.push_back(offset.back() + (h == 1 ? 4 : n + 2 * h));  // one head holds few of them
    Guarded<float> score(at(offset.back()));
    Context<Cpu> ctx;
    REQUIRE(prim::RetainingHead<Cpu>::write(ctx, {in.data(), out.data(), inputs, hidden}, prim::Activation::silu, t.queries(shape),
                                            t.keys(shape), t.values(shape), {score.data(), offset.data(), shape.kv_heads}) == Status::ok);
    for (index_t i = 0; i < n; ++i) {
      std::vector<double> x;
      for (const auto& part : {t.queries(shape), t.keys(shape), t.values(shape)})
        for (index_t h = 0; h < part.extent[0]; ++h)
          for (index_t c = 0; c < part.extent[2]; ++c) x.push_back(part(h, i, c));
      for (index_t h = 0; h < shape.kv_heads; ++h) {
        const index_t slot = offset[at(h + 1)] - n + i;
        if (slot < offset[at(h)]) continue;
        double want = 0;
        for (index_t u = 0; u < hidden; ++u) {
          double sum = 0;
          for (index_t j = 0; j < inputs; ++j) sum += x[at(j)] * in[at(j * hidden + u)];
          want += sum / (1 + std::exp(-sum)) * out[at(u * shape.kv_heads + h)];
        }
        REQUIRE(score.data()[slot] == Approx(want).margin(1e-4));
      }
    }
    REQUIRE(score.ok());
  }
}

TEST_CASE("locret: without stabilizers the same tokens stay however a prompt is cut", "[evict][locret]") {
  const CacheShape shape{.q_heads = 2, .kv_heads = 2, .head_dim = 4};
  const PickHeads pick(shape);
  const auto score = [](index_t h, index_t t) { return static_cast<float>((t * 37 + h * 11) % 101); };
  Rows want;
  for (const index_t cut : {40, 13, 1}) {
    auto d = drive(shape, pick.policy(40, 0, 0));
    for (index_t first = 0; first < 60; first += cut) {
      const index_t n = std::min<index_t>(cut, 60 - first);
      const Scored tokens(shape, first, n, score);
      d.inputs = tokens.inputs();
      REQUIRE(d.step(n, first + n == 60 ? Phase::prefill_end : Phase::prefill_chunk) == Status::ok);
      REQUIRE(d.held[0].size() <= 40);
    }
    if (want.empty()) want = d.held;
    REQUIRE(d.held == want);
  }
}

TEST_CASE("locret: without weights, or with others than the cache's, there is no cache", "[evict][locret]") {
  const CacheShape shape{.layers = 2, .q_heads = 6, .kv_heads = 2, .head_dim = 32};
  REQUIRE(evict::Locret{}.validate(shape) == Status::missing_input);
  const PickHeads pick({.q_heads = 2, .kv_heads = 2, .head_dim = 4});
  const CacheShape small{.q_heads = 2, .kv_heads = 2, .head_dim = 4};
  REQUIRE(pick.policy(4, 3, 9).validate(small) == Status::ok);
  const auto with = [&](auto change) {
    auto p = pick.policy(4, 3, 9);
    change(p);
    return p.validate(small);
  };
  REQUIRE(with([](auto& p) { p.retain_out = {}; }) == Status::missing_input);
  REQUIRE(with([](auto& p) { p.retain_in.layers = 2; }) == Status::shape_mismatch);
  REQUIRE(with([](auto& p) { p.retain_out.layers = 2; }) == Status::shape_mismatch);
  REQUIRE(with([](auto& p) { p.retain_in.rows -= 1; }) == Status::shape_mismatch);
  REQUIRE(with([](auto& p) { p.retain_out.rows += 1; }) == Status::shape_mismatch);
  REQUIRE(with([](auto& p) { p.retain_out.columns = 1; }) == Status::shape_mismatch);
  REQUIRE(pick.policy(4, 4, 0).validate(small) == Status::invalid_argument);
  REQUIRE(pick.policy(4, -1, 0).validate(small) == Status::invalid_argument);
  REQUIRE(pick.policy(4, 1, -1).validate(small) == Status::invalid_argument);
}

TEST_CASE("locret: a prompt of 100,000 tokens stays within its budget and a chunk", "[evict][locret]") {
  const CacheShape shape{.q_heads = 2, .kv_heads = 1, .head_dim = 16, .dtype = DType::f16};
  const PickHeads pick(shape);
  CacheRig r(shape, recipe(pick.policy(96, 16, 4)), 256, 100);
  std::mt19937 random(6);
  const Tokens t(shape, 100, random);
  std::size_t most = 0;
  for (int i = 0; i < 1000; ++i) {
    const Scored s(shape, 0, 100, [&](index_t, index_t) { return std::uniform_real_distribution<float>(0, 1)(random); });
    REQUIRE(r.cache.append(r.ctx, 0, t.keys(shape), t.values(shape)) == Status::ok);
    REQUIRE(r.cache.step(r.ctx, 0, s.inputs(), i == 999 ? Phase::prefill_end : Phase::prefill_chunk) == Status::ok);
    REQUIRE(r.cache.slots(0, 0) == (i == 999 ? 100 : 96));
    if (i == 100) most = r.memory.peak_bytes;  // which of its pages a cache needs at once shows after some chunks
  }
  REQUIRE(r.cache.next_position() == 100000);
  REQUIRE(r.memory.peak_bytes == most);
}
