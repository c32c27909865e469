#include <algorithm>
#include <numeric>

#include <evict/properties.hpp>
#include <kvcondense/budget/ada.hpp>
#include <kvcondense/budget/pyramid.hpp>
#include <kvcondense/budget/ratio.hpp>
#include <kvcondense/budget/skip_layers.hpp>
#include <kvcondense/budget/uniform.hpp>
#include <kvcondense/core/random.hpp>
#include <kvcondense/evict/rkv.hpp>

using namespace kvcondense;
using namespace kvcondense::test;

namespace {

/// What R-KV keeps of the tokens of one head, read off its formulas, in double.
template <class D>
Ints plain(const D& d, const evict::RKV& p, index_t h) {
  const Ints& tokens = d.held[at(h)];
  const auto n = static_cast<index_t>(tokens.size()), past = n - p.window, group = d.shape.group(), dim = d.shape.head_dim;
  const auto dot = [&](const auto& a, index_t ah, index_t at_, const auto& b, index_t bh, index_t bt) {
    double s = 0;
    for (index_t c = 0; c < dim; ++c) s += static_cast<double>(a(ah, at_, c)) * static_cast<double>(b(bh, bt, c));
    return s;
  };
  std::vector<double> importance(at(past), 0.0), pooled, red(at(n), 0.0);
  for (index_t w = 0; w < p.window; ++w) {
    std::vector<double> y;
    double sum = 0;
    for (index_t j = 0; j < past; ++j) {
      double most = -INFINITY;
      for (index_t g = 0; g < group; ++g)
        most = std::max(most, dot(d.query, h * group + g, d.seen - p.window + w, d.key, h, tokens[at(j)]));
      y.push_back(std::exp(most / std::sqrt(static_cast<double>(dim))));
      sum += y.back();
    }
    for (index_t j = 0; j < past; ++j) importance[at(j)] += y[at(j)] / sum / static_cast<double>(p.window);
  }
  for (index_t j = 0; j < past; ++j) {
    const auto from = importance.begin() + std::max<index_t>(0, j - p.kernel / 2);
    pooled.push_back(*std::max_element(from, importance.begin() + std::min(past, j + p.kernel / 2 + 1)));
  }
  double sum = 0;
  for (index_t i = 0; i < n; ++i) {
    std::vector<double> c(at(n), 0.0);
    for (index_t j = 0; j < n; ++j)
      if (i != j)
        c[at(j)] = dot(d.key, h, tokens[at(i)], d.key, h, tokens[at(j)]) /
                   std::sqrt(dot(d.key, h, tokens[at(i)], d.key, h, tokens[at(i)]) * dot(d.key, h, tokens[at(j)], d.key, h, tokens[at(j)]));
    index_t last = 0;
    for (index_t j = 0; j < n; ++j)
      if (c[at(j)] > static_cast<double>(p.threshold)) last = j;
    c[at(last)] = 0;
    for (index_t j = 0; j < n; ++j) red[at(j)] += c[at(j)] / static_cast<double>(n);
  }
  for (double& r : red) sum += r = std::exp(r);
  Ints order(at(past)), kept;
  std::iota(order.begin(), order.end(), 0);
  const auto score = [&](index_t j) {
    return static_cast<double>(p.lambda) * pooled[at(j)] - (1 - static_cast<double>(p.lambda)) * red[at(j)] / sum;
  };
  std::stable_sort(order.begin(), order.end(), [&](index_t a, index_t b) { return score(a) > score(b); });
  order.resize(at(p.tokens - p.window));
  for (index_t j = past; j < n; ++j) order.push_back(j);
  std::sort(order.begin(), order.end());
  for (const index_t j : order) kept.push_back(tokens[at(j)]);
  return kept;
}

}  // namespace

TEST_CASE("rkv: scores and kept sets equal the oracle", "[evict][rkv]") {
  const auto oracle = eviction_oracle("rkv");
  const auto& params = oracle["params"];
  const FX1 fx;
  CacheShape shape = fx.shape;
  shape.softmax_scale = 0.5f;
  const evict::RKV policy{.tokens = params["budget"], .window = params["window"], .kernel = params["kernel"],
                          .lambda = params["mix_lambda"], .threshold = params["sim_threshold"], .slack = 3};
  auto d = drive(shape, policy);
  d.key = [&](index_t h, index_t t, index_t c) { return static_cast<float>(fx.k(h, t, c)); };
  d.query = [&](index_t h, index_t t, index_t c) { return static_cast<float>(fx.q(h, t, c)); };
  const bool at_once = GENERATE(true, false);
  for (index_t t = 0; t < 8; t += at_once ? 8 : 1) REQUIRE(d.step(at_once ? 8 : 1, Phase::prefill_chunk) == Status::ok);
  for (index_t g = 0; g < 2; ++g) REQUIRE(d.held[at(g)] == oracle["heads"][at(g)]["kept"].get<Ints>());

  // The pool blocks alone, on the oracle's importance.
  std::vector<float> keys, scores;
  for (index_t g = 0; g < 2; ++g) {
    for (index_t t = 0; t < 8; ++t)
      for (index_t c = 0; c < 4; ++c) keys.push_back(d.key(g, t, c));
    for (index_t t = 0; t < 8; ++t) scores.push_back(t < 6 ? oracle["heads"][at(g)]["importance"][at(t)].get<float>() : 0.0f);
  }
  const DenseRows rows(dense_view<const float>(keys.data(), 2, 8, 4));
  const index_t offset[] = {0, 8, 16};
  StepView<Cpu> view;
  view.shape = shape, view.offset = offset, view.keys = &rows;
  const evict::Protected shield[] = {{0, 2}, {0, 2}};
  const auto pool = policy.pipeline().pool;
  std::vector<std::byte> memory(pool.workspace_bytes(shape, 16) + Scratch::align);
  Scratch scratch(memory);
  Context<Cpu> ctx;
  REQUIRE(pool.run(ctx, view, shield, {scores.data(), offset, 2}, scratch) == Status::ok);
  for (index_t g = 0; g < 2; ++g)
    for (index_t t = 0; t < 6; ++t)
      REQUIRE(scores[at(8 * g + t)] == Approx(oracle["heads"][at(g)]["final"][at(t)].get<double>()).margin(2e-5));
}

TEST_CASE("rkv: keeps what the plain formulas keep, all along an answer", "[evict][rkv]") {
  const index_t dim = GENERATE(64, 80, 96, 128), group = GENERATE(1, 3, 4, 7);
  CAPTURE(dim, group);
  const CacheShape shape{.q_heads = 2 * group, .kv_heads = 2, .head_dim = dim};
  const evict::RKV p{.tokens = 24, .window = 5, .kernel = 3, .lambda = 0.5f, .threshold = 0.1f, .slack = 8};
  auto d = drive_noise(shape, p);
  index_t fired = 0;
  for (const index_t n : {7, 20, 1, 1, 1, 1, 1, 1, 1, 6, 3, 1}) {
    Rows want = with_new(d.held, d.seen, n);
    auto twin = d;
    twin.held = want, twin.seen += n;
    const bool due = static_cast<index_t>(want[0].size()) >= 32;
    if (due)
      for (index_t h = 0; h < 2; ++h) want[at(h)] = plain(twin, p, h);
    REQUIRE(d.step(n, Phase::decode) == Status::ok);
    REQUIRE(d.fired == due);
    REQUIRE(d.held == want);
    fired += due;
  }
  REQUIRE(fired == 2);
}

TEST_CASE("rkv: slack counts from the budget that a wrapper sets", "[evict][rkv]") {
  const evict::RKV p{.tokens = 100, .window = 4, .slack = 6};
  const CacheShape shape{.layers = 3, .q_heads = 2, .kv_heads = 2, .head_dim = 4};
  const auto lengths = [&](auto d, index_t layer) {
    d.layer = layer;
    Ints n;
    for (int i = 0; i < 40; ++i) {
      REQUIRE(d.step(1, Phase::decode) == Status::ok);
      n.push_back(static_cast<index_t>(d.held[0].size() + d.held[1].size()));
    }
    return n;
  };
  const auto saw = [](index_t budget, index_t slack) {
    Ints n;
    for (index_t i = 1, held = 0; i <= 40; ++i) {
      if (++held >= budget + slack) held = budget;
      n.push_back(2 * held);
    }
    return n;
  };
  REQUIRE(lengths(drive_noise(shape, p), 0) == saw(100, 6));
  REQUIRE(lengths(drive_noise(shape, budget::Uniform{p, 12}), 0) == saw(12, 6));
  REQUIRE(lengths(drive_noise(shape, budget::Ada{budget::Uniform{p, 12}, 0.2}), 0) == saw(12, 6));
  REQUIRE(lengths(drive_noise(shape, budget::SkipLayers{budget::Uniform{p, 12}, 1}), 0) == saw(1000, 6));
  REQUIRE(lengths(drive_noise(shape, budget::SkipLayers{budget::Uniform{p, 12}, 1}), 1) == saw(12, 6));
  // Half of 6, 7, ... tokens: the first that hold six more than half of what came are twelve.
  Ints half;
  for (index_t i = 1, held = 0; i <= 40; ++i) {
    if (++held >= i / 2 + 6) held = i / 2;
    half.push_back(2 * held);
  }
  REQUIRE(lengths(drive_noise(shape, budget::Ratio{p, 0.5}), 0) == half);
  // A pyramid has a budget for each layer: 12 in the mean, four of them protected, more below than above.
  const auto below = lengths(drive_noise(shape, budget::Pyramid{budget::Uniform{p, 12}, 4.0}), 0);
  const auto above = lengths(drive_noise(shape, budget::Pyramid{budget::Uniform{p, 12}, 4.0}), 2);
  REQUIRE(*std::max_element(below.begin(), below.end()) == 2 * (4 + 14 + 5));
  REQUIRE(*std::max_element(above.begin() + 20, above.end()) == 2 * (4 + 2 + 5));
}

TEST_CASE("rkv: the newest copies of what repeats stay", "[evict][rkv]") {
  auto d = drive({.head_dim = 2}, evict::RKV{.tokens = 4, .window = 1, .kernel = 1, .lambda = 0.0f, .slack = 4});
  d.key = [](index_t, index_t t, index_t c) { return t % 2 == c ? 1.0f : 0.0f; };  // two things, each said four times
  d.query = noise(6, 2.0f);
  REQUIRE(d.step(8, Phase::prefill_end) == Status::ok);
  REQUIRE(d.held[0] == Ints{4, 5, 6, 7});
}

TEST_CASE("rkv: a key with a bad number leaves first and is counted", "[evict][rkv]") {
  auto d = drive_noise({.head_dim = 4}, evict::RKV{.tokens = 7, .window = 2, .kernel = 1, .lambda = 0.0f, .slack = 1});
  d.key = [k = noise(5, 2.0f)](index_t h, index_t t, index_t c) { return t == 1 ? std::nanf("") : k(h, t, c); };
  REQUIRE(d.step(8, Phase::prefill_end) == Status::ok);
  REQUIRE(d.held[0] == Ints{0, 2, 3, 4, 5, 6, 7});
  REQUIRE(d.nan == 1);
}

TEST_CASE("rkv: tokens all alike keep the first", "[evict][rkv]") {
  auto d = drive({.head_dim = 4}, evict::RKV{.tokens = 6, .window = 2, .slack = 4});
  d.key = d.query = [](index_t, index_t, index_t) { return 1.0f; };
  REQUIRE(d.step(10, Phase::prefill_end) == Status::ok);
  REQUIRE(d.held[0].size() == 6);
  REQUIRE((d.held[0][4] == 8 && d.held[0][5] == 9));
}

TEST_CASE("rkv: keeps the promises of a pipeline", "[evict][rkv]") {
  check_promises(evict::RKV{.tokens = 24, .window = 4, .slack = 1}, evict::RKV{.tokens = 300, .window = 4, .slack = 1},
                 {.heads_alone = false, .always_fires = false});
}

TEST_CASE("rkv: without queries or keys a step that evicts is refused", "[evict][rkv]") {
  auto d = drive({}, evict::RKV{.tokens = 2, .window = 1, .slack = 1});
  d.key = noise(5, 2.0f);
  REQUIRE(d.step(2, Phase::decode) == Status::ok);  // within the slack
  REQUIRE(d.step(1, Phase::decode) == Status::missing_input);
  auto q = drive({}, evict::RKV{.tokens = 2, .window = 1, .slack = 1});
  q.query = noise(5, 2.0f), q.key = noise(6, 2.0f);
  REQUIRE(q.step(1, Phase::prefill_end) == Status::ok);
}

TEST_CASE("rkv: fields out of range are refused", "[evict][rkv]") {
  using R = evict::RKV;
  for (const R& bad : {R{.tokens = 8}, {.window = 0}, {.kernel = 4}, {.kernel = 0}, {.lambda = -0.1f}, {.lambda = 1.1f},
                       {.lambda = NAN}, {.threshold = 1.5f}, {.threshold = NAN}, {.slack = 0}})
    REQUIRE(bad.validate({}) == Status::invalid_argument);
  REQUIRE(R{.tokens = 2, .window = 1, .kernel = 1, .lambda = 0.0f, .threshold = -1.0f, .slack = 1}.validate({}) == Status::ok);
}
