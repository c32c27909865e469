#include <algorithm>
#include <numeric>

#include <evict/properties.hpp>
#include <kvcondense/budget/ada.hpp>
#include <kvcondense/core/random.hpp>
#include <kvcondense/evict/chunkkv.hpp>
#include <kvcondense/evict/critical.hpp>
#include <kvcondense/evict/expected_attention.hpp>
#include <kvcondense/evict/h2o.hpp>
#include <kvcondense/evict/knorm.hpp>
#include <kvcondense/evict/observed_attention.hpp>
#include <kvcondense/evict/rkv.hpp>
#include <kvcondense/evict/snapkv.hpp>
#include <kvcondense/evict/tova.hpp>

using namespace kvcondense;
using namespace kvcondense::test;
using evict::Critical;

namespace {

/// One matrix for each of some layers, [hidden, q_heads * value_dim], made up or the fixture's.
struct Projection {
  std::vector<std::vector<float>> numbers;
  std::vector<const float*> rows;
  index_t hidden, columns;

  Projection(const CacheShape& s, index_t h, std::uint64_t seed) : hidden(h), columns(s.q_heads * s.values()) {
    for (index_t l = 0; l < s.layers; ++l) {
      auto& m = numbers.emplace_back();
      for (index_t i = 0; i < hidden * columns; ++i)
        m.push_back(random_uniform(seed + static_cast<std::uint64_t>(l), static_cast<std::uint64_t>(i)) - 0.5f);
    }
    for (const auto& m : numbers) rows.push_back(m.data());
  }
  explicit Projection(const FX1& fx) : hidden(4), columns(16) {
    auto& m = numbers.emplace_back();  // the fixture has rows of head channels, models have them as columns
    for (std::size_t o = 0; o < 4; ++o)
      for (std::size_t h = 0; h < 4; ++h)
        for (std::size_t c = 0; c < 4; ++c) m.push_back(fx.data["WO"][h][c][o].get<float>());
    rows.push_back(m.data());
  }
  LayerMatrices view() const { return {rows.data(), static_cast<index_t>(rows.size()), hidden, columns}; }
};

/// The two stages for one head, in double: of n slots the last `window` stay, `budget` in all.
Ints plain(const CacheShape& s, index_t h, index_t n, index_t window, index_t budget, double first, const LayerMatrices& w,
           index_t layer, const std::vector<double>& score, const std::function<float(index_t, index_t, index_t)>& value) {
  const index_t dim = s.values(), past = n - window;
  std::vector<double> weighed;
  for (index_t j = 0; j < past; ++j) {
    double nu = 0;
    for (index_t q = h * s.group(); q < (h + 1) * s.group(); ++q)
      for (index_t o = 0; o < w.rows; ++o) {
        double x = 0;
        for (index_t c = 0; c < dim; ++c)
          x += static_cast<double>(w(layer)[o * w.columns + q * dim + c]) * static_cast<double>(value(h, j, c));
        nu += std::abs(x) / static_cast<double>(s.group());
      }
    weighed.push_back((score[at(j)] + 1e-4) * nu);
  }
  Ints order(at(past));
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](index_t a, index_t b) { return score[at(a)] > score[at(b)]; });
  const auto one = std::max<index_t>(0, static_cast<index_t>(std::floor(first * static_cast<double>(budget) + 1e-6)) - window);
  std::sort(order.begin() + one, order.end());
  std::stable_sort(order.begin() + one, order.end(), [&](index_t a, index_t b) { return weighed[at(a)] > weighed[at(b)]; });
  order.resize(at(budget - window));
  for (index_t j = past; j < n; ++j) order.push_back(j);
  std::sort(order.begin(), order.end());
  return order;
}

}  // namespace

TEST_CASE("critical: weights and kept sets equal the oracle", "[evict][critical]") {
  const auto oracle = eviction_oracle("criticalkv");
  const FX1 fx;
  const Projection projection(fx);
  const auto budget = oracle["params"]["budget"].get<index_t>();
  auto d = drive(fx.shape, Critical{evict::ObservedAttention{.keep = static_cast<double>(budget) / 8, .recent = 0}, projection.view(),
                                    oracle["params"]["first_stage_ratio"].get<double>()});
  d.value = [&](index_t h, index_t t, index_t c) { return static_cast<float>(fx.v(h, t, c)); };
  REQUIRE(d.step(8, Phase::prefill_end, fx.mass(0, 8, with_new(d.held, 0, 8))) == Status::ok);
  std::vector<float> values, nu(16);
  for (index_t g = 0; g < 2; ++g)
    for (index_t t = 0; t < 8; ++t)
      for (index_t c = 0; c < 4; ++c) values.push_back(d.value(g, t, c));
  const DenseRows rows(dense_view<const float>(values.data(), 2, 8, 4));
  const index_t offset[] = {0, 8, 16};
  Context<Cpu> ctx;
  REQUIRE(prim::ProjectedNorm<Cpu>::run(ctx, rows, nullptr, fx.shape, projection.rows[0], 4, {nu.data(), offset, 2}) == Status::ok);
  for (index_t g = 0; g < 2; ++g) {
    REQUIRE(d.held[at(g)] == oracle["heads"][at(g)]["kept"].get<Ints>());
    for (index_t t = 0; t < 8; ++t)
      REQUIRE(nu[at(8 * g + t)] == Approx(oracle["heads"][at(g)]["wov_l1"][at(t)].get<double>()).margin(2e-5));
  }
}

TEST_CASE("critical: keeps what the plain stages keep, over heads of their own budgets too", "[evict][critical]") {
  const index_t dim = GENERATE(64, 80, 96, 128), group = GENERATE(1, 3, 7);
  const int tenths = GENERATE(0, 3, 5, 10);
  if ((dim / 16 + group + tenths) % 3 != 0) return;  // each value of one with some of the others
  const double first = tenths / 10.0;
  CAPTURE(dim, group, first);
  const CacheShape shape{.layers = 2, .q_heads = 2 * group, .kv_heads = 2, .head_dim = 16, .value_dim = dim};
  const Projection projection(shape, 37, 5);
  const evict::SnapKV snap{.tokens = 20, .window = 4, .kernel = 1};
  const PerToken mass = [](index_t h, index_t t) { return number(9, h, t) * static_cast<double>(1 + h); };
  const auto run = [&](const auto& policy) {
    auto d = drive(shape, policy);
    d.layer = 1, d.value = remembered(noise(3), 2, 70, dim);
    REQUIRE(d.step(70, Phase::prefill_end, mass) == Status::ok);
    for (index_t h = 0; h < 2; ++h) {
      std::vector<double> score;
      for (index_t t = 0; t < 66; ++t) score.push_back(mass(h, t) / static_cast<double>(group));
      const auto kept = static_cast<index_t>(d.held[at(h)].size());
      REQUIRE(d.held[at(h)] == plain(shape, h, 70, 4, kept, first, projection.view(), 1, score, d.value));
    }
    return d.held[1].size();
  };
  REQUIRE(run(Critical{snap, projection.view(), first}) == 20);
  // CriticalAdaKV: budgets by attention, then two stages in each head.
  const budget::Ada ada{snap, 0.2, evict::HeadShare::safeguard};
  auto alone = drive(shape, ada);
  REQUIRE(alone.step(70, Phase::prefill_end, mass) == Status::ok);
  const std::size_t shared = run(Critical{ada, projection.view(), first});
  REQUIRE(shared > 20);
  REQUIRE(shared == alone.held[1].size());
  REQUIRE(run(budget::Ada{Critical{snap, projection.view(), first}, 0.2, evict::HeadShare::safeguard}) == shared);
}

TEST_CASE("critical: every layer has its own projection, epsilon its say", "[evict][critical]") {
  const CacheShape shape{.layers = 2, .q_heads = 2, .kv_heads = 2, .head_dim = 16};
  const Projection projection(shape, 9, 5);
  const auto kept = [&](index_t layer, float epsilon) {
    auto d = drive(shape, Critical{evict::SnapKV{.tokens = 20, .window = 4, .kernel = 1}, projection.view(), 0.0, epsilon});
    d.layer = layer, d.value = noise(3);
    REQUIRE(d.step(70, Phase::prefill_end, [](index_t h, index_t t) { return number(9, h, t); }) == Status::ok);
    return d.held;
  };
  REQUIRE(kept(0, 1e-4f) != kept(1, 1e-4f));
  REQUIRE(kept(0, 1e-4f) != kept(0, 1.0f));
}

TEST_CASE("critical: an attention that is no number leaves first and is counted", "[evict][critical]") {
  const CacheShape shape{.head_dim = 4};
  const Projection projection(shape, 5, 5);
  auto d = drive(shape, Critical{evict::H2O{.heavy = 5, .recent = 0}, projection.view()});
  d.value = noise(3);
  REQUIRE(d.step(8, Phase::prefill_end, [](index_t h, index_t t) { return t == 6 ? std::nan("") : number(9, h, t); }) == Status::ok);
  REQUIRE(d.held[0].size() == 5);
  REQUIRE(!std::binary_search(d.held[0].begin(), d.held[0].end(), 6));
  REQUIRE(d.nan == 1);
}

TEST_CASE("critical: keeps the promises of a pipeline", "[evict][critical]") {
  // Promises are checked on one to four heads, each with one to sixteen query heads, of three channels, in four layers.
  for (std::uint32_t seed = 0; seed < 8; ++seed)
    for (const index_t group : {1, 7}) {
      const CacheShape shape{.layers = 4, .q_heads = (1 + static_cast<index_t>(seed % 4)) * group,
                             .kv_heads = 1 + static_cast<index_t>(seed % 4), .head_dim = 3};
      const Projection projection(shape, 11, 5);
      check_promises_once(Critical{evict::SnapKV{.tokens = 24, .window = 4}, projection.view()},
                          Critical{evict::SnapKV{.tokens = 300, .window = 4}, projection.view()}, {.heads_alone = false}, seed, group);
    }
}

TEST_CASE("critical: without values a step that evicts is refused", "[evict][critical]") {
  const Projection projection({}, 3, 5);
  auto d = drive({}, Critical{evict::H2O{.heavy = 2, .recent = 0}, projection.view()});
  REQUIRE(d.step(3, Phase::prefill_end, [](index_t, index_t) { return 0.5; }) == Status::missing_input);
}

TEST_CASE("critical: without projections that fit, or over the wrong policy, it is refused", "[evict][critical]") {
  const CacheShape shape{.layers = 2, .q_heads = 4, .kv_heads = 2, .head_dim = 8};
  const Projection projection(shape, 5, 5);
  const LayerMatrices output = projection.view();
  REQUIRE(std::string(Critical{evict::H2O{}}.missing()) == "output");
  REQUIRE(Critical{evict::H2O{}, output}.missing() == nullptr);
  REQUIRE(Critical{evict::H2O{}}.validate(shape) == Status::missing_input);
  REQUIRE(Critical{evict::H2O{}, output}.validate(shape) == Status::ok);
  CacheShape other = shape;
  other.layers = 3;
  REQUIRE(Critical{evict::H2O{}, output}.validate(other) == Status::shape_mismatch);
  other = shape, other.value_dim = 4;
  LayerMatrices none = output;
  none.rows = 0;
  REQUIRE(Critical{evict::H2O{}, none}.validate(shape) == Status::shape_mismatch);
  REQUIRE(Critical{evict::H2O{}, output}.validate(other) == Status::shape_mismatch);
  for (const double first : {-0.1, 1.1, std::nan("")})
    REQUIRE(Critical{evict::H2O{}, output, first}.validate(shape) == Status::invalid_argument);
  for (const float epsilon : {-1.0f, 2.0f, std::nanf("")})
    REQUIRE(Critical{evict::H2O{}, output, 0.5, epsilon}.validate(shape) == Status::invalid_argument);
  REQUIRE(Critical{evict::Knorm{}, output}.validate(shape) == Status::incompatible);
  REQUIRE(Critical{evict::RKV{}, output}.validate(shape) == Status::incompatible);
  REQUIRE(Critical{evict::Tova{}, output}.validate(shape) == Status::incompatible);
  REQUIRE(Critical{evict::ExpectedAttention{}, output}.validate(shape) == Status::incompatible);  // weighs values itself
  REQUIRE(Critical{evict::ExpectedAttention{.value_norm = false}, output}.validate(shape) == Status::ok);
  REQUIRE(Critical{evict::ChunkKV{}, output}.validate(shape) == Status::incompatible);
  REQUIRE(Critical{Critical{evict::H2O{}, output}, output}.validate(shape) == Status::incompatible);
}
