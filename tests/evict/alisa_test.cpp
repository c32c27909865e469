#include <algorithm>
#include <cmath>
#include <numeric>

#include <evict/properties.hpp>
#include <kvcondense/budget/ada.hpp>
#include <kvcondense/budget/head_table.hpp>
#include <kvcondense/budget/uniform.hpp>
#include <kvcondense/evict/alisa.hpp>
#include <kvcondense/evict/every.hpp>
#include <support/cache_rig.hpp>
#include <support/naive_cache.hpp>

using namespace kvcondense;
using namespace kvcondense::test;

namespace {

/// What the newest `rows` queries of all heads give each token that is held, in double.
template <class D>
std::vector<double> sums(const D& d, index_t rows) {
  const Ints& tokens = d.held[0];
  const index_t dim = d.shape.head_dim;
  const double scale = d.shape.softmax_scale != 0.0f ? static_cast<double>(d.shape.softmax_scale)
                                                     : 1.0 / std::sqrt(static_cast<double>(dim));
  std::vector<double> sum(tokens.size(), 0.0);
  for (index_t row = std::max<index_t>(0, d.seen - rows); row < d.seen; ++row)
    for (index_t q = 0; q < d.shape.q_heads; ++q) {
      std::vector<double> e;
      double all = 0;
      for (const index_t t : tokens) {
        if (t > row) break;
        double z = 0;
        for (index_t c = 0; c < dim; ++c)
          z += static_cast<double>(d.query(q, row, c)) * static_cast<double>(d.key(q / d.shape.group(), t, c));
        all += e.emplace_back(std::exp(z * scale));
      }
      for (std::size_t j = 0; j < e.size(); ++j) sum[j] += e[j] / all;
    }
  return sum;
}

/// The newest k tokens and of the others the k with the largest sums, smaller ones first.
Ints plain(const Ints& tokens, const std::vector<double>& sum, index_t k) {
  const auto n = static_cast<index_t>(tokens.size());
  Ints order(at(std::max<index_t>(0, n - k))), kept;
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](index_t a, index_t b) { return sum[at(a)] > sum[at(b)]; });
  if (static_cast<index_t>(order.size()) > k) order.resize(at(k));
  for (index_t j = std::max<index_t>(0, n - k); j < n; ++j) order.push_back(j);
  std::sort(order.begin(), order.end());
  for (const index_t j : order) kept.push_back(tokens[at(j)]);
  return kept;
}

index_t near(double ratio, index_t seen) {
  return std::max<index_t>(1, static_cast<index_t>(std::nearbyint(ratio * static_cast<double>(seen) / 2)));
}

}  // namespace

TEST_CASE("alisa: sums, chosen tokens and what attention makes of them equal the oracle", "[evict][alisa]") {
  const auto oracle = eviction_oracle("alisa_swa");
  const FX1 fx;
  CacheShape shape = fx.shape;
  shape.softmax_scale = 0.5f;
  const evict::Alisa policy{.ratio = oracle["params"]["caching_ratio"]};
  auto d = drive(shape, policy);
  d.key = [&](index_t h, index_t t, index_t c) { return static_cast<float>(fx.k(h, t, c)); };
  d.query = [&](index_t h, index_t t, index_t c) { return static_cast<float>(fx.q(h, t, c)); };
  const index_t n = oracle["params"]["n"], k = oracle["params"]["k"];
  REQUIRE(policy.pipeline().protect.near.of(n) == k);
  auto twin = d;
  twin.held = with_new(d.held, 0, n), twin.seen = n;
  const auto sum = sums(twin, k);
  for (std::size_t j = 0; j < sum.size(); ++j) REQUIRE(sum[j] == Approx(oracle["local_attention_sum"][j].get<double>()));

  REQUIRE(d.step(n, Phase::prefill_end) == Status::ok);
  for (const Ints& head : d.held) REQUIRE(head == oracle["selected"].get<Ints>());
  const auto p = fx.probabilities(0, n, with_new(d.held, n, 1)[0]);
  for (std::size_t j = 0; j < p.size(); ++j) REQUIRE(p[j] == Approx(oracle["attn_query8_head0"][j].get<double>()));
}

TEST_CASE("alisa: keeps what plain sums keep, all along an answer", "[evict][alisa]") {
  const index_t dim = GENERATE(64, 80, 96, 128), group = GENERATE(1, 3, 4, 7);
  CAPTURE(dim, group);
  const evict::Alisa p{.ratio = 0.4, .history = 7};
  auto d = drive_noise({.q_heads = 2 * group, .kv_heads = 2, .head_dim = dim}, p);
  for (const index_t n : {40, 20, 1, 1, 1, 5, 1, 1, 1, 1, 1, 1}) {
    const Phase phase = d.seen == 0 ? Phase::prefill_chunk : d.seen == 40 ? Phase::prefill_end : Phase::decode;
    Rows want = with_new(d.held, d.seen, n);
    auto twin = d;
    twin.held = want, twin.seen += n;
    const index_t k = near(p.ratio, twin.seen);
    if (phase != Phase::prefill_chunk) want.assign(2, plain(want[0], sums(twin, std::min(k, p.history)), k));
    REQUIRE(d.step(n, phase) == Status::ok);
    REQUIRE(d.held == want);
  }
}

TEST_CASE("alisa: choosing at every step does not shrink what stays below its part of all tokens", "[evict][alisa]") {
  auto d = drive_noise({.head_dim = 4}, evict::Alisa{.ratio = 0.2, .history = 3});
  REQUIRE(d.step(100, Phase::prefill_end) == Status::ok);
  REQUIRE(d.held[0].size() == 20);
  for (index_t seen = 101; seen <= 300; ++seen) {
    REQUIRE(d.step(1, Phase::decode) == Status::ok);
    // One token comes where two places do: the other one fills with the next token.
    REQUIRE(static_cast<index_t>(d.held[0].size()) == 2 * near(0.2, seen) - (near(0.2, seen) > near(0.2, seen - 1)));
    REQUIRE(d.held[0].back() == seen - 1);
  }
}

TEST_CASE("alisa: the newest token is never lost, however few there are", "[evict][alisa]") {
  auto d = drive_noise({.head_dim = 4}, evict::Alisa{.ratio = 0.01});
  REQUIRE(d.step(1, Phase::prefill_end) == Status::ok);
  REQUIRE(d.held[0] == Ints{0});
  for (index_t t = 1; t < 9; ++t) {
    REQUIRE(d.step(1, Phase::decode) == Status::ok);
    REQUIRE(d.held[0].size() == 2);
    REQUIRE(d.held[0].back() == t);
  }
}

TEST_CASE("alisa: every knob has its say, and `every` makes it act less often", "[evict][alisa]") {
  const auto run = [](const auto& p) {
    auto d = drive_noise({.head_dim = 6}, p);
    REQUIRE(d.step(60, Phase::prefill_end) == Status::ok);
    const Ints prompt = d.held[0];
    for (int i = 0; i < 9; ++i) REQUIRE(d.step(1, Phase::decode) == Status::ok);
    return std::pair{prompt, d.held[0]};
  };
  const auto usual = run(evict::Alisa{.ratio = 0.4, .history = 8});
  REQUIRE(run(evict::Alisa{.ratio = 0.5, .history = 8}).first.size() == 30);
  REQUIRE(run(evict::Alisa{.ratio = 0.4, .history = 2}).first != usual.first);
  const auto seldom = run(evict::Every{evict::Alisa{.ratio = 0.4, .history = 8}, 5});
  REQUIRE(seldom.first == usual.first);
  REQUIRE(seldom.second != usual.second);
  REQUIRE(seldom.second.size() == 2 * 13 + 4);  // as of 65 tokens, and four more
}

TEST_CASE("alisa: no more rows are summed than tokens are near", "[evict][alisa]") {
  auto few = drive_noise({.head_dim = 6}, evict::Alisa{.ratio = 0.2, .history = 6});
  auto many = drive_noise({.head_dim = 6}, evict::Alisa{.ratio = 0.2, .history = 500});
  REQUIRE(few.step(60, Phase::prefill_end) == Status::ok);
  REQUIRE(many.step(60, Phase::prefill_end) == Status::ok);
  REQUIRE(few.held == many.held);
}

TEST_CASE("alisa: of equal sums the older tokens stay, and numbers that are none leave first", "[evict][alisa]") {
  auto d = drive({.head_dim = 4}, evict::Alisa{.ratio = 0.5});
  d.key = d.query = [](index_t, index_t, index_t) { return 0.0f; };
  REQUIRE(d.step(12, Phase::prefill_end) == Status::ok);
  REQUIRE(d.held[0] == Ints{0, 1, 2, 9, 10, 11});
  auto bad = drive({.head_dim = 4}, evict::Alisa{.ratio = 0.5});
  bad.key = d.key;
  bad.query = [](index_t, index_t, index_t) { return std::nanf(""); };
  REQUIRE(bad.step(12, Phase::prefill_end) == Status::ok);
  REQUIRE(bad.held[0] == Ints{0, 1, 2, 9, 10, 11});
  REQUIRE(bad.nan == 9);
}

TEST_CASE("alisa: heads of different lengths have no common set", "[evict][alisa]") {
  auto d = drive_noise({.q_heads = 2, .kv_heads = 2, .head_dim = 4}, evict::Alisa{});
  d.held[0] = {0, 1, 2, 3, 4, 5, 6, 7}, d.seen = 8;
  REQUIRE(d.step(1, Phase::decode) == Status::not_supported);
  const float shares[] = {0.5f, 0.5f};
  const CacheShape shape{.layers = 1, .q_heads = 2, .kv_heads = 2};
  REQUIRE(budget::HeadTableBudget{evict::Alisa{}, 1.0, HeadTable{shares, 1, 2}}.validate(shape) == Status::incompatible);
  REQUIRE(budget::Ada{evict::Alisa{}}.validate(shape) == Status::incompatible);
}

TEST_CASE("alisa: without queries a step that chooses is refused", "[evict][alisa]") {
  auto d = drive({}, evict::Alisa{});
  d.key = noise(5, 2.0f);
  REQUIRE(d.step(9, Phase::prefill_end) == Status::missing_input);
}

TEST_CASE("alisa: keeps the promises of a pipeline", "[evict][alisa]") {
  check_promises(evict::Alisa{.ratio = 0.08, .history = 5}, evict::Alisa{.ratio = 1.0, .history = 5}, {.heads_alone = false});
  check_promises(budget::Uniform{evict::Alisa{.ratio = 0.05}, 24}, budget::Uniform{evict::Alisa{.ratio = 0.05}, 300},
                 {.heads_alone = false});
}

TEST_CASE("alisa: a cache really holds a part of a long answer, the same in all heads", "[evict][alisa]") {
  const CacheShape shape{.layers = 1, .q_heads = 4, .kv_heads = 2, .head_dim = 16, .dtype = DType::f16, .page_slots = 16};
  CacheRig r(shape, recipe(evict::Alisa{.ratio = 0.25, .history = 16}), 512, 256);
  std::mt19937 random(3);
  std::vector<float> out(static_cast<std::size_t>(4 * 256 * 16));
  for (index_t step = 0; step < 257; ++step) {
    const Tokens t(shape, step == 0 ? 256 : 1, random);
    REQUIRE(r.cache.forward(r.ctx, 0, t.queries(shape), t.keys(shape), t.values(shape), dense_view(out.data(), 4, t.n, 16)) ==
            Status::ok);
  }
  REQUIRE(r.cache.slots(0, 0) == 128);
  for (index_t s = 0; s < 128; ++s) REQUIRE(r.cache.token(0, 0, s) == r.cache.token(0, 1, s));
  REQUIRE(r.cache.next_position() == 512);
  const Report report = r.cache.report();
  REQUIRE(report.exact_bytes < 2 * 2 * (128 + 4 * 16) * 16 * 2 * 2);  // keys and values of two heads, some room
  REQUIRE(report.bytes() == r.memory.live_bytes);
  REQUIRE(r.cache.capabilities().needs == Inputs(Input::queries));
}

TEST_CASE("alisa: fields out of range are refused", "[evict][alisa]") {
  using A = evict::Alisa;
  for (const A& bad : {A{.ratio = 0.0}, {.ratio = -0.1}, {.ratio = 1.1}, {.ratio = std::nan("")}, {.history = 0}})
    REQUIRE(bad.validate({}) == Status::invalid_argument);
  REQUIRE(A{.ratio = 1.0, .history = 1}.validate({}) == Status::ok);
}
