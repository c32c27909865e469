#include <algorithm>
#include <numeric>

#include <evict/properties.hpp>
#include <kvcondense/budget/ratio.hpp>
#include <kvcondense/budget/uniform.hpp>
#include <kvcondense/core/random.hpp>
#include <kvcondense/evict/lagkv.hpp>

using namespace kvcondense;
using namespace kvcondense::test;

namespace {

Channels from_oracle(const nlohmann::json& rows) {
  return [rows](index_t, index_t t, index_t c) { return rows[at(t)][at(c)].get<float>(); };
}

/// Softmax of the deviations of `block`'s tokens on the scale of `next`, in double.
std::vector<double> spread(const Ints& block, const Ints& next, index_t dim, index_t h, const Channels& x) {
  std::vector<double> u;
  for (const index_t t : block) {
    double sum = 0, squares = 0;
    for (index_t c = 0; c < dim; ++c) {
      double lo = INFINITY, hi = -INFINITY;
      for (const index_t i : next) lo = std::min<double>(lo, x(h, i, c)), hi = std::max<double>(hi, x(h, i, c));
      const double y = (static_cast<double>(x(h, t, c)) - lo) / (hi - lo);
      sum += y, squares += y * y;
    }
    const double n = static_cast<double>(dim);
    u.push_back(std::exp(std::sqrt((squares - sum * sum / n) / (n - 1))));
  }
  const double all = std::accumulate(u.begin(), u.end(), 0.0);
  for (double& v : u) v /= all;
  return u;
}

/// What a whole prompt of n tokens leaves of head h: the rule read off the paper.
Ints whole_prompt(index_t n, const evict::LagKV& p, const CacheShape& shape, index_t h, const Channels& k, const Channels& v) {
  Ints kept;
  index_t base = 0;
  for (; base < std::min(p.sinks, n); ++base) kept.push_back(base);
  for (; base + 2 * p.lag <= n; base += p.lag) {
    Ints block(at(p.lag)), next(at(p.lag)), order(at(p.lag));
    std::iota(block.begin(), block.end(), base);
    std::iota(next.begin(), next.end(), base + p.lag);
    std::iota(order.begin(), order.end(), 0);
    const auto a = spread(block, next, shape.head_dim, h, k), b = spread(block, next, shape.values(), h, v);
    const auto score = [&](index_t j) { return a[at(j)] + static_cast<double>(p.value_weight) * b[at(j)]; };
    std::stable_sort(order.begin(), order.end(), [&](index_t i, index_t j) { return score(i) > score(j); });
    order.resize(at(evict::BlockRatio{p.lag, p.keep}.of(p.lag)));
    std::sort(order.begin(), order.end());
    for (const index_t j : order) kept.push_back(base + j);
  }
  for (; base < n; ++base) kept.push_back(base);
  return kept;
}

}  // namespace

TEST_CASE("lagkv: scores and kept sets equal the oracle, in one step and token by token", "[evict][lagkv]") {
  const auto oracle = eviction_oracle("lagkv");
  const auto& params = oracle["params"];
  const index_t n = params["seq_len"], lag = params["lag"], sinks = params["sink"];
  const evict::LagKV policy{.sinks = sinks, .lag = lag, .keep = params["ratio"]};
  const CacheShape shape{.head_dim = 3};
  const index_t chunk = GENERATE(1, 2, 4, 5, 11);
  CAPTURE(chunk);
  auto d = drive(shape, policy);
  d.key = from_oracle(oracle["K"]), d.value = from_oracle(oracle["V"]);
  for (index_t t = 0; t < n; t += chunk)
    REQUIRE(d.step(std::min(chunk, n - t), chunk > 1 ? Phase::prefill_chunk : Phase::decode) == Status::ok);
  REQUIRE(d.held[0] == oracle["kept"].get<Ints>());
  REQUIRE(d.lane[0][0] == std::vector<float>{1, 1, 1, 1, 1, 0, 0, 0, 0});  // sinks and survivors are settled

  std::vector<float> keys, values, lane(at(n)), out(at(n));
  for (index_t t = 0; t < n; ++t)
    for (index_t c = 0; c < 3; ++c) keys.push_back(d.key(0, t, c)), values.push_back(d.value(0, t, c));
  const DenseRows k(dense_view<const float>(keys.data(), 1, n, 3)), v(dense_view<const float>(values.data(), 1, n, 3));
  const index_t offset[] = {0, n};
  StepView<Cpu> view;
  view.shape = shape, view.offset = offset, view.keys = &k, view.values = &v;
  const auto source = policy.pipeline().source;
  std::vector<std::byte> memory(source.workspace_bytes(shape, n) + Scratch::align);
  Scratch scratch(memory);
  Context<Cpu> ctx;
  const RaggedView<float> lanes[] = {{lane.data(), offset, 1}};
  REQUIRE(source.score(ctx, view, lanes, {out.data(), offset, 1}, scratch) == Status::ok);
  for (index_t b = 0; b < 2; ++b)
    for (index_t j = 0; j < lag; ++j)
      REQUIRE(out[at(sinks + b * lag + j)] == Approx(oracle["combined"][at(b)][at(j)].get<double>()).margin(2e-5));
  REQUIRE((std::isinf(out[0]) && std::isinf(out[7]) && std::isinf(out[10])));
}

TEST_CASE("lagkv: under a ratio keeps what kvpress's ranks inside blocks keep", "[evict][lagkv]") {
  const auto oracle = eviction_oracle("lagkv");
  const index_t n = oracle["params"]["seq_len"], lag = 3, sinks = 1;
  for (index_t budget = 6; budget <= n; ++budget) {  // five protected
    auto d = drive({.head_dim = 3}, budget::Ratio{evict::LagKV{.sinks = sinks, .lag = lag},
                                                  static_cast<double>(budget) / static_cast<double>(n)});
    d.key = from_oracle(oracle["K"]), d.value = from_oracle(oracle["V"]);
    REQUIRE(d.step(n, Phase::prefill_end) == Status::ok);
    std::vector<double> score(at(n), 1.0);
    for (index_t b = 0; b < 2; ++b)
      for (index_t j = 0; j < lag; ++j) score[at(sinks + b * lag + j)] = oracle["kvpress_rank_scores"][at(b)][at(j)];
    Ints want(at(n));
    std::iota(want.begin(), want.end(), 0);
    std::stable_sort(want.begin(), want.end(), [&](index_t a, index_t b) { return score[at(a)] > score[at(b)]; });
    want.resize(at(budget));
    std::sort(want.begin(), want.end());
    REQUIRE(d.held[0] == want);
  }
}

TEST_CASE("lagkv: chunks of any size keep what the plain formula keeps of the whole prompt", "[evict][lagkv]") {
  const index_t dim = GENERATE(4, 64, 80, 128), group = GENERATE(1, 3, 4, 7);
  CAPTURE(dim, group);
  const CacheShape shape{.q_heads = 2 * group, .kv_heads = 2, .head_dim = dim, .value_dim = dim / 2};
  const evict::LagKV policy{.sinks = 3, .lag = 8, .keep = 0.4, .value_weight = 0.5f};
  std::uint32_t seed = 1;
  for (const index_t n : {0, 1, 3, 18, 19, 26, 27, 28, 75}) {
    auto d = drive(shape, policy);
    d.key = noise(5), d.value = noise(6);
    while (d.seen < n) {
      const auto most = static_cast<index_t>(random_uniform(++seed, 0) * 20.0f) + 1;
      REQUIRE(d.step(std::min(most, n - d.seen), Phase::prefill_chunk) == Status::ok);
    }
    for (index_t h = 0; h < 2; ++h) {
      CAPTURE(n, h);
      REQUIRE(d.held[at(h)] == whole_prompt(n, policy, shape, h, d.key, d.value));
    }
  }
}

TEST_CASE("lagkv: every knob has its say", "[evict][lagkv]") {
  const evict::LagKV usual{.sinks = 3, .lag = 8, .keep = 0.5};
  const auto kept = [&](const evict::LagKV& p) {
    auto d = drive({.head_dim = 6}, p);
    d.key = noise(5), d.value = noise(6);
    REQUIRE(d.step(60, Phase::prefill_end) == Status::ok);
    return d.held;
  };
  const Rows before = kept(usual);
  for (const evict::LagKV& other : {evict::LagKV{.sinks = 4, .lag = 8}, {.sinks = 3, .lag = 9}, {.sinks = 3, .lag = 8, .keep = 0.25},
                                    {.sinks = 3, .lag = 8, .value_weight = 0.0f}, {.sinks = 3, .lag = 8, .across = true}})
    REQUIRE(kept(other) != before);
  REQUIRE(kept({.sinks = 3, .lag = 8, .across = true})[0].size() == before[0].size());
}

TEST_CASE("lagkv: what was decided stays, whatever is taken away behind or before it", "[evict][lagkv]") {
  auto d = drive({.head_dim = 4}, evict::LagKV{.sinks = 2, .lag = 4, .keep = 0.5});
  d.key = noise(7), d.value = noise(8);
  REQUIRE(d.step(18, Phase::prefill_end) == Status::ok);  // 2 sinks, 3 decided blocks of 4, one that waits
  REQUIRE(d.held[0].size() == 2 + 6 + 4);
  const auto drop = [&](std::size_t first, std::size_t last) {
    const auto cut = [&](auto& row) {
      row.erase(row.begin() + static_cast<std::ptrdiff_t>(first), row.begin() + static_cast<std::ptrdiff_t>(last));
    };
    cut(d.held[0]), cut(d.lane[0][0]);
  };
  drop(6, 12);  // rolled back into a decided block
  d.seen = 12;
  const Ints settled = d.held[0];
  REQUIRE(d.step(7, Phase::decode) == Status::ok);  // one short of two blocks
  REQUIRE(d.held[0].size() == 13);
  REQUIRE(d.step(3, Phase::decode) == Status::ok);
  REQUIRE(d.held[0].size() == 6 + 2 + 6);
  drop(1, 3);  // a range cut out of what is settled
  REQUIRE(d.step(4, Phase::decode) == Status::ok);
  REQUIRE(d.held[0].size() == 4 + 4 + 6);
  for (const std::size_t i : {0u, 3u, 4u, 5u})
    REQUIRE(std::binary_search(d.held[0].begin(), d.held[0].end(), settled[i]));
}

TEST_CASE("lagkv: a token with a bad number leaves first, and is counted", "[evict][lagkv]") {
  auto d = drive({.head_dim = 4}, evict::LagKV{.sinks = 0, .lag = 4, .keep = 0.75});
  d.key = noise(7);
  d.value = [](index_t, index_t t, index_t c) { return t == 2 && c == 1 ? std::nanf("") : static_cast<float>((t * 7 + c * 3) % 5); };
  REQUIRE(d.step(8, Phase::prefill_end) == Status::ok);
  REQUIRE(d.held[0] == Ints{0, 1, 3, 4, 5, 6, 7});
  REQUIRE(d.nan == 1);
}

TEST_CASE("lagkv: tokens all alike keep the first of every block", "[evict][lagkv]") {
  auto d = drive({.head_dim = 4}, evict::LagKV{.sinks = 1, .lag = 4, .keep = 0.5});
  d.key = d.value = [](index_t, index_t, index_t) { return 2.0f; };
  REQUIRE(d.step(14, Phase::prefill_end) == Status::ok);
  REQUIRE(d.held[0] == Ints{0, 1, 2, 5, 6, 9, 10, 11, 12, 13});
}

TEST_CASE("lagkv: a total that does not grow bounds the cache", "[evict][lagkv]") {
  auto d = drive({.head_dim = 4}, budget::Uniform{evict::LagKV{.sinks = 2, .lag = 4}, 16});
  d.key = noise(7), d.value = noise(8);
  for (int i = 0; i < 60; ++i) {
    REQUIRE(d.step(1, Phase::decode) == Status::ok);
    REQUIRE(d.held[0].size() <= 16 + 8);
  }
}

TEST_CASE("lagkv: keeps the promises of a pipeline", "[evict][lagkv]") {
  // Fires at 301 and at 303 tokens.
  check_promises(evict::LagKV{.sinks = 7, .lag = 7, .keep = 0.45}, evict::LagKV{.sinks = 7, .lag = 7, .keep = 1.0});
}

TEST_CASE("lagkv: without keys or values a step is refused", "[evict][lagkv]") {
  auto d = drive({}, evict::LagKV{.sinks = 0, .lag = 2});
  d.key = noise(7);
  REQUIRE(d.step(4, Phase::prefill_end) == Status::missing_input);
  auto v = drive({}, evict::LagKV{.sinks = 0, .lag = 2});
  v.value = noise(7);
  REQUIRE(v.step(4, Phase::prefill_end) == Status::missing_input);
}

TEST_CASE("lagkv: fields out of range are refused", "[evict][lagkv]") {
  using L = evict::LagKV;
  REQUIRE(L{.sinks = -1}.validate({}) == Status::invalid_argument);
  REQUIRE(L{.lag = 0}.validate({}) == Status::invalid_argument);
  for (const double keep : {0.0, -1.0, 1.1, 0.001, std::nan("")})
    REQUIRE(L{.keep = keep}.validate({}) == Status::invalid_argument);
  for (const float weight : {-1.0f, std::nanf(""), INFINITY})
    REQUIRE(L{.value_weight = weight}.validate({}) == Status::invalid_argument);
  REQUIRE(L{.sinks = 0, .lag = 1, .keep = 1.0, .value_weight = 0.0f}.validate({}) == Status::ok);
}
