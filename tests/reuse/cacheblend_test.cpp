#include <algorithm>
#include <catch2/catch.hpp>
#include <kvcondense/backend/cpu/dense_head.hpp>
#include <kvcondense/backend/cpu/row_deviation.hpp>
#include <kvcondense/cpu.hpp>
#include <kvcondense/reuse/cacheblend.hpp>
#include <limits>
#include <numeric>
#include <random>
#include <support/fill.hpp>
#include <support/oracle.hpp>
#include <vector>

using namespace kvcondense;
using reuse::CacheBlend;
using reuse::Deviation;
using Tokens = std::vector<index_t>;

namespace {

nlohmann::json oracle() { return test::load_oracle("retrieval_reuse_storage.json", "cacheblend"); }

Tokens everything(index_t n) {
  Tokens t(static_cast<std::size_t>(n));
  std::iota(t.begin(), t.end(), 0);
  return t;
}

Tokens chosen(const CacheBlend& b, index_t layer, index_t total, index_t suffix, Tokens tokens, std::vector<float> moved) {
  tokens.resize(static_cast<std::size_t>(b.choose(layer, total, suffix, tokens, moved)));
  return tokens;
}

/// [tokens, heads, dim] of an oracle as [heads, tokens, dim].
struct Rows {
  std::vector<float> data;
  index_t tokens, heads, dim;
  explicit Rows(const nlohmann::json& j)
      : data(test::floats(j)), tokens(static_cast<index_t>(j.size())), heads(static_cast<index_t>(j[0].size())), dim(static_cast<index_t>(j[0][0].size())) {}
  TensorView<const float, 3> view() const { return {data.data(), {heads, tokens, dim}, {dim, heads * dim, 1}}; }
};

}  // namespace

TEST_CASE("cacheblend: the worked choice", "[reuse][cacheblend]") {
  const auto o = oracle();
  const Rows fresh(o.at("V_new")), old(o.at("V_old"));
  Context<Cpu> ctx;
  std::vector<float> moved(static_cast<std::size_t>(fresh.tokens), 0.0f);
  REQUIRE(prim::RowDeviation<Cpu>::run(ctx, fresh.view(), old.view(), moved.data()) == Status::ok);
  for (std::size_t i = 0; i < moved.size(); ++i) CHECK(moved[i] == Approx(o.at("deviation")[i].get<double>()).margin(1e-6));
  const CacheBlend blend{.ratio = o.at("ratio"), .deviation = Deviation::values};
  REQUIRE(blend.validate() == Status::ok);
  Tokens tokens = everything(fresh.tokens);
  index_t count = 0;
  std::vector<std::byte> scratch(CacheBlend::workspace_bytes(fresh.tokens) + Scratch::align);
  REQUIRE(blend.choose(ctx, 1, fresh.tokens, o.at("suffix_tokens"), {fresh.view(), fresh.view()}, {old.view(), old.view()}, tokens, count, Scratch(scratch)) == Status::ok);
  tokens.resize(static_cast<std::size_t>(count));
  CHECK(tokens == o.at("selected").get<Tokens>());
}

TEST_CASE("cacheblend: every query sees what stands before it, the worked attention", "[reuse][cacheblend]") {
  const auto o = oracle();
  const auto k = test::floats(o.at("K")), v = test::floats(o.at("V")), all_q = test::floats(o.at("Q"));
  const Tokens at = o.at("selected").get<Tokens>();
  CHECK(at == o.at("last_key_visible_causal").get<Tokens>());
  std::vector<float> q, out(at.size() * 2);
  for (const index_t t : at) q.insert(q.end(), all_q.begin() + t * 2, all_q.begin() + t * 2 + 2);
  const auto n = static_cast<index_t>(at.size());
  const auto keys = dense_view(k.data(), 1, 12, 2), values = dense_view(v.data(), 1, 12, 2);
  std::vector<std::byte> work(prim::Attend<Cpu>::workspace_bytes(1, 1, n, 12, 2, 2, false));
  Context<Cpu> ctx(work);
  prim::AttendRequest request{dense_view(std::as_const(q).data(), 1, n, 2), dense_view(out.data(), 1, n, 2)};
  request.softmax_scale = 1.0f / std::sqrt(2.0f);
  REQUIRE(prim::Attend<Cpu>::run(ctx, request, 1, [&](index_t h) { return prim::DenseHead{keys, values, h, at.data()}; }) == Status::ok);
  const auto want = test::floats(o.at("out_causal")), wrong = test::floats(o.at("out_bottom_right_mask"));
  for (std::size_t i = 0; i < want.size(); ++i) CHECK(out[i] == Approx(want[i]).margin(2e-6));
  CHECK(out[0] != Approx(wrong[0]).margin(1e-3));
}

TEST_CASE("attend: queries at any positions in any order are rows of causal attention", "[reuse][cacheblend]") {
  for (const index_t group : {1, 4, 7, 16})
    for (const index_t dim : {64, 80, 96, 256}) {
      constexpr index_t kv = 2, slots = 61;
      const index_t q_heads = kv * group;
      std::vector<float> q(static_cast<std::size_t>(q_heads * slots * dim)), k(static_cast<std::size_t>(kv * slots * dim)), v(k.size());
      test::fill_normal(q.data(), q.size(), 1), test::fill_normal(k.data(), k.size(), 2), test::fill_normal(v.data(), v.size(), 3);
      const auto keys = dense_view(std::as_const(k).data(), kv, slots, dim), values = dense_view(std::as_const(v).data(), kv, slots, dim);
      std::vector<std::byte> work(prim::Attend<Cpu>::workspace_bytes(1, kv, group * slots, slots, dim, dim, true));
      Context<Cpu> ctx(work);
      const auto run = [&](const Tokens& at, std::vector<float>& out) {
        const auto n = static_cast<index_t>(at.size());
        std::vector<float> rows(static_cast<std::size_t>(q_heads * n * dim));
        for (index_t h = 0; h < q_heads; ++h)
          for (index_t i = 0; i < n; ++i)
            std::copy_n(q.data() + (h * slots + at[static_cast<std::size_t>(i)]) * dim, dim, rows.data() + (h * n + i) * dim);
        out.assign(rows.size(), 0.0f);
        prim::AttendRequest request{dense_view(std::as_const(rows).data(), q_heads, n, dim), dense_view(out.data(), q_heads, n, dim)};
        REQUIRE(prim::Attend<Cpu>::run(ctx, request, kv, [&](index_t h) { return prim::DenseHead{keys, values, h, at.data()}; }) == Status::ok);
      };
      std::vector<float> all, some;
      run(everything(slots), all);
      const Tokens order{60, 0, 17, 16, 3, 59, 17};
      run(order, some);
      for (index_t h = 0; h < q_heads; ++h)
        for (std::size_t i = 0; i < order.size(); ++i)
          for (index_t d = 0; d < dim; ++d)
            REQUIRE(some[static_cast<std::size_t>((h * 7 + static_cast<index_t>(i)) * dim + d)] ==
                    all[static_cast<std::size_t>((h * slots + order[i]) * dim + d)]);
    }
}

TEST_CASE("cacheblend: the choice is that of a sort, NaN first, ties by place", "[reuse][cacheblend]") {
  std::mt19937 random(5);
  const float nan = std::numeric_limits<float>::quiet_NaN(), inf = std::numeric_limits<float>::infinity();
  for (int round = 0; round < 400; ++round) {
    const index_t total = static_cast<index_t>(random() % 40), suffix = static_cast<index_t>(random() % 5);
    Tokens tokens;
    for (index_t t = 0; t < total; ++t)
      if (random() % 4 != 0) tokens.push_back(t);
    std::vector<float> moved(tokens.size());
    for (float& x : moved) x = random() % 9 == 0 ? nan : random() % 9 == 0 ? inf : static_cast<float>(random() % 6) * 0.37f;
    const CacheBlend blend{.ratio = static_cast<double>(random() % 11) / 10};
    Tokens order(tokens.size()), want;
    std::iota(order.begin(), order.end(), 0);
    const auto key = [&](index_t i) { return moved[static_cast<std::size_t>(i)] != moved[static_cast<std::size_t>(i)] ? inf : moved[static_cast<std::size_t>(i)]; };
    std::stable_sort(order.begin(), order.end(), [&](index_t a, index_t b) { return key(a) > key(b); });
    index_t left = static_cast<index_t>(static_cast<double>(std::max<index_t>(0, total - suffix)) * blend.ratio + 1e-9);
    for (const index_t i : order) {
      const index_t t = tokens[static_cast<std::size_t>(i)];
      if (t >= total - suffix) want.push_back(t);
      else if (left-- > 0) want.push_back(t);
    }
    std::sort(want.begin(), want.end());
    CHECK(chosen(blend, 1, total, suffix, tokens, moved) == want);
  }
}

TEST_CASE("cacheblend: every field changes the choice", "[reuse][cacheblend]") {
  constexpr index_t n = 20;
  std::vector<float> a(n), zero(n, 0.0f);
  test::fill_normal(a.data(), a.size(), 4);
  const auto at = [&](const std::vector<float>& x) { return dense_view(x.data(), 1, n, 1); };
  std::vector<float> b(a);
  std::reverse(b.begin(), b.end());
  Context<Cpu> ctx;
  std::vector<std::byte> scratch(CacheBlend::workspace_bytes(n) + Scratch::align);
  const auto run = [&](const CacheBlend& blend, index_t layer = 1) {
    Tokens tokens = everything(n);
    index_t count = 0;
    REQUIRE(blend.choose(ctx, layer, n, 0, {at(a), at(b)}, {at(zero), at(zero)}, tokens, count, Scratch(scratch)) == Status::ok);
    tokens.resize(static_cast<std::size_t>(count));
    return tokens;
  };
  const CacheBlend blend{};
  CHECK(run(blend).size() == 3);
  CHECK(run({.ratio = 0.5}).size() == 10);
  CHECK(run({.deviation = Deviation::keys}) != run({.deviation = Deviation::values}));
  CHECK(run({.deviation = Deviation::keys}) != run(blend));
  CHECK(run({.check_layer = 2}).size() == 20);
  const CacheBlend gradual{.ratio = 0.1, .first_ratio = 0.5, .settle_layers = 4};
  REQUIRE(gradual.validate() == Status::ok);
  CHECK(run(gradual).size() == 10);
  CHECK(run(gradual, 3).size() == 6);
  CHECK(run(gradual, 5).size() == 2);
  CHECK(gradual.compares(5));
  CHECK_FALSE(gradual.compares(6));
  CHECK_FALSE(gradual.compares(0));
}

TEST_CASE("cacheblend: what cannot be is refused", "[reuse][cacheblend]") {
  CHECK(CacheBlend{.ratio = -0.1}.validate() == Status::invalid_argument);
  CHECK(CacheBlend{.ratio = 1.1}.validate() == Status::invalid_argument);
  CHECK(CacheBlend{.ratio = std::numeric_limits<double>::quiet_NaN()}.validate() == Status::invalid_argument);
  CHECK(CacheBlend{.check_layer = -1}.validate() == Status::invalid_argument);
  CHECK(CacheBlend{.ratio = 0.5, .first_ratio = 0.2, .settle_layers = 2}.validate() == Status::invalid_argument);
  CHECK(CacheBlend{.settle_layers = 2}.validate() == Status::invalid_argument);
  std::vector<float> a(8), b(8);
  Context<Cpu> ctx;
  Tokens tokens = everything(4);
  index_t count = 77;
  const auto four = dense_view(std::as_const(a).data(), 1, 4, 2);
  const auto three = dense_view(std::as_const(b).data(), 1, 3, 2);
  std::vector<std::byte> scratch(CacheBlend::workspace_bytes(4) + Scratch::align);
  CHECK(CacheBlend{}.choose(ctx, 1, 4, 0, {four, four}, {three, four}, tokens, count, Scratch(scratch)) == Status::shape_mismatch);
  CHECK(CacheBlend{}.choose(ctx, 1, 4, 0, {three, four}, {three, four}, tokens, count, Scratch(scratch)) == Status::shape_mismatch);
  CHECK(CacheBlend{}.choose(ctx, 1, 4, 0, {four, four}, {four, four}, tokens, count, Scratch(std::span<std::byte>())) == Status::workspace_too_small);
  CHECK(tokens == everything(4));
  CHECK(count == 77);
  CHECK(chosen(CacheBlend{}, 1, 0, 0, {}, {}).empty());
  CHECK(chosen(CacheBlend{}, 1, 1, 5, {0}, {0}) == Tokens{0});
}

TEST_CASE("cacheblend: as much is computed as hides behind loading", "[reuse][cacheblend]") {
  const auto c = oracle().at("controller");
  CHECK(c.at("t_load_ms").get<double>() / c.at("t_recompute_full_ms").get<double>() == Approx(c.at("equal_ratio").get<double>()));
  CHECK(reuse::blend_ratio(c.at("t_recompute_full_ms"), c.at("t_load_ms"), c.at("min_ratio")) == c.at("chosen").get<double>());
  const auto& large = c.at("llama70b");
  CHECK(reuse::blend_ratio(large.at("t_recompute_full_ms"), large.at("t_load_ms")) == Approx(large.at("chosen").get<double>()));
  CHECK(reuse::blend_ratio(10, 0.1) == 0.15);
  const std::vector<reuse::ChunkStore> stores{{5, 20e9}, {1, 5e9}, {0.1, 0.5e9}};
  CHECK(reuse::cheapest_store(stores, 1e9, 2.0) == 1);
  CHECK(reuse::cheapest_store(stores, 1e9, 20.0) == 2);
  CHECK(reuse::cheapest_store(stores, 1e9, 0.1) == -1);
}

namespace {

/// The constructed two-layer model of the oracle `induction_model`: a head that looks at the token before, and one that
/// finds where a token was and gives what stood behind it.
struct Induction {
  static constexpr int width = 64, context = 512;
  std::vector<std::vector<double>> codes;
  std::vector<int> tokens, keys, answers;
  std::uint64_t state = 12345;

  int draw(int m) {
    state = (1103515245u * state + 12345u) % 2147483648u;
    return static_cast<int>((state >> 16) % static_cast<std::uint64_t>(m));
  }
  Induction() {
    for (int t = 0; t < 384; ++t) {
      std::vector<int> channels;
      while (channels.size() < 4)
        if (const int c = draw(width); std::find(channels.begin(), channels.end(), c) == channels.end()) channels.push_back(c);
      std::vector<double> code(width, 0.0);
      for (const int c : channels) code[static_cast<std::size_t>(c)] = draw(2) == 1 ? 0.5 : -0.5;
      codes.push_back(code);
    }
    keys.resize(128);
    std::iota(keys.begin(), keys.end(), 0);
    for (int i = 127; i >= 1; --i) std::swap(keys[static_cast<std::size_t>(i)], keys[static_cast<std::size_t>(draw(i + 1))]);
    answers.resize(128);
    for (const int key : keys) {
      const int value = 128 + draw(128);
      answers[static_cast<std::size_t>(key)] = value;
      for (const int t : {key, value, 256 + draw(128), 256 + draw(128)}) tokens.push_back(t);
    }
  }
  /// What the first layer says of token p when it sees tokens from `from` on.
  std::vector<double> before(int p, int from) const {
    std::vector<double> logit, out(width, 0.0);
    double top = -1e300, sum = 0;
    for (int j = from; j <= p; ++j) {
      double l = 0;
      for (int t = 0; t < 32; ++t) l += 20.0 * std::cos(static_cast<double>(p - 1 - j) * std::pow(10000.0, -2.0 * t / 64.0));
      logit.push_back(l), top = std::max(top, l);
    }
    for (double& l : logit) sum += l = std::exp(l - top);
    for (int j = from; j <= p; ++j)
      for (std::size_t d = 0; d < width; ++d) out[d] += logit[static_cast<std::size_t>(j - from)] / sum * codes[static_cast<std::size_t>(tokens[static_cast<std::size_t>(j)])][d];
    return out;
  }
  /// Keys whose value is found when the second layer's keys are these.
  int correct(const std::vector<std::vector<double>>& layer_keys) const {
    int right = 0;
    for (int q = 0; q < 128; ++q) {
      std::vector<double> w(context), out(width, 0.0);
      double top = -1e300, sum = 0;
      for (std::size_t j = 0; j < context; ++j) {
        double l = 0;
        for (std::size_t d = 0; d < width; ++d) l += codes[static_cast<std::size_t>(q)][d] * layer_keys[j][d];
        w[j] = 20.0 * l, top = std::max(top, w[j]);
      }
      for (double& x : w) sum += x = std::exp(x - top);
      for (std::size_t j = 0; j < context; ++j)
        for (std::size_t d = 0; d < width; ++d) out[d] += w[j] / sum * codes[static_cast<std::size_t>(tokens[j])][d];
      int best = -1;
      double most = -1e300;
      for (int v = 128; v < 256; ++v) {
        double s = 0;
        for (std::size_t d = 0; d < width; ++d) s += codes[static_cast<std::size_t>(v)][d] * out[d];
        s = std::round(s * 1e9) / 1e9;
        if (s > most) most = s, best = v;
      }
      right += best == answers[static_cast<std::size_t>(q)] ? 1 : 0;
    }
    return right;
  }
};

}  // namespace

TEST_CASE("cacheblend: chunks that never saw each other, in a model whose answers are known", "[reuse][cacheblend]") {
  const auto o = test::load_oracle("retrieval_reuse_storage.json", "induction_model");
  const auto& reuse = o.at("chunk_reuse");
  const Induction model;
  for (std::size_t i = 0; i < 8; ++i) {
    CHECK(model.tokens[i] == o.at("first_tokens")[i].get<int>());
    CHECK(model.answers[i] == o.at("answers_key0_to_7")[i].get<int>());
  }
  const int chunk = reuse.at("chunk");
  std::vector<std::vector<double>> fresh, stored;
  for (int p = 0; p < Induction::context; ++p) {
    fresh.push_back(model.before(p, 0));
    stored.push_back(model.before(p, p / chunk * chunk));
  }
  CHECK(model.correct(fresh) == o.at("correct_of_128").at("dense").get<int>());
  CHECK(model.correct(stored) == reuse.at("no_recompute_correct").get<int>());
  std::vector<float> a, b, values(Induction::context, 0.0f);
  for (std::size_t p = 0; p < Induction::context; ++p)
    for (std::size_t d = 0; d < Induction::width; ++d) a.push_back(static_cast<float>(fresh[p][d])), b.push_back(static_cast<float>(stored[p][d]));
  std::vector<float> moved(Induction::context, 0.0f);
  Context<Cpu> ctx;
  const auto at = [](const std::vector<float>& x) { return dense_view(x.data(), 1, Induction::context, Induction::width); };
  REQUIRE(prim::RowDeviation<Cpu>::run(ctx, at(a), at(b), moved.data()) == Status::ok);
  CHECK(std::count_if(moved.begin(), moved.end(), [](float x) { return x > 1e-6f; }) == reuse.at("nonzero_key_deviation_tokens").get<int>());
  for (const auto& [ratio, want] : {std::pair{0.25, "recompute_25pct_by_key_deviation_correct"}, {0.10, "recompute_10pct_correct"}}) {
    std::vector<float> scratch = moved;
    Tokens tokens = everything(Induction::context);
    tokens.resize(static_cast<std::size_t>(CacheBlend{.ratio = ratio, .deviation = Deviation::keys}.choose(1, Induction::context, 0, tokens, scratch)));
    auto mixed = stored;
    for (const index_t t : tokens) mixed[static_cast<std::size_t>(t)] = fresh[static_cast<std::size_t>(t)];
    CHECK(model.correct(mixed) == reuse.at(want).get<int>());
  }
}
