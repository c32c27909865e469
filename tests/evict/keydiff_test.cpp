#include <algorithm>
#include <numeric>
#include <tuple>

#include <evict/properties.hpp>
#include <kvcondense/core/random.hpp>
#include <kvcondense/evict/keydiff.hpp>

using namespace kvcondense;
using namespace kvcondense::test;

namespace {

/// Minus the cosines of one head's tokens to the mean of their directions, in double.
std::vector<double> scores(const Ints& tokens, index_t dim, const std::function<double(index_t, index_t)>& key) {
  const auto length = [&](index_t t) {
    double square = 0;
    for (index_t d = 0; d < dim; ++d) square += key(t, d) * key(t, d);
    return std::sqrt(square);
  };
  std::vector<double> mean(at(dim)), out;
  double square = 0;
  for (index_t d = 0; d < dim; ++d) {
    for (const index_t t : tokens) mean[at(d)] += key(t, d) / length(t);
    square += mean[at(d)] * mean[at(d)];
  }
  for (const index_t t : tokens) {
    double dot = 0;
    for (index_t d = 0; d < dim; ++d) dot += key(t, d) * mean[at(d)];
    out.push_back(-dot / length(t) / std::sqrt(square));
  }
  return out;
}

/// The best by score, the first of equals, and the newest `recent`; ascending.
Ints best(const Ints& tokens, const std::vector<double>& score, index_t budget, index_t recent) {
  const auto n = static_cast<index_t>(tokens.size());
  if (n <= budget) return tokens;
  Ints order(at(n - recent));
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](index_t a, index_t b) { return score[at(a)] > score[at(b)]; });
  order.resize(at(budget - recent));
  for (index_t i = n - recent; i < n; ++i) order.push_back(i);
  std::sort(order.begin(), order.end());
  Ints kept;
  for (const index_t slot : order) kept.push_back(tokens[at(slot)]);
  return kept;
}

}  // namespace

TEST_CASE("keydiff: scores and kept sets equal the oracle", "[evict][keydiff]") {
  const auto oracle = eviction_oracle("keydiff");
  const FX1 fx;
  const evict::KeyDiff policy{.tokens = oracle["params"]["n_kept"], .recent = 0};
  auto d = drive(fx.shape, policy);
  d.key = [&](index_t h, index_t t, index_t c) { return static_cast<float>(fx.k(h, t, c)); };
  REQUIRE(d.step(8, Phase::prefill_end) == Status::ok);

  std::vector<float> keys, out(16);
  for (index_t g = 0; g < 2; ++g)
    for (index_t t = 0; t < 8; ++t)
      for (index_t c = 0; c < 4; ++c) keys.push_back(static_cast<float>(fx.k(g, t, c)));
  const DenseRows dense(dense_view<const float>(keys.data(), 2, 8, 4));
  const index_t offset[] = {0, 8, 16};
  StepView<Cpu> view;
  view.shape = fx.shape, view.offset = offset, view.keys = &dense;
  Context<Cpu> ctx;
  Scratch none;
  REQUIRE(policy.pipeline().source.score(ctx, view, {}, {out.data(), offset, 2}, none) == Status::ok);
  for (index_t g = 0; g < 2; ++g) {
    REQUIRE(d.held[at(g)] == oracle["heads"][at(g)]["kept"].get<Ints>());
    REQUIRE(d.held[at(g)] == oracle["heads"][at(g)]["kept_pairwise"].get<Ints>());
    for (index_t t = 0; t < 8; ++t)
      REQUIRE(out[at(8 * g + t)] == Approx(oracle["heads"][at(g)]["neg_cos_to_anchor"][at(t)].get<double>()).margin(2e-5));
  }
}

TEST_CASE("keydiff: chunks of a prompt and every step keep what the plain formula keeps", "[evict][keydiff]") {
  const auto both = GENERATE(table<index_t, index_t>({{64, 1}, {80, 3}, {80, 4}, {128, 4}, {128, 7}}));
  const index_t dim = std::get<0>(both), group = std::get<1>(both);
  CAPTURE(dim, group);
  const CacheShape shape{.q_heads = 2 * group, .kv_heads = 2, .head_dim = dim};
  auto d = drive(shape, evict::KeyDiff{.tokens = 20, .recent = 3});
  const auto keys = [](index_t h, index_t t, index_t c) {
    return random_uniform(17, static_cast<std::uint64_t>((h * 1000 + t) * 256 + c)) - 0.4f;
  };
  d.key = remembered(keys, 2, 90, dim);
  Rows want(2);
  const auto step = [&](index_t n, Phase phase) {
    want = with_new(want, d.seen, n);
    for (index_t h = 0; h < 2; ++h)
      want[at(h)] = best(want[at(h)], scores(want[at(h)], dim, [&](index_t t, index_t c) { return d.key(h, t, c); }), 20, 3);
    REQUIRE(d.step(n, phase) == Status::ok);
    REQUIRE(d.held == want);
  };
  step(1, Phase::prefill_chunk);
  step(16, Phase::prefill_chunk);
  for (int i = 0; i < 3; ++i) step(16, Phase::prefill_chunk);
  step(9, Phase::prefill_end);
  for (int i = 0; i < 12; ++i) step(1, Phase::decode);
}

TEST_CASE("keydiff: a key with a bad number leaves first and is counted", "[evict][keydiff]") {
  auto d = drive({.head_dim = 2}, evict::KeyDiff{.tokens = 3, .recent = 0});
  d.key = [](index_t, index_t t, index_t c) { return t == 1 ? std::nanf("") : c == 0 ? 1.0f : static_cast<float>(t); };
  REQUIRE(d.step(4, Phase::prefill_end) == Status::ok);
  REQUIRE(d.held[0] == Ints{0, 2, 3});
  REQUIRE(d.nan == 1);
}

TEST_CASE("keydiff: keys all alike, or evenly spread, keep the oldest", "[evict][keydiff]") {
  const bool spread = GENERATE(true, false);
  auto d = drive({.head_dim = 2}, evict::KeyDiff{.tokens = 4, .recent = 1});
  d.key = [&](index_t, index_t t, index_t c) { return !spread ? 1.0f : c != t % 4 / 2 ? 0.0f : t % 2 == 0 ? 1.0f : -1.0f; };
  REQUIRE(d.step(8, Phase::prefill_end) == Status::ok);
  REQUIRE(d.held[0] == Ints{0, 1, 2, 7});
}

TEST_CASE("keydiff: the anchor decides between short and long keys", "[evict][keydiff]") {
  using prim::Anchor;
  const Anchor anchor = GENERATE(Anchor::mean_direction, Anchor::mean_row);
  auto d = drive({.head_dim = 2}, evict::KeyDiff{.tokens = 1, .recent = 0, .anchor = anchor});
  const float keys[3][2] = {{1, 0}, {1, 0}, {0, 9}};  // two short ones, a long one across
  d.key = [&](index_t, index_t t, index_t c) { return keys[t][c]; };
  REQUIRE(d.step(3, Phase::prefill_end) == Status::ok);
  REQUIRE(d.held[0] == (anchor == Anchor::mean_direction ? Ints{2} : Ints{0}));
}

TEST_CASE("keydiff: one token and no token are no trouble", "[evict][keydiff]") {
  auto d = drive({.q_heads = 2, .kv_heads = 2, .head_dim = 3}, evict::KeyDiff{.tokens = 1, .recent = 0});
  d.key = [](index_t, index_t, index_t) { return 1.0f; };
  d.held[1] = {5, 6};  // the other head is empty
  REQUIRE(d.step(0, Phase::decode) == Status::ok);
  REQUIRE(d.held == Rows{{}, {5}});
  REQUIRE(d.step(1, Phase::decode) == Status::ok);
  REQUIRE(d.held == Rows{{0}, {5}});
}

TEST_CASE("keydiff: keeps the promises of a pipeline", "[evict][keydiff]") {
  check_promises(evict::KeyDiff{.tokens = 24, .recent = 4}, evict::KeyDiff{.tokens = 300, .recent = 4});
  check_promises(evict::KeyDiff{.tokens = 24, .recent = 0}, evict::KeyDiff{.tokens = 300, .recent = 0},
                 {.keeps_newest = false});
}

TEST_CASE("keydiff: without keys a step that evicts is refused", "[evict][keydiff]") {
  auto d = drive({}, evict::KeyDiff{.tokens = 2, .recent = 0});
  REQUIRE(d.step(2, Phase::prefill_end) == Status::ok);  // nothing to score
  REQUIRE(d.step(1, Phase::decode) == Status::missing_input);
}

TEST_CASE("keydiff: budgets without room are refused", "[evict][keydiff]") {
  REQUIRE(evict::KeyDiff{.tokens = 4, .recent = 4}.validate({}) == Status::invalid_argument);
  REQUIRE(evict::KeyDiff{.tokens = 4, .recent = -1}.validate({}) == Status::invalid_argument);
  REQUIRE(evict::KeyDiff{.tokens = 1, .recent = 0}.validate({}) == Status::ok);
}
