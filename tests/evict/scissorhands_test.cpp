#include <algorithm>
#include <map>
#include <numeric>

#include <evict/properties.hpp>
#include <kvcondense/budget/ratio.hpp>
#include <kvcondense/budget/uniform.hpp>
#include <kvcondense/core/random.hpp>
#include <kvcondense/evict/scissorhands.hpp>

using namespace kvcondense;
using namespace kvcondense::test;

namespace {

/// Of the tokens of head h that a row sees: whether it gives them less than an even share. In double.
template <class D>
std::vector<bool> passed_over(const D& d, const Ints& tokens, index_t row, index_t h) {
  const index_t group = d.shape.group(), dim = d.shape.head_dim;
  const auto m = static_cast<std::size_t>(std::upper_bound(tokens.begin(), tokens.end(), row) - tokens.begin());
  std::vector<double> p(m, 0.0);
  for (index_t g = 0; g < group; ++g) {
    std::vector<double> e;
    double sum = 0;
    for (std::size_t j = 0; j < m; ++j) {
      double z = 0;
      for (index_t c = 0; c < dim; ++c)
        z += static_cast<double>(d.query(h * group + g, row, c)) * static_cast<double>(d.key(h, tokens[j], c));
      sum += e.emplace_back(std::exp(z / std::sqrt(static_cast<double>(dim))));
    }
    for (std::size_t j = 0; j < m; ++j) p[j] += e[j] / sum / static_cast<double>(group);
  }
  std::vector<bool> low(m);
  for (std::size_t j = 0; j < m; ++j) low[j] = p[j] < 1.0 / static_cast<double>(m);
  return low;
}

/// How often the last rows passed over each token of head h, among the tokens that are held.
template <class D>
Ints low_counts(const D& d, index_t history, index_t h) {
  const Ints& tokens = d.held[at(h)];
  Ints low(tokens.size(), 0);
  for (index_t row = std::max<index_t>(0, d.seen - history); row < d.seen; ++row) {
    const std::vector<bool> over = passed_over(d, tokens, row, h);
    for (std::size_t j = 0; j < over.size(); ++j) low[j] += over[j];
  }
  return low;
}

/// The first `sinks`, the newest `recent`, and of the others those with fewest low counts, newer ones first.
Ints plain(const Ints& tokens, const Ints& low, const evict::Scissorhands& p) {
  const auto n = static_cast<index_t>(tokens.size());
  Ints order, kept;
  for (index_t j = n - p.recent - 1; j >= p.sinks; --j) order.push_back(j);
  std::stable_sort(order.begin(), order.end(), [&](index_t a, index_t b) { return low[at(a)] < low[at(b)]; });
  order.resize(at(p.tokens - p.recent - p.sinks));
  for (index_t j = 0; j < n; ++j)
    if (j < p.sinks || j >= n - p.recent) order.push_back(j);
  std::sort(order.begin(), order.end());
  for (const index_t j : order) kept.push_back(tokens[at(j)]);
  return kept;
}

/// One head's attention whose row r gives slot j the probability rows[r][j], and sees no slot behind those.
struct RowsOf final : QueryColumns<Cpu> {
  const nlohmann::json* probability;
  explicit RowsOf(const nlohmann::json& rows) : probability(&rows) {}
  index_t rows() const noexcept override { return static_cast<index_t>(probability->size()); }
  Status run(Context<Cpu>&, const prim::ColumnRequest& request) const noexcept override {
    const CacheShape shape{.head_dim = rows(), .softmax_scale = 1.0f};
    std::vector<std::byte> memory(prim::AttendColumns<Cpu>::workspace_bytes(1, shape, request.rows));
    Context<Cpu> ctx(memory);
    return prim::AttendColumns<Cpu>::run(ctx, request, shape, [&](index_t) { return Head{probability}; });
  }
  /// Row r is the query along axis r, and keys have the logarithms of the probabilities there.
  struct Head {
    struct Cursor {};
    const nlohmann::json* probability;
    index_t slots() const { return static_cast<index_t>(probability->back().size()); }
    index_t token(index_t slot) const { return slot; }
    index_t row_token(index_t row) const { return slots() + row; }
    index_t visible(index_t row) const { return static_cast<index_t>((*probability)[at(row)].size()); }
    void load_query(index_t row, index_t, float* out) const {
      for (index_t d = 0; d < static_cast<index_t>(probability->size()); ++d) out[d] = d == row ? 1.0f : 0.0f;
    }
    void key_scores(Cursor&, index_t n, prim::RowBlock<const float> queries, prim::RowBlock<float> out, index_t first) const {
      const auto dim = static_cast<index_t>(probability->size());
      std::vector<float> keys(at(n * dim));
      for (index_t i = 0; i < n; ++i)
        for (index_t d = 0; d < dim; ++d)
          if (first + i < visible(d)) keys[at(i * dim + d)] = static_cast<float>(std::log((*probability)[at(d)][at(first + i)].get<double>()));
      prim::cpu::dot_rows(keys.data(), n, dim, queries, out);
    }
  };
};

}  // namespace

TEST_CASE("scissorhands: low counts and dropped tokens equal the oracle", "[evict][scissorhands]") {
  const auto oracle = eviction_oracle("scissorhands");
  const auto& params = oracle["params"];
  const auto& rows = oracle["history_rows"];
  const evict::Scissorhands policy{.tokens = 5, .drop = params["drop"], .history = params["history_window"],
                                   .recent = params["recent_window"]};
  auto d = drive({.head_dim = 3, .softmax_scale = 1.0f}, policy);
  // Row r is the query along axis r, and keys have the logarithms of the probabilities there. The three rows
  // are those of tokens 5, 6 and 7, so the oracle's first one, over seven keys, is spread over six: what is
  // below 1 / 7 of all is below 1 / 6 of the first six, for these numbers.
  d.query = [](index_t, index_t t, index_t c) { return t - 5 == c ? 1.0f : 0.0f; };
  d.key = [&](index_t, index_t t, index_t c) {
    const auto& row = rows[at(c)];
    return at(t) < row.size() ? static_cast<float>(std::log(row[at(t)].get<double>())) : 0.0f;
  };
  REQUIRE(d.step(8, Phase::prefill_end) == Status::ok);
  REQUIRE(d.held[0] == oracle["kept"].get<Ints>());

  // The source and the rule alone, on rows that see as many keys as the oracle's do.
  std::vector<float> scores(8, -1.0f);
  const index_t offset[] = {0, 8}, budget[] = {5};
  const evict::Protected shield[] = {{0, 2}};
  StepView<Cpu> view;
  view.shape = d.shape, view.offset = offset;
  Context<Cpu> ctx;
  Scratch none;
  const RowsOf columns(rows);
  view.columns = &columns;
  REQUIRE(policy.pipeline().source.score(ctx, view, {}, {scores.data(), offset, 1}, none) == Status::ok);
  REQUIRE(scores == floats(oracle["low_counts"]));
  REQUIRE(policy.pipeline().pool.run(ctx, view, shield, {scores.data(), offset, 1}, none) == Status::ok);
  std::int32_t slots[8];
  index_t count = 0, asked = budget[0];
  REQUIRE(policy.pipeline().select.run(ctx, view, RaggedView<const float>{scores.data(), offset, 1}, shield,
                                       {{slots, offset, 1}, &count, &asked, nullptr}, none) == Status::ok);
  REQUIRE(Ints(slots, slots + count) == oracle["kept"].get<Ints>());
}

TEST_CASE("scissorhands: keeps what plain counts keep, all along an answer", "[evict][scissorhands]") {
  const index_t dim = GENERATE(64, 80, 96, 128), group = GENERATE(1, 3, 4, 7);
  CAPTURE(dim, group);
  const CacheShape shape{.q_heads = 2 * group, .kv_heads = 2, .head_dim = dim};
  const evict::Scissorhands p{.tokens = 20, .drop = 9, .history = 11, .recent = 3, .sinks = 2};
  auto d = drive_noise(shape, p);
  index_t fired = 0;
  for (const index_t n : {5, 30, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 7, 3, 1}) {
    Rows want = with_new(d.held, d.seen, n);
    auto twin = d;
    twin.held = want, twin.seen += n;
    const bool due = static_cast<index_t>(want[0].size()) >= 29;
    if (due)
      for (index_t h = 0; h < 2; ++h) want[at(h)] = plain(want[at(h)], low_counts(twin, p.history, h), p);
    REQUIRE(d.step(n, Phase::decode) == Status::ok);
    REQUIRE(d.fired == due);
    REQUIRE(d.held == want);
    fired += due;
  }
  REQUIRE(fired == 3);
}

TEST_CASE(
    "scissorhands: rows count as they were at their own time, where no more are looked at than "
    "leave at once",
    "[evict][scissorhands]") {
  const CacheShape shape{.q_heads = 6, .kv_heads = 2, .head_dim = 16};
  const index_t history = GENERATE(4, 9, 40);
  CAPTURE(history);
  const evict::Scissorhands p{.tokens = 20, .drop = 9, .history = history, .recent = 3, .sinks = 2};
  auto d = drive_noise(shape, p);
  std::vector<std::map<index_t, Ints>> rows(
      2);  // of each head: the rows that passed over a token, when they came
  index_t fired = 0, differ = 0;
  for (int i = 0; i < 60; ++i) {
    const index_t n = i == 0 ? 30 : 1 + i % 3;
    Rows want = with_new(d.held, d.seen, n);
    for (index_t h = 0; h < 2; ++h)
      for (index_t row = d.seen; row < d.seen + n; ++row) {
        const std::vector<bool> over = passed_over(d, want[at(h)], row, h);
        for (std::size_t j = 0; j < over.size(); ++j)
          if (over[j]) rows[at(h)][want[at(h)][j]].push_back(row);
      }
    if (static_cast<index_t>(want[0].size()) >= p.tokens + p.drop)
      for (index_t h = 0; h < 2; ++h) {
        Ints low;
        for (const index_t t : want[at(h)]) {
          const Ints& all = rows[at(h)][t];
          low.push_back(all.end() - std::lower_bound(all.begin(), all.end(), d.seen + n - history));
        }
        want[at(h)] = plain(want[at(h)], low, p);
      }
    REQUIRE(d.step(n, Phase::decode) == Status::ok);
    fired += d.fired, differ += d.held != want;
    d.held = want;
  }
  REQUIRE(fired > 8);
  if (history <= p.drop)
    REQUIRE(differ == 0);
  else
    REQUIRE(differ > 0);  // older rows are judged over what is left of their slots
}

TEST_CASE("scissorhands: of equal counts the newer tokens stay", "[evict][scissorhands]") {
  auto d = drive({.head_dim = 4}, evict::Scissorhands{.tokens = 6, .drop = 4, .history = 3, .recent = 1, .sinks = 1});
  d.key = d.query = [](index_t, index_t, index_t) { return 0.0f; };  // even shares: nobody is below
  REQUIRE(d.step(10, Phase::prefill_end) == Status::ok);
  REQUIRE(d.held[0] == Ints{0, 5, 6, 7, 8, 9});
}

TEST_CASE("scissorhands: drops at once, counted from the budget that a wrapper sets", "[evict][scissorhands]") {
  const evict::Scissorhands p{.tokens = 100, .drop = 7, .history = 4, .recent = 2};
  auto d = drive_noise({.head_dim = 4}, budget::Uniform{p, 10});
  for (index_t i = 1, held = 0; i <= 50; ++i) {
    REQUIRE(d.step(1, Phase::decode) == Status::ok);
    if (++held >= 17) held = 10;
    REQUIRE(static_cast<index_t>(d.held[0].size()) == held);
  }
  auto half = drive_noise({.head_dim = 4}, budget::Ratio{p, 0.5});
  REQUIRE(half.step(60, Phase::prefill_end) == Status::ok);
  REQUIRE(half.held[0].size() == 30);
}

TEST_CASE("scissorhands: every knob has its say", "[evict][scissorhands]") {
  using S = evict::Scissorhands;
  const auto kept = [](const S& p) {
    auto d = drive_noise({.head_dim = 6}, p);
    REQUIRE(d.step(60, Phase::prefill_end) == Status::ok);
    return d.held;
  };
  const Rows before = kept({.tokens = 30, .drop = 8, .history = 16, .recent = 4});
  for (const S& other : {S{.tokens = 31, .drop = 8, .history = 16, .recent = 4}, {.tokens = 30, .drop = 31, .history = 16, .recent = 4},
                         {.tokens = 30, .drop = 8, .history = 3, .recent = 4}, {.tokens = 30, .drop = 8, .history = 16, .recent = 25},
                         {.tokens = 30, .drop = 8, .history = 16, .recent = 4, .sinks = 9}})
    REQUIRE(kept(other) != before);
}

TEST_CASE("scissorhands: a query with a bad number counts against all tokens alike", "[evict][scissorhands]") {
  auto d = drive_noise({.head_dim = 4}, evict::Scissorhands{.tokens = 5, .drop = 3, .history = 1, .recent = 1});
  d.query = [](index_t, index_t, index_t) { return std::nanf(""); };
  REQUIRE(d.step(8, Phase::prefill_end) == Status::ok);
  REQUIRE(d.held[0] == Ints{3, 4, 5, 6, 7});
}

TEST_CASE("scissorhands: keeps the promises of a pipeline", "[evict][scissorhands]") {
  check_promises(evict::Scissorhands{.tokens = 24, .drop = 1, .history = 5, .recent = 4, .sinks = 1},
                 evict::Scissorhands{.tokens = 300, .drop = 1, .history = 5, .recent = 4, .sinks = 1},
                 {.heads_alone = false, .always_fires = false});
}

TEST_CASE("scissorhands: without queries a step that drops is refused", "[evict][scissorhands]") {
  auto d = drive({}, evict::Scissorhands{.tokens = 2, .drop = 2, .recent = 1});
  d.key = noise(5, 2.0f);
  REQUIRE(d.step(3, Phase::decode) == Status::ok);
  REQUIRE(d.step(1, Phase::decode) == Status::missing_input);
}

TEST_CASE("scissorhands: fields out of range are refused", "[evict][scissorhands]") {
  using S = evict::Scissorhands;
  for (const S& bad : {S{.tokens = 10}, {.drop = 0}, {.history = 0}, {.recent = -1}, {.sinks = -1}, {.tokens = 14, .recent = 10, .sinks = 4}})
    REQUIRE(bad.validate({}) == Status::invalid_argument);
  REQUIRE(S{.tokens = 1, .drop = 1, .history = 1, .recent = 0}.validate({}) == Status::ok);
}
