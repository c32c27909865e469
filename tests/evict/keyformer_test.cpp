#include <algorithm>
#include <numeric>

#include <evict/properties.hpp>
#include <kvcondense/core/random.hpp>
#include <kvcondense/evict/keyformer.hpp>

using namespace kvcondense;
using namespace kvcondense::test;

namespace {

/// Adds one row of softmax((logit + noise) / tau) to `sum`.
void add_row(std::vector<double> z, double tau, double share, std::vector<double>& sum) {
  double all = 0;
  for (double& x : z) all += x = std::exp(x / tau);
  for (std::size_t j = 0; j < z.size(); ++j) sum[j] += share * z[j] / all;
}

/// The columns of the fixture's query head 0 with noise that the oracle wrote down.
struct Scripted final : QueryColumns<Cpu> {
  const FX1& fx;
  const nlohmann::json& oracle;
  const Ints* held = nullptr;
  index_t tokens = 0;  // rows of this step
  index_t seen = 0;
  mutable std::vector<float> temperatures;

  Scripted(const FX1& f, const nlohmann::json& o) : fx(f), oracle(o) {}
  index_t rows() const noexcept override { return tokens; }
  Status run(Context<Cpu>&, const prim::ColumnRequest& r) const noexcept override {
    if (!r.add || r.seed == 0 || r.rows != tokens) return Status::invalid_argument;
    std::vector<double> sum(held->size(), 0.0);
    for (index_t i = 0; i < r.rows; ++i) {
      const index_t row = seen - r.rows + i;
      const auto& gumbel = row < 8 ? oracle["gumbel_prompt"][at(row)] : oracle["steps"][at(row - 8)]["gumbel"];
      std::vector<double> z;
      for (std::size_t j = 0; j < held->size() && (*held)[j] <= row; ++j) {
        double dot = 0;
        for (index_t d = 0; d < 4; ++d) dot += fx.q(0, row, d) * fx.k(0, (*held)[j], d);
        z.push_back(0.5 * dot + gumbel[j].get<double>());
      }
      temperatures.push_back(r.temperature + r.warming * static_cast<float>(i));
      add_row(z, static_cast<double>(temperatures.back()), 1.0, sum);
    }
    for (std::size_t j = 0; j < sum.size(); ++j) r.out.data[j] += static_cast<float>(sum[j]);
    return Status::ok;
  }
};

}  // namespace

TEST_CASE("keyformer: sums, temperatures and kept sets equal the oracle", "[evict][keyformer]") {
  const auto oracle = eviction_oracle("keyformer");
  const auto& params = oracle["params"];
  const FX1 fx;
  const evict::Keyformer policy{.tokens = params["k"], .recent = params["w"], .tau_start = params["tau_init"],
                                .tau_end = params["tau_end"], .generation = params["T"]};
  auto d = drive({.head_dim = 4}, policy);
  Scripted columns(fx, oracle);
  d.columns = &columns;
  const auto step = [&](index_t n, Phase phase, const nlohmann::json& scores, const nlohmann::json& kept) {
    const Rows before = with_new(d.held, d.seen, n);
    columns.held = &before[0], columns.tokens = n, columns.seen = d.seen + n;
    REQUIRE(d.step(n, phase) == Status::ok);
    REQUIRE(d.held[0] == kept.get<Ints>());
    for (std::size_t j = 0; j < before[0].size(); ++j) {
      const auto at_kept = std::find(d.held[0].begin(), d.held[0].end(), before[0][j]);
      if (at_kept != d.held[0].end())
        REQUIRE(static_cast<double>(d.lane[0][0][static_cast<std::size_t>(at_kept - d.held[0].begin())]) ==
                Approx(scores[j].get<double>()).margin(2e-5));
    }
  };
  step(8, Phase::prefill_end, oracle["prompt_scores"], oracle["prompt_kept"]);
  for (const float t : columns.temperatures) REQUIRE(t == 1.0f);
  for (const auto& s : oracle["steps"]) {
    step(1, Phase::decode, s["scores"], s["kept"]);
    REQUIRE(columns.temperatures.back() == s["tau"].get<float>());
  }
}

TEST_CASE("keyformer: sums are those of the plain formula, whatever the chunks", "[evict][keyformer]") {
  const index_t dim = GENERATE(64, 80, 96, 128), group = GENERATE(1, 3, 4, 7);
  CAPTURE(dim, group);
  const CacheShape shape{.layers = 3, .q_heads = 2 * group, .kv_heads = 2, .head_dim = dim};
  const evict::Keyformer p{.tokens = 500, .recent = 4, .tau_start = 0.7f, .tau_end = 1.9f, .generation = 9, .seed = 77};
  const auto sums = [&](std::initializer_list<index_t> prompt, std::initializer_list<index_t> answer) {
    auto d = drive(shape, p);
    d.layer = 2, d.key = noise(5, 2.0f), d.query = noise(6, 4.0f);
    index_t left = static_cast<index_t>(prompt.size());
    for (const index_t n : prompt) REQUIRE(d.step(n, --left > 0 ? Phase::prefill_chunk : Phase::prefill_end) == Status::ok);
    for (const index_t n : answer) REQUIRE(d.step(n, Phase::decode) == Status::ok);
    return d;
  };
  const auto d = sums({23}, {1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1});
  const std::uint64_t seed = random_bits(77, 2) | 1;
  for (index_t h = 0; h < 2; ++h) {
    std::vector<double> want(35, 0.0);
    for (index_t row = 0; row < 35; ++row)
      for (index_t g = 0; g < group; ++g) {
        const auto q_head = static_cast<std::uint64_t>(h * group + g);
        const std::uint64_t key = random_bits(seed + q_head, static_cast<std::uint64_t>(row));
        std::vector<double> z;
        for (index_t j = 0; j <= row; ++j) {
          double dot = 0;
          for (index_t c = 0; c < dim; ++c)
            dot += static_cast<double>(d.query(h * group + g, row, c)) * static_cast<double>(d.key(h, j, c));
          const double u = static_cast<double>(random_uniform(key, static_cast<std::uint64_t>(j))) + 0x1p-25;
          z.push_back(dot / std::sqrt(static_cast<double>(dim)) - std::log(-std::log(u)));
        }
        const double m = static_cast<double>(std::clamp<index_t>(row - 22, 0, 9));
        add_row(z, 0.7 + 1.2 * m / 9, 1.0 / static_cast<double>(group), want);
      }
    for (std::size_t j = 0; j < 35; ++j) REQUIRE(static_cast<double>(d.lane[0][at(h)][j]) == Approx(want[j]).epsilon(1e-4));
  }
  const auto chunked = sums({1, 9, 7, 6}, {3, 1, 5, 3});  // accepted drafts come together
  for (index_t h = 0; h < 2; ++h)
    for (std::size_t j = 0; j < 35; ++j) REQUIRE(chunked.lane[0][at(h)][j] == Approx(d.lane[0][at(h)][j]).epsilon(1e-5));
}

TEST_CASE("keyformer: every knob has its say, the noise is the seed's and each layer's own", "[evict][keyformer]") {
  using K = evict::Keyformer;
  const auto kept = [](const K& p, index_t layer = 0) {
    auto d = drive({.layers = 2, .q_heads = 2, .kv_heads = 2, .head_dim = 6}, p);
    d.layer = layer, d.key = noise(5, 2.0f), d.query = noise(6, 4.0f);
    REQUIRE(d.step(60, Phase::prefill_end) == Status::ok);
    for (int i = 0; i < 40; ++i) REQUIRE(d.step(1, Phase::decode) == Status::ok);
    return d.lane;
  };
  const K usual{.tokens = 30, .recent = 8, .generation = 20, .seed = 3};
  const auto before = kept(usual);
  REQUIRE(kept(usual) == before);
  REQUIRE(kept(usual, 1) != before);
  K other = usual;
  for (K p : {usual, usual, usual, usual, usual, usual, usual}) {
    static int which = 0;
    switch (which++) {
      case 0: p.tokens = 31; break;
      case 1: p.recent = 9; break;
      case 2: p.tau_start = 0.5f; break;
      case 3: p.tau_end = 1.0f; break;
      case 4: p.generation = 21; break;
      case 5: p.seed = 4; break;
      default: p.seed = 0; break;
    }
    REQUIRE(kept(p) != before);
  }
  other.seed = 0;
  REQUIRE(kept(other, 1) == kept(other, 0));  // no noise: nothing to tell layers apart
}

TEST_CASE("keyformer: of tokens all alike the older stay", "[evict][keyformer]") {
  auto d = drive({.head_dim = 4}, evict::Keyformer{.tokens = 6, .recent = 2, .seed = 0});
  d.key = d.query = [](index_t, index_t, index_t) { return 0.0f; };
  REQUIRE(d.step(10, Phase::prefill_end) == Status::ok);
  REQUIRE(d.held[0] == Ints{0, 1, 2, 3, 8, 9});
  REQUIRE(d.step(1, Phase::decode) == Status::ok);
  REQUIRE(d.held[0] == Ints{0, 1, 2, 3, 9, 10});
}

TEST_CASE("keyformer: keeps the promises of a pipeline", "[evict][keyformer]") {
  check_promises(evict::Keyformer{.tokens = 24, .recent = 4, .seed = 0}, evict::Keyformer{.tokens = 300, .recent = 4, .seed = 0});
  // Every head draws noise of its own.
  check_promises(evict::Keyformer{.tokens = 24, .recent = 4}, evict::Keyformer{.tokens = 300, .recent = 4}, {.heads_alone = false});
}

TEST_CASE("keyformer: a query with a bad number leaves scores that are counted, not a crash", "[evict][keyformer]") {
  auto d = drive({.head_dim = 4}, evict::Keyformer{.tokens = 6, .recent = 2});
  d.key = noise(5, 2.0f);
  d.query = [q = noise(6, 2.0f)](index_t h, index_t t, index_t c) { return t == 4 ? std::nanf("") : q(h, t, c); };
  REQUIRE(d.step(10, Phase::prefill_end) == Status::ok);
  REQUIRE(d.held[0].size() == 6);
  REQUIRE(std::count_if(d.held[0].begin(), d.held[0].end(), [](index_t t) { return t < 5; }) <= 1);  // row 4 saw five
  REQUIRE(d.nan == 5);
}

TEST_CASE("keyformer: without queries a step is refused", "[evict][keyformer]") {
  auto d = drive({}, evict::Keyformer{});
  d.key = noise(5, 2.0f);
  REQUIRE(d.step(1, Phase::prefill_end) == Status::missing_input);
}

TEST_CASE("keyformer: fields out of range are refused", "[evict][keyformer]") {
  using K = evict::Keyformer;
  for (const K& bad : {K{.tokens = 154}, {.recent = -1}, {.tau_start = 0.0f}, {.tau_start = NAN}, {.tau_end = -1.0f}, {.tau_end = 2000.0f},
                       {.generation = 0}})
    REQUIRE(bad.validate({}) == Status::invalid_argument);
  REQUIRE(K{.tokens = 1, .recent = 0, .generation = 1, .seed = 0}.validate({}) == Status::ok);
}
