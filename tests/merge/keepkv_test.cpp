#include <kvcondense/merge/keepkv.hpp>

#include <random>

#include <kvcondense/evict/sink_window.hpp>
#include <support/cache_rig.hpp>
#include <support/naive_cache.hpp>

#include "driver.hpp"

using namespace kvcondense;
using namespace kvcondense::test;

namespace {

/// Output of a query over slots with votes, in double.
std::vector<double> output(const Floats& q, const FloatRows& k, const FloatRows& v, const Floats& log_votes) {
  std::vector<NaiveSlot> slots;
  for (std::size_t j = 0; j < k.size(); ++j) {
    NaiveSlot s{static_cast<index_t>(j), {k[j].begin(), k[j].end()}, {v[j].begin(), v[j].end()}};
    s.bias = static_cast<double>(log_votes[j]);
    slots.push_back(s);
  }
  return naive_attention({q.begin(), q.end()}, slots, static_cast<index_t>(slots.size()),
                         1.0 / std::sqrt(static_cast<double>(q.size())), v[0].size());
}

/// A driver whose scores are the logits of one query: decay 0, one row.
auto with_query(const merge::KeepKV& m, const Floats& q, const FloatRows& k, const FloatRows& v, const Floats& log_votes) {
  auto d = merge_driver(one_head(static_cast<index_t>(q.size())), m);
  d.fill(0, k, v);
  for (std::size_t j = 0; j < k.size(); ++j) {
    double dot = 0;
    for (std::size_t c = 0; c < q.size(); ++c) dot += static_cast<double>(q[c]) * k[j][c];
    d.head[0].lane[0][j] = static_cast<float>(dot / std::sqrt(static_cast<double>(q.size())));
  }
  d.head[0].lane[1] = Floats(k.size(), prim::exposure_mark(1, 0));
  d.head[0].lane[at(d.traits.sizes)] = log_votes;
  return d;
}

}  // namespace

TEST_CASE("keepkv: the oracle's key, value, votes and unchanged output", "[merge][keepkv]") {
  const auto o = merging_oracle("keepkv_zip");
  const auto& want = o["expected"];
  const auto q = o["inputs"]["q"].get<Floats>();
  const auto k = rows_of(o["inputs"]["K"]), v = rows_of(o["inputs"]["V"]);
  Floats votes;
  for (const float p : o["inputs"]["votes"].get<Floats>()) votes.push_back(std::log(p));
  for (const bool scaled : {true, false}) {
    auto d = with_query({.decay = 0.0f, .scaled = scaled}, q, k, v, votes);
    d.head[0].kept = {0, 2};
    REQUIRE(d.step() == Status::ok);
    REQUIRE(d.head[0].to == std::vector<std::int32_t>{0, 0, 2});
    require_rows({d.head[0].key[0]}, {want[scaled ? "k_merged" : "k_convex"].get<Floats>()});
    require_rows({d.head[0].value[0]}, {want["v_merged"].get<Floats>()});
    const float bias = d.head[0].lane[at(d.traits.bias)][0];
    REQUIRE(bias == Approx(scaled ? std::log(want["votes_merged"].get<double>()) : want["exact_log_bias_for_convex_key"].get<double>()).epsilon(1e-6));
    const auto out = output(q, d.head[0].key, d.head[0].value, d.head[0].lane[at(d.traits.bias)]);
    for (std::size_t c = 0; c < 2; ++c) REQUIRE(out[c] == Approx(want["out_after_zip"][c].get<double>()).epsilon(1e-5));
  }
}

TEST_CASE("keepkv: the oracle's fading mean of scores", "[merge][keepkv]") {
  const auto o = merging_oracle("keepkv_ema");
  const float decay = o["params"]["alpha"].get<float>();
  // Logits of one key: what a query of their logarithm sees of a key of one.
  Floats scores = o["inputs"]["window_scores"].get<Floats>();
  scores.push_back(o["inputs"]["next_score"].get<float>());
  const CacheShape shape{.q_heads = 1, .kv_heads = 1, .head_dim = 1, .dtype = DType::f32};
  CacheRig r(shape, recipe(evict::SinkWindow{.recent = 30, .sinks = 0}, merge::KeepKV{.decay = decay, .window = 3}), 32, 8);
  const Floats one(4, 1.0f);
  Floats q{7.0f}, out(4);  // a query before the window, which must not count
  for (const float s : scores) q.push_back(std::log(s));
  REQUIRE(r.cache.forward(r.ctx, 0, dense_view(static_cast<const float*>(q.data()), 1, 4, 1), dense_view(one.data(), 1, 4, 1),
                          dense_view(one.data(), 1, 4, 1), dense_view(out.data(), 1, 4, 1)) == Status::ok);
  const auto& head = r.cache.layers()[0].heads[0];
  REQUIRE(std::exp(head.lane[0][0]) == Approx(o["expected"]["S_init"].get<double>()).epsilon(1e-5));
  REQUIRE(prim::exposed_rows(head.lane[1][0], 4) == 3);
  REQUIRE(r.cache.forward(r.ctx, 0, dense_view(static_cast<const float*>(q.data() + 4), 1, 1, 1), dense_view(one.data(), 1, 1, 1),
                          dense_view(one.data(), 1, 1, 1), dense_view(out.data(), 1, 1, 1)) == Status::ok);
  REQUIRE(std::exp(head.lane[0][0]) == Approx(o["expected"]["S_next"].get<double>()).epsilon(1e-5));
  float mean = 0;
  const index_t offset[] = {0, 1};
  REQUIRE(prim::SlotExposure<Cpu>::decayed_mean(r.ctx, {head.lane[0].data(), offset, 1}, {head.lane[1].data(), offset, 1}, 5, decay,
                                                {&mean, offset, 1}) == Status::ok);
  REQUIRE(std::exp(mean) == Approx(o["expected"]["s_hat_next"].get<double>()).epsilon(1e-5));
}

TEST_CASE("keepkv: for any rows the output of the query does not change, whatever folds, once and again", "[merge][keepkv]") {
  std::mt19937 random(4);
  std::normal_distribution<float> normal;
  for (const index_t dim : {2, 16, 64})
    for (const bool scaled : {true, false})
      for (int round = 0; round < 20; ++round) {
        CAPTURE(dim, scaled, round);
        const auto rows = [&](std::size_t n) {
          FloatRows all(n, Floats(at(dim)));
          for (auto& row : all)
            for (float& x : row) x = normal(random);
          return all;
        };
        const FloatRows k = rows(24), v = rows(24);
        const Floats q = rows(1)[0];
        Floats votes;
        for (int j = 0; j < 24; ++j) votes.push_back(std::log(1.0f + static_cast<float>(random() % 5)));
        const auto before = output(q, k, v, votes);
        auto d = with_query({.decay = 0.0f, .least = -1.0f, .scaled = scaled}, q, k, v, votes);
        d.head[0].kept = {0, 3, 5, 6, 9, 13, 22};
        REQUIRE(d.step() == Status::ok);
        REQUIRE(d.head[0].folded == 17);
        const auto after = output(q, d.head[0].key, d.head[0].value, d.head[0].lane[at(d.traits.bias)]);
        for (std::size_t c = 0; c < before.size(); ++c) REQUIRE(after[c] == Approx(before[c]).margin(2e-4));
      }
}

TEST_CASE("keepkv: in a cache the newest query's output stays", "[merge][keepkv]") {
  const CacheShape s{.q_heads = 2, .kv_heads = 2, .head_dim = 16, .dtype = DType::f32};
  std::mt19937 random(6);
  const Tokens t(s, 40, random);
  CacheRig r(s, recipe(evict::SinkWindow{.recent = 12, .sinks = 4}, merge::KeepKV{.decay = 0.0f, .least = -1.0f}), 64, 64);
  std::vector<float> out(at(2 * 40 * 16)), again(at(2 * 16)), q(at(2 * 16));
  REQUIRE(r.cache.forward(r.ctx, 0, t.queries(s), t.keys(s), t.values(s), dense_view(out.data(), 2, 40, 16)) == Status::ok);
  REQUIRE(r.cache.slots(0, 0) == 16);
  for (index_t h = 0; h < 2; ++h) std::copy_n(t.q.data() + (h * 40 + 39) * 16, 16, q.data() + h * 16);
  REQUIRE(r.cache.attend(r.ctx, 0, dense_view(static_cast<const float*>(q.data()), 2, 1, 16), dense_view(again.data(), 2, 1, 16)) == Status::ok);
  for (index_t h = 0; h < 2; ++h)
    for (index_t d = 0; d < 16; ++d) REQUIRE(again[at(h * 16 + d)] == Approx(out[at((h * 40 + 39) * 16 + d)]).margin(2e-5));
  for (const merge::KeepKV& m : {merge::KeepKV{.decay = 1.0f}, merge::KeepKV{.decay = -0.1f}, merge::KeepKV{.window = 0}, merge::KeepKV{.least = 2.0f}})
    REQUIRE(m.validate(s) == Status::invalid_argument);
}
