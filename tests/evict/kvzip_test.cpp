#include <cmath>
#include <functional>
#include <numeric>

#include <evict/properties.hpp>
#include <kvcondense/evict/kvzip.hpp>
#include <kvcondense/position/reindex.hpp>
#include <support/cache_rig.hpp>
#include <support/naive_cache.hpp>

using namespace kvcondense;
using namespace kvcondense::test;

namespace {

/// Largest share of attention of the rows [first_row, first_row + rows) to each token of [first, last), over the sinks, those tokens
/// and the rows up to their own; in double, from all queries of a KV head's group. `weight(query head, row, token)` multiplies a share.
std::vector<double> asked(const CacheShape& s, const std::vector<Tokens>& parts, index_t head, index_t first_row, index_t rows,
                          index_t sinks, index_t first, index_t last, const std::function<double(index_t, index_t, index_t)>& weight = {}) {
  const auto number = [&](index_t token, auto&& read) {
    for (const Tokens& p : parts) {
      if (token < p.n) return read(p, token);
      token -= p.n;
    }
    return 0.0;
  };
  std::vector<double> most(at(last - first));
  for (index_t g = 0; g < s.group(); ++g)
    for (index_t r = first_row; r < first_row + rows; ++r) {
      std::vector<double> p;
      std::vector<index_t> token;
      for (index_t t = 0; t <= r; ++t) {
        if (!(t < sinks || (t >= first && t < last) || t >= first_row)) continue;
        double z = 0;
        for (index_t d = 0; d < s.head_dim; ++d)
          z += number(r, [&](const Tokens& x, index_t i) { return double(x.queries(s)(head * s.group() + g, i, d)); }) *
               number(t, [&](const Tokens& x, index_t i) { return double(x.keys(s)(head, i, d)); });
        p.push_back(std::exp(z / std::sqrt(double(s.head_dim)))), token.push_back(t);
      }
      const double sum = std::accumulate(p.begin(), p.end(), 0.0);
      for (std::size_t i = 0; i < p.size(); ++i)
        if (token[i] >= first && token[i] < last) most[at(token[i] - first)] = std::max(most[at(token[i] - first)], p[i] / sum * (weight ? weight(head * s.group() + g, r, token[i]) : 1.0));
    }
  return most;
}

const CacheShape shape{.q_heads = 6, .kv_heads = 2, .head_dim = 16, .dtype = DType::f32};

/// Appends, attends and steps as an engine does.
template <class R>
Status feed(CacheRig<R>& r, const Tokens& t, Phase phase, StepInputs inputs = {}) {
  std::vector<float> out(t.q.size());
  return r.cache.forward(r.ctx, 0, t.queries(shape), t.keys(shape), t.values(shape), dense_view(out.data(), 6, t.n, 16), {}, phase, inputs);
}

}  // namespace

TEST_CASE("kvzip: scores of a probe equal the definition in double", "[evict][kvzip]") {
  std::mt19937 random(2);
  std::vector<Tokens> parts{Tokens(shape, 30, random)};
  CacheRig r(shape, recipe(evict::KVzip{.keep = 0.5, .sinks = 3}), 128, 64);
  REQUIRE(feed(r, parts[0], Phase::prefill_end) == Status::ok);
  std::vector<std::vector<double>> want(2, std::vector<double>(30));
  for (const auto& [first, last] : {std::pair<index_t, index_t>{3, 18}, {18, 30}}) {
    parts.resize(1, parts[0]);
    parts.push_back(Tokens(shape, 9, random));
    REQUIRE(feed(r, parts[1], Phase::probe, {.probe_first = first, .probe_last = last}) == Status::ok);
    REQUIRE(r.cache.pending() == 9);
    for (index_t h = 0; h < 2; ++h) {
      const auto m = asked(shape, parts, h, 30, 9, 3, first, last);
      std::copy(m.begin(), m.end(), want[at(h)].begin() + first);
    }
    REQUIRE(r.cache.truncate(30) == Status::ok);  // the probe is taken back
  }
  for (index_t h = 0; h < 2; ++h) {
    const auto& lane = r.cache.layers()[0].heads[h].lane[0];
    for (index_t t = 0; t < 30; ++t) REQUIRE(lane[t] == Approx(want[at(h)][at(t)]).epsilon(1e-4));
    REQUIRE(lane[0] == 0);  // nobody asked about sinks
  }

  REQUIRE(r.cache.turn(r.ctx, 5) == Status::ok);
  for (index_t h = 0; h < 2; ++h) {
    Ints order(27), kept{0, 1, 2};
    std::iota(order.begin(), order.end(), 3);
    std::stable_sort(order.begin(), order.end(), [&](index_t a, index_t b) { return want[at(h)][at(a)] > want[at(h)][at(b)]; });
    kept.insert(kept.end(), order.begin(), order.begin() + 13);
    std::sort(kept.begin(), kept.end());
    REQUIRE(r.cache.slots(0, h) == 16);
    for (index_t s = 0; s < 16; ++s) REQUIRE(r.cache.token(0, h, s) == kept[at(s)]);
  }
}

namespace {

/// Output projections of 24 numbers for the shape above.
struct Projections {
  std::vector<float> numbers;
  const float* layer = nullptr;
  explicit Projections(std::mt19937& random, index_t rows = 24) : rows_(rows) {
    std::normal_distribution<float> normal;
    for (index_t i = 0; i < rows * 6 * 16; ++i) numbers.push_back(normal(random));
    layer = numbers.data();
  }
  Projections(const Projections&) = delete;
  LayerMatrices view() const { return {&layer, 1, rows_, 6 * 16}; }
  /// Euclidean length of a value behind the columns of a query head.
  double length(index_t head, const Tokens& t, index_t token) const {
    double sum = 0;
    for (index_t o = 0; o < rows_; ++o) {
      double x = 0;
      for (index_t d = 0; d < 16; ++d) x += double(numbers[at(o * 96 + head * 16 + d)]) * double(t.values(shape)(head / 3, token, d));
      sum += x * x;
    }
    return std::sqrt(sum);
  }

 private:
  index_t rows_;
};

}  // namespace

TEST_CASE("kvzip: weighted by projected values over hidden states, scores equal the definition in double", "[evict][kvzip]") {
  std::mt19937 random(12);
  const Projections output(random);
  std::vector<Tokens> parts{Tokens(shape, 90, random)};  // more than a tile of slots
  const evict::KVzip policy{.keep = 0.5, .sinks = 3, .weighted = true, .output = output.view()};
  CacheRig r(shape, recipe(policy), 128, 100), plain(shape, recipe(evict::KVzip{.keep = 0.5, .sinks = 3}), 128, 100);
  REQUIRE(r.cache.capabilities().needs == Inputs(Input::hidden_norms));
  REQUIRE(r.cache.capabilities().wants.output_weights);
  REQUIRE_FALSE(plain.cache.capabilities().wants.output_weights);
  REQUIRE(feed(r, parts[0], Phase::prefill_end) == Status::ok);  // no other step wants them
  REQUIRE(feed(plain, parts[0], Phase::prefill_end) == Status::ok);
  std::vector<std::vector<double>> want(2, std::vector<double>(90));
  for (const auto& [first, last] : {std::pair<index_t, index_t>{3, 18}, {18, 80}}) {
    parts.resize(1, parts[0]);
    parts.push_back(Tokens(shape, 9, random));
    std::vector<float> norms;
    for (index_t i = 0; i < 9; ++i) norms.push_back(0.5f + static_cast<float>((i * 5) % 9));
    norms[4] = 0.0f;  // counts nothing
    REQUIRE(feed(r, parts[1], Phase::probe, {.hidden_norms = norms, .probe_first = first, .probe_last = last}) == Status::ok);
    REQUIRE(feed(plain, parts[1], Phase::probe, {.probe_first = first, .probe_last = last}) == Status::ok);
    const auto weight = [&](index_t head, index_t row, index_t token) {
      const double norm = norms[at(row - 90)];
      return norm > 0 ? output.length(head, parts[0], token) / norm : 0.0;
    };
    for (index_t h = 0; h < 2; ++h) {
      const auto m = asked(shape, parts, h, 90, 9, 3, first, last, weight);
      std::copy(m.begin(), m.end(), want[at(h)].begin() + first);
    }
    REQUIRE(r.cache.truncate(90) == Status::ok);
    REQUIRE(plain.cache.truncate(90) == Status::ok);
  }
  for (index_t h = 0; h < 2; ++h) {
    const auto& lane = r.cache.layers()[0].heads[h].lane[0];
    for (index_t t = 0; t < 90; ++t) REQUIRE(lane[t] == Approx(want[at(h)][at(t)]).epsilon(1e-4));
    REQUIRE(lane[0] == 0);
    REQUIRE(lane[85] == 0);  // nobody asked about it
  }
  REQUIRE(r.cache.turn(r.ctx, 5) == Status::ok);
  REQUIRE(plain.cache.turn(plain.ctx, 5) == Status::ok);
  Ints kept, others;
  for (index_t s = 0; s < r.cache.slots(0, 0); ++s) kept.push_back(r.cache.token(0, 0, s)), others.push_back(plain.cache.token(0, 0, s));
  REQUIRE(kept != others);
}

TEST_CASE("kvzip: weighted, what rows without length ask about is asked about all the same", "[evict][kvzip]") {
  std::mt19937 random(13);
  const Projections output(random);
  CacheRig r(shape, recipe(evict::KVzip{.keep = 0.5, .sinks = 2, .weighted = true, .output = output.view()}), 128, 64);
  REQUIRE(feed(r, Tokens(shape, 22, random), Phase::prefill_end) == Status::ok);
  const std::vector<float> none{0.0f, -1.0f, NAN};
  REQUIRE(feed(r, Tokens(shape, 3, random), Phase::probe, {.hidden_norms = none, .probe_first = 2, .probe_last = 22}) == Status::ok);
  REQUIRE(r.cache.layers()[0].heads[0].lane[0][5] > 0);
  REQUIRE(r.cache.layers()[0].heads[0].lane[0][5] < 1e-30f);
  REQUIRE(r.cache.truncate(22) == Status::ok);
  REQUIRE(r.cache.turn(r.ctx) == Status::ok);
  REQUIRE(r.cache.slots(0, 0) == 12);
}

TEST_CASE("kvzip: weighted, what lacks is named and refused", "[evict][kvzip]") {
  std::mt19937 random(14);
  const Projections output(random);
  using Z = evict::KVzip;
  REQUIRE(make_cache<Cpu>(shape, recipe(Z{.weighted = true})).status() == Status::missing_input);
  REQUIRE(std::string_view(Z{.weighted = true}.missing()) == "output");
  REQUIRE(Z{}.missing() == nullptr);
  LayerMatrices wrong = output.view();
  wrong.columns = 95;
  REQUIRE(Z{.weighted = true, .output = wrong}.validate(shape) == Status::shape_mismatch);
  REQUIRE(Z{.output = wrong}.validate(shape) == Status::ok);
  wrong = output.view(), wrong.layers = 2;
  REQUIRE(Z{.weighted = true, .output = wrong}.validate(shape) == Status::shape_mismatch);

  CacheRig r(shape, recipe(Z{.weighted = true, .output = output.view()}), 128, 64);
  REQUIRE(feed(r, Tokens(shape, 20, random), Phase::prefill_end) == Status::ok);
  const Tokens probe(shape, 6, random);
  REQUIRE(r.cache.append(r.ctx, 0, probe.keys(shape), probe.values(shape)) == Status::ok);
  StepInputs in{.queries = probe.queries(shape), .probe_first = 0, .probe_last = 20};
  REQUIRE(r.cache.step(r.ctx, 0, in, Phase::probe) == Status::missing_input);
  REQUIRE(std::string_view(r.cache.missing(0, in, Phase::probe)) == "hidden_norms");
  REQUIRE(r.cache.missing(0, in, Phase::decode) == nullptr);
  const std::vector<float> norms(6, 1.0f);
  in.hidden_norms = std::span(norms).first(5);
  REQUIRE(r.cache.step(r.ctx, 0, in, Phase::probe) == Status::shape_mismatch);
  in.hidden_norms = norms;
  REQUIRE(r.cache.missing(0, in, Phase::probe) == nullptr);
  REQUIRE(r.cache.step(r.ctx, 0, in, Phase::probe) == Status::ok);
}

TEST_CASE("kvzip: a choice is made once, and what nobody asked about stays", "[evict][kvzip]") {
  std::mt19937 random(3);
  CacheRig r(shape, recipe(evict::KVzip{.keep = 0.5, .sinks = 2}), 256, 64);
  REQUIRE(feed(r, Tokens(shape, 40, random), Phase::prefill_end) == Status::ok);
  REQUIRE(r.cache.turn(r.ctx) == Status::ok);
  REQUIRE(r.cache.slots(0, 0) == 40);
  REQUIRE(feed(r, Tokens(shape, 5, random), Phase::probe, {.probe_first = 10, .probe_last = 30}) == Status::ok);
  REQUIRE(r.cache.truncate(40) == Status::ok);
  REQUIRE(r.cache.turn(r.ctx) == Status::ok);
  REQUIRE(r.cache.slots(0, 0) == 30);  // half of the twenty that were asked about
  Ints kept;
  for (index_t s = 0; s < 30; ++s) kept.push_back(r.cache.token(0, 0, s));
  REQUIRE(feed(r, Tokens(shape, 12, random), Phase::prefill_end) == Status::ok);  // a question and its answer
  REQUIRE(r.cache.turn(r.ctx) == Status::ok);
  REQUIRE(r.cache.slots(0, 0) == 42);
  for (index_t s = 0; s < 30; ++s) REQUIRE(r.cache.token(0, 0, s) == kept[at(s)]);
}

TEST_CASE("kvzip: the oracle's scores", "[evict][kvzip]") {
  const auto o = eviction_oracle("kvzip");
  const CacheShape small{.q_heads = 2, .kv_heads = 1, .head_dim = 2, .dtype = DType::f32};
  std::vector<float> k, q, repeat, v(16, 0.5f);
  for (const char* part : {"sink_key", "context_keys"})
    for (const auto& row : o[part])
      for (const float x : row) k.push_back(x);
  for (const auto& row : o["repeat_keys"])
    for (const float x : row) repeat.push_back(x);
  for (const auto& head : o["repeat_queries"])
    for (const auto& row : head)
      for (const float x : row) q.push_back(x);
  CacheRig r(small, recipe(evict::KVzip{.sinks = 1}), 64, 64);
  const auto view = [](const std::vector<float>& x, index_t heads, index_t n) { return dense_view(x.data(), heads, n, 2); };
  REQUIRE(r.cache.append(r.ctx, 0, view(k, 1, 6), view(v, 1, 6)) == Status::ok);
  REQUIRE(r.cache.step(r.ctx, 0, StepInputs{}, Phase::prefill_end) == Status::ok);
  REQUIRE(r.cache.append(r.ctx, 0, view(repeat, 1, 3), view(v, 1, 3)) == Status::ok);
  REQUIRE(r.cache.step(r.ctx, 0, StepInputs{.queries = view(q, 2, 3), .probe_first = 1, .probe_last = 6}, Phase::probe) == Status::ok);
  for (index_t t = 0; t < 5; ++t)
    REQUIRE(r.cache.layers()[0].heads[0].lane[0][t + 1] == Approx(o["score"][at(t)].get<double>()).epsilon(1e-5));
}

TEST_CASE("kvzip: probes with nothing to ask, or without queries, are refused", "[evict][kvzip]") {
  std::mt19937 random(4);
  CacheRig r(shape, recipe(evict::KVzip{}), 128, 64);
  REQUIRE(feed(r, Tokens(shape, 20, random), Phase::prefill_end) == Status::ok);
  const Tokens probe(shape, 6, random);
  REQUIRE(r.cache.append(r.ctx, 0, probe.keys(shape), probe.values(shape)) == Status::ok);
  const auto step = [&](StepInputs in) { return r.cache.step(r.ctx, 0, in, Phase::probe); };
  REQUIRE(step({.probe_first = 0, .probe_last = 20}) == Status::missing_input);
  StepInputs in{.queries = probe.queries(shape), .probe_first = 4, .probe_last = 4};
  REQUIRE(step(in) == Status::out_of_range);
  in.probe_last = 21;  // the probe itself
  REQUIRE(step(in) == Status::out_of_range);
  in.probe_first = -1, in.probe_last = 3;
  REQUIRE(step(in) == Status::out_of_range);
  in.probe_first = 0;
  REQUIRE(step(in) == Status::ok);
  REQUIRE(r.cache.turn(r.ctx) == Status::order_violation);  // tokens are pending
  REQUIRE(r.cache.truncate(20) == Status::ok);
  REQUIRE(evict::KVzip{.keep = 0}.validate(shape) == Status::invalid_argument);
  REQUIRE(evict::KVzip{.keep = 1.5}.validate(shape) == Status::invalid_argument);
  REQUIRE(evict::KVzip{.sinks = -1}.validate(shape) == Status::invalid_argument);
}

TEST_CASE("kvzip: raw keys and codes are asked as attention reads them", "[evict][kvzip]") {
  std::mt19937 random(5);
  const Tokens context(shape, 30, random), probe(shape, 7, random);
  CacheRig r(shape, recipe(evict::KVzip{.keep = 0.4}, position::Reindex{}), 128, 64);
  REQUIRE(feed(r, context, Phase::prefill_end) == Status::ok);
  REQUIRE(feed(r, probe, Phase::probe, {.probe_first = 4, .probe_last = 30}) == Status::ok);
  REQUIRE(r.cache.truncate(30) == Status::ok);
  for (index_t t = 4; t < 30; ++t) {
    REQUIRE(r.cache.layers()[0].heads[1].lane[0][t] > 0);
    REQUIRE(r.cache.layers()[0].heads[1].lane[0][t] < 1);
  }
  REQUIRE(r.cache.turn(r.ctx) == Status::ok);
  REQUIRE(r.cache.slots(0, 1) == 14);  // 4 + floor(0.4 * 26)
}

TEST_CASE("kvzip: a policy that answers no probes lets them pass", "[evict][kvzip]") {
  std::mt19937 random(5);
  CacheRig r(shape, recipe(evict::KeepAll{}), 128, 64);
  REQUIRE(feed(r, Tokens(shape, 10, random), Phase::prefill_end) == Status::ok);
  REQUIRE(feed(r, Tokens(shape, 4, random), Phase::probe) == Status::ok);
  REQUIRE(r.cache.pending() == 4);
  REQUIRE(r.cache.truncate(10) == Status::ok);
  REQUIRE(r.cache.pending() == 0);
}
