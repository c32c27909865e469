#include <catch2/catch.hpp>

#include <evict/driver.hpp>
#include <kvcondense/evict/h2o.hpp>

using namespace kvcondense;
using namespace kvcondense::test;

namespace {

void require_scores(const std::vector<float>& got, const std::vector<double>& want) {
  REQUIRE(got.size() == want.size());
  for (std::size_t i = 0; i < got.size(); ++i) REQUIRE(got[i] == Approx(want[i]).margin(2e-5));
}

/// FX1 as numbers of an append: tokens [first, first + n).
struct Chunk {
  std::vector<float> q, k, v;
  index_t n;
  Chunk(const FX1& fx, index_t first, index_t count) : n(count) {
    for (index_t h = 0; h < 4; ++h)
      for (index_t t = first; t < first + n; ++t)
        for (index_t d = 0; d < 4; ++d) {
          q.push_back(static_cast<float>(fx.q(h, t, d)));
          if (h >= 2) continue;
          k.push_back(static_cast<float>(fx.k(h, t, d)));
          v.push_back(static_cast<float>(fx.v(h, t, d)));
        }
  }
  auto queries() const { return dense_view(q.data(), 4, n, 4); }
  auto keys() const { return dense_view(k.data(), 2, n, 4); }
  auto values() const { return dense_view(v.data(), 2, n, 4); }
};

}  // namespace

TEST_CASE("h2o: scores and kept sets equal the oracle through prefill and decode", "[evict][h2o]") {
  const auto oracle = eviction_oracle("h2o");
  const FX1 fx;
  auto d = drive(fx.shape, evict::H2O{.heavy = oracle["params"]["hh_size"], .recent = oracle["params"]["recent_size"]});
  const auto raw = drive(fx.shape, evict::H2O{.heavy = 99, .recent = 1});  // keeps all: its lane shows all scores
  auto all = raw;
  const Rows prompt = with_new(d.held, 0, 8);
  REQUIRE(all.step(8, Phase::prefill_end, fx.mass(0, 8, prompt)) == Status::ok);
  REQUIRE(d.step(8, Phase::prefill_end, fx.mass(0, 8, prompt)) == Status::ok);
  for (index_t g = 0; g < 2; ++g) {
    require_scores(all.lane[0][at(g)], oracle["prefill_scores"][at(g)].get<std::vector<double>>());
    REQUIRE(d.held[at(g)] == oracle["prefill_kept"][at(g)].get<Ints>());
  }
  for (const auto& step : oracle["steps"]) {
    const index_t t = step["token"];
    const Rows visible = with_new(d.held, t, 1);
    REQUIRE(d.step(1, Phase::decode, fx.mass(t, t + 1, visible)) == Status::ok);
    for (index_t g = 0; g < 2; ++g) {
      const auto& head = step["heads"][at(g)];
      REQUIRE(visible[at(g)] == head["visible"].get<Ints>());
      REQUIRE(d.held[at(g)] == head["kept"].get<Ints>());
      std::vector<double> kept;  // the lane goes with the kept tokens
      for (const index_t slot : d.kept[at(g)]) kept.push_back(head["scores"][at(slot)]);
      require_scores(d.lane[0][at(g)], kept);
    }
  }
}

// The simulation of H2O by masks counts the coming token among the `recent` ones and judges what leaves them one step
// later. A cache has let it go by then: what the simulation shows a query is what `recent - 1` keeps, unless that late
// token is a heavy one, which the simulation hides for one step.
TEST_CASE("h2o: a simulation by masks shows each query what one recent token less keeps", "[evict][h2o]") {
  const auto oracle = eviction_oracle("h2o_mask_variant");
  const FX1 fx;
  const auto& params = oracle["params"];
  const index_t head = params["query_head"], recent = params["recent_budget"];
  auto d = drive({.q_heads = 1, .kv_heads = 1, .head_dim = 4}, evict::H2O{.heavy = params["heavy_budget"], .recent = recent - 1});
  const auto mass = [&](index_t first, index_t last, const Ints& tokens) -> PerToken {
    return [&fx, head, first, last, tokens](index_t, index_t token) {
      double sum = 0;
      const auto j = static_cast<std::size_t>(std::find(tokens.begin(), tokens.end(), token) - tokens.begin());
      for (index_t i = first; i < last; ++i) sum += fx.probabilities(head, i, tokens)[j];
      return sum;
    };
  };
  REQUIRE(d.step(8, Phase::prefill_end, mass(0, 8, with_new(Rows(1), 0, 8)[0])) == Status::ok);
  index_t steps = 0;
  for (const auto& step : oracle["next_step_visibility"]) {
    const index_t t = step["query"];
    std::vector<double> scores;
    for (const index_t token : d.held[0]) scores.push_back(step["raw_scores_before"][at(token)]);
    require_scores(d.lane[0][0], scores);
    // What the mask leaves of all scores: ours, nothing where ours has let go, and the late token's, not judged yet.
    for (index_t token = 0; token < t; ++token) {
      const auto slot = std::find(d.held[0].begin(), d.held[0].end(), token) - d.held[0].begin();
      const bool held = slot < static_cast<std::ptrdiff_t>(d.held[0].size());
      const double ours = held ? static_cast<double>(d.lane[0][0][static_cast<std::size_t>(slot)])
                               : token == t - recent ? step["raw_scores_before"][at(token)].get<double>() : 0.0;
      REQUIRE(step["scores_after_mask"][at(token)].get<double>() == Approx(ours).margin(2e-5));
    }
    const Ints visible = with_new(d.held, t, 1)[0];
    REQUIRE(visible == step["visible"].get<Ints>());
    REQUIRE(d.step(1, Phase::decode, mass(t, t + 1, visible)) == Status::ok);
    ++steps;
  }
  REQUIRE(steps == 4);
}

TEST_CASE("h2o: a promoted token pushes out a heavy one", "[evict][h2o]") {
  const auto oracle = eviction_oracle("h2o_scripted");
  auto d = drive({}, evict::H2O{.heavy = oracle["params"]["hh_size"], .recent = oracle["params"]["recent_size"]});
  const auto rows = oracle["prompt_attention_rows"];
  const PerToken prompt = [&](index_t, index_t token) {
    double sum = 0;
    for (const auto& row : rows) sum += at(token) < row.size() ? row[at(token)].get<double>() : 0.0;
    return sum;
  };
  for (index_t t = 0; t < 5; ++t) REQUIRE(prompt(0, t) == Approx(oracle["prompt_scores"][at(t)].get<double>()));
  REQUIRE(d.step(5, Phase::prefill_end, prompt) == Status::ok);
  REQUIRE(d.held[0] == oracle["prompt_kept"].get<Ints>());
  for (const auto& step : oracle["steps"]) {
    const auto visible = step["visible"].get<Ints>();
    REQUIRE(with_new(d.held, d.seen, 1)[0] == visible);
    REQUIRE(d.step(1, Phase::decode, [&](index_t, index_t token) {
      const auto j = std::find(visible.begin(), visible.end(), token) - visible.begin();
      return step["attention_row"][static_cast<std::size_t>(j)].get<double>();
    }) == Status::ok);
    REQUIRE(d.held[0] == step["kept"].get<Ints>());
  }
}

TEST_CASE("h2o: chunks of a prefill are counted, and only its end evicts", "[evict][h2o]") {
  const FX1 fx;
  auto whole = drive(fx.shape, evict::H2O{.heavy = 2, .recent = 3});
  auto chunks = drive(fx.shape, evict::H2O{.heavy = 2, .recent = 3});
  REQUIRE(whole.step(8, Phase::prefill_end, fx.mass(0, 8, with_new(whole.held, 0, 8))) == Status::ok);
  REQUIRE(chunks.step(6, Phase::prefill_chunk, fx.mass(0, 6, with_new(chunks.held, 0, 6))) == Status::ok);
  REQUIRE(!chunks.fired);
  REQUIRE(chunks.step(2, Phase::prefill_end, fx.mass(6, 8, with_new(chunks.held, 6, 2))) == Status::ok);
  REQUIRE(chunks.held == whole.held);
  for (index_t g = 0; g < 2; ++g)
    for (std::size_t j = 0; j < 5; ++j)
      REQUIRE(chunks.lane[0][at(g)][j] == Approx(whole.lane[0][at(g)][j]).epsilon(1e-6));
}

TEST_CASE("h2o: padding that is never appended cannot be kept", "[evict][h2o]") {
  const auto oracle = eviction_oracle("block_left_padding");
  const FX1 fx;
  auto d = drive({}, evict::H2O{.heavy = oracle["h2o_keep"]["hh"], .recent = oracle["h2o_keep"]["recent"]});
  const Ints real{2, 3, 4, 5, 6, 7};
  const auto sum = [&](index_t token) {
    double s = 0;
    for (index_t i = 2; i < 8; ++i) s += fx.probabilities(0, i, real)[at(token - 2)];
    return s;
  };
  for (const index_t t : real) REQUIRE(sum(t) == Approx(oracle["column_sum_padded"][at(t)].get<double>()));
  REQUIRE(d.step(6, Phase::prefill_end, [&](index_t, index_t token) { return sum(token + 2); }) == Status::ok);
  Ints kept;
  for (const index_t t : d.held[0]) kept.push_back(t + 2);
  REQUIRE(kept == oracle["h2o_keep"]["kept"].get<Ints>());
}

TEST_CASE("h2o: in a cache, kept tokens and attention over them equal the oracles", "[evict][h2o][cache]") {
  const FX1 fx;
  const auto h2o = eviction_oracle("h2o"), subset = eviction_oracle("block_subset_attention");
  auto cache = make_cache<Cpu>(fx.shape, recipe(evict::H2O{.heavy = 2, .recent = 3}));
  REQUIRE(cache);
  std::vector<std::byte> memory(cache->workspace_bytes(16, 8));
  Context<Cpu> ctx(memory);
  std::vector<float> out(4 * 8 * 4);
  const auto run = [&](index_t first, index_t n) {
    const Chunk c(fx, first, n);
    REQUIRE(cache->append(ctx, 0, c.keys(), c.values()) == Status::ok);
    std::vector<float> mass(at(cache->total_slots(0)));
    const auto view = cache->ragged(0, mass.data());
    REQUIRE(cache->attend(ctx, 0, c.queries(), dense_view(out.data(), 4, n, 4), {.mass = view}) == Status::ok);
    if (n == 8) {  // sums of whole columns: what a log-sum-exp pass gives
      const auto sums = eviction_oracle("block_lse_column_sums")["column_sums"];
      for (index_t g = 0; g < 2; ++g)
        for (index_t j = 0; j < 8; ++j)
          REQUIRE(view.row(g)[j] == Approx(sums[at(2 * g)][at(j)].get<double>() + sums[at(2 * g + 1)][at(j)].get<double>())
                                        .margin(2e-5));
    }
    REQUIRE(cache->step(ctx, 0, {view, n}) == Status::ok);
  };
  const auto held = [&](index_t g) {
    Ints tokens;
    for (index_t s = 0; s < cache->slots(0, g); ++s) tokens.push_back(cache->token(0, g, s));
    return tokens;
  };
  run(0, 8);
  for (index_t g = 0; g < 2; ++g) REQUIRE(held(g) == h2o["prefill_kept"][at(g)].get<Ints>());
  for (index_t t = 8; t < 12; ++t) {
    run(t, 1);
    for (index_t g = 0; g < 2; ++g) REQUIRE(held(g) == h2o["steps"][at(t - 8)]["heads"][at(g)]["kept"].get<Ints>());
    if (t > 8) continue;
    REQUIRE(held(0) == subset["visible"].get<Ints>());
    const Chunk c(fx, 8, 1);
    std::vector<float> lse(4);
    REQUIRE(cache->attend(ctx, 0, c.queries(), dense_view(out.data(), 4, 1, 4), {.lse = dense_view(lse.data(), 4, 1)}) ==
            Status::ok);
    for (index_t h = 0; h < 4; ++h) {
      REQUIRE(lse[at(h)] == Approx(subset["lse"][at(h)].get<double>()).margin(2e-5));
      for (index_t d = 0; d < 4; ++d)
        REQUIRE(out[at(4 * h + d)] == Approx(subset["out"][at(h)][at(d)].get<double>()).margin(2e-5));
    }
  }
}

TEST_CASE("h2o: budgets that hold nothing are refused", "[evict][h2o]") {
  REQUIRE(evict::H2O{.heavy = 0, .recent = 0}.validate({}) == Status::invalid_argument);
  REQUIRE(evict::H2O{.heavy = -1, .recent = 5}.validate({}) == Status::invalid_argument);
  REQUIRE(evict::H2O{.heavy = 5, .recent = -1}.validate({}) == Status::invalid_argument);
  REQUIRE(evict::H2O{.heavy = 1, .recent = 0}.validate({}) == Status::ok);
}
