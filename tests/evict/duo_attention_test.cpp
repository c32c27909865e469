#include <algorithm>
#include <cmath>
#include <limits>

#include <evict/properties.hpp>
#include <kvcondense/budget/uniform.hpp>
#include <kvcondense/evict/duo_attention.hpp>

using namespace kvcondense;
using namespace kvcondense::test;

namespace {

using evict::DuoAttention;

struct Table {
  std::vector<float> numbers;
  index_t layers, heads;
  HeadTable view() const { return {numbers.data(), layers, heads}; }
};

/// The linearly interpolated quantile, in double, from a sorted copy.
double quantile(std::vector<float> x, double at) {
  std::sort(x.begin(), x.end());
  const double place = at * static_cast<double>(x.size() - 1);
  const auto below = static_cast<std::size_t>(place);
  const double part = place - static_cast<double>(below);
  const double lo = x[below], hi = x[std::min(below + 1, x.size() - 1)];
  return lo + part * (hi - lo);
}

std::vector<int> full_of(const Table& t, double sparsity) {
  const auto full = DuoAttention{.sparsity = sparsity, .gates = t.view()}.pipeline().allocate.full;
  std::vector<int> flags;
  for (index_t l = 0; l < t.layers; ++l)
    for (index_t h = 0; h < t.heads; ++h) flags.push_back(full(l, h));
  return flags;
}

Table random_table(std::uint64_t seed, index_t layers, index_t heads) {
  Table t{{}, layers, heads};
  for (index_t i = 0; i < layers * heads; ++i)
    t.numbers.push_back(2 * random_uniform(seed, static_cast<std::uint64_t>(i)) - 1);
  return t;
}

}  // namespace

TEST_CASE("duo_attention: full heads equal the oracle at every sparsity", "[evict][duo_attention]") {
  const auto oracle = eviction_oracle("duo");
  const Table gates{floats(oracle["gates"]), 2, 4};
  for (const auto& c : oracle["selection"]) {
    const double sparsity = c["sparsity"];
    CAPTURE(sparsity);
    std::vector<int> want;
    for (const auto& row : c["full_heads"])
      for (const int f : row) want.push_back(f);
    REQUIRE(full_of(gates, sparsity) == want);
    if (sparsity > 0 && sparsity < 1)
      REQUIRE(quantile(gates.numbers, sparsity) == Approx(c["threshold"].get<double>()));
  }
}

TEST_CASE("duo_attention: full heads are those that reach the quantile", "[evict][duo_attention]") {
  const std::uint64_t seed = GENERATE(range(0, 20));
  const index_t layers = GENERATE(1, 3, 17), heads = GENERATE(1, 2, 8);
  const Table gates = random_table(seed, layers, heads);
  const double n = static_cast<double>(layers * heads);
  for (const double sparsity : {0.01, 0.1, 0.25, 1.0 / 3.0, 0.5, 0.7, 0.75, 0.99}) {
    CAPTURE(seed, layers, heads, sparsity);
    const double whole = sparsity * (n - 1);
    const bool on_a_gate = std::abs(whole - std::round(whole)) < 1e-9;
    const double threshold = quantile(gates.numbers, sparsity) - (on_a_gate ? 1e-6 : 0.0);
    std::vector<int> want;
    for (const float g : gates.numbers) want.push_back(static_cast<double>(g) >= threshold);
    REQUIRE(full_of(gates, sparsity) == want);
  }
}

TEST_CASE("duo_attention: equal gates go to earlier layers, then to smaller heads", "[evict][duo_attention]") {
  const Table same{std::vector<float>(6, 0.25f), 3, 2};
  REQUIRE(full_of(same, 0.5) == std::vector<int>{1, 1, 1, 0, 0, 0});
  const Table zeros{{0.0f, -0.0f, 0.0f, -0.0f, -1.0f, 1.0f}, 3, 2};
  REQUIRE(full_of(zeros, 0.5) == std::vector<int>{1, 1, 0, 0, 0, 1});
  const float inf = std::numeric_limits<float>::infinity();
  const Table ends{{inf, -inf, 3e38f, -3e38f}, 2, 2};
  REQUIRE(full_of(ends, 0.5) == std::vector<int>{1, 0, 1, 0});
  REQUIRE(full_of(ends, 0.2) == std::vector<int>{1, 0, 1, 1});
}

TEST_CASE("top heads: a number that is none is never among them", "[evict][duo_attention]") {
  const float nan = std::nanf(""), x[] = {nan, 2.0f, nan, -3.0f};
  for (index_t count = 0; count <= 5; ++count) {
    const auto top = evict::TopHeads::of({x, 2, 2}, count);
    REQUIRE_FALSE(top(0, 0));
    REQUIRE_FALSE(top(1, 0));
    REQUIRE(top(0, 1) == (count >= 1));
    REQUIRE(top(1, 1) == (count >= 2));
  }
  REQUIRE_FALSE(evict::TopHeads::of({}, 3)(0, 0));
}

TEST_CASE("duo_attention: a streaming head is the oracle's cache, a full head holds all", "[evict][duo_attention]") {
  const auto oracle = eviction_oracle("duo")["streaming_cache"];
  const float gates[] = {0.1f, 0.9f};
  const index_t group = GENERATE(1, 4, 7);
  auto d = drive({.q_heads = 2 * group, .kv_heads = 2},
                 DuoAttention{.sinks = oracle["sink"], .recent = oracle["recent"], .gates = {gates, 1, 2}});
  index_t token = 0;
  for (const auto& step : oracle["decode_trace"]) {
    REQUIRE(with_new(d.held, token, 1)[0] == step["visible"].get<Ints>());
    REQUIRE(d.step(1, token == 0 ? Phase::prefill_end : Phase::decode) == Status::ok);
    REQUIRE(d.held[0] == step["cache_after"].get<Ints>());
    REQUIRE(static_cast<index_t>(d.held[1].size()) == ++token);
  }
}

TEST_CASE("duo_attention: rows of the oracle's mask are what a streaming head holds then, token by token and in one prompt", "[evict][duo_attention]") {
  const auto mask = eviction_oracle("duo")["streaming_mask"];
  const float gate = 0.0f;
  const DuoAttention policy{.sparsity = 1.0, .sinks = mask["sink"], .recent = mask["recent"], .gates = {&gate, 1, 1}};
  auto tokens = drive({}, policy);
  const index_t n = mask["n"];
  for (index_t t = 0; t < n; ++t) {
    Ints seen;
    for (index_t j = 0; j < n; ++j)
      if (mask["rows"][at(t)][at(j)] == 1) seen.push_back(j);
    REQUIRE(tokens.step(1, t == 0 ? Phase::prefill_end : Phase::decode) == Status::ok);
    REQUIRE(tokens.held[0] == seen);
    auto prompt = drive({}, policy);
    REQUIRE(prompt.step(t + 1, Phase::prefill_end) == Status::ok);
    REQUIRE(prompt.held[0] == seen);
  }
}

// Streaming heads of LServe are those of DuoAttention, stored in pages of `block` tokens: the pages that hold any of a
// head's tokens, the last sinks' and the first window's among them as a whole.
TEST_CASE("duo_attention: a streaming head with lserve's sizes lies in the oracle's pages, never in more", "[evict][duo_attention][lserve]") {
  const auto oracle = eviction_oracle("lserve");
  const float gate = 0.0f;
  const index_t block = oracle["block"], sinks = oracle["dec_sink_tokens"], recent = oracle["dec_local_tokens"];
  auto d = drive({}, DuoAttention{.sparsity = 1.0, .sinks = sinks, .recent = recent, .gates = {&gate, 1, 1}});
  Ints most;  // in sinks, in the window
  for (index_t t = 0; t < oracle["example"]["tokens"].get<index_t>(); ++t) {
    REQUIRE(d.step(1, t == 0 ? Phase::prefill_end : Phase::decode) == Status::ok);
    Ints pages;
    for (const index_t token : d.held[0])
      if (pages.empty() || pages.back() != token / block) pages.push_back(token / block);
    if (pages.size() > most.size()) most = pages;
    if (t + 1 < oracle["example"]["tokens"].get<index_t>()) continue;
    REQUIRE(t / block + 1 == oracle["example"]["logical_blocks"].get<index_t>());
    REQUIRE(pages == oracle["example"]["resident_blocks"].get<Ints>());
    const auto first = std::count_if(pages.begin(), pages.end(), [&](index_t p) { return p < sinks / block; });
    REQUIRE(first == oracle["sink_blocks"].get<index_t>());
    REQUIRE(static_cast<index_t>(pages.size()) - first == oracle["local_blocks"].get<index_t>());
  }
  REQUIRE(static_cast<index_t>(most.size()) == oracle["total_blocks"].get<index_t>());
}

TEST_CASE("duo_attention: every chunk of a prompt is trimmed behind itself", "[evict][duo_attention]") {
  const float gates[] = {0.1f, 0.9f, 0.8f, 0.2f};
  for (index_t layer = 0; layer < 2; ++layer) {
    auto d = drive({.layers = 2, .q_heads = 2, .kv_heads = 2}, DuoAttention{.sinks = 2, .recent = 3, .gates = {gates, 2, 2}});
    d.layer = layer;
    const auto streaming = at(layer), full = at(1 - layer);
    REQUIRE(d.step(6, Phase::prefill_chunk) == Status::ok);
    REQUIRE(d.held[streaming] == Ints{0, 1, 3, 4, 5});
    REQUIRE(d.step(9, Phase::prefill_end) == Status::ok);
    REQUIRE(d.held[streaming] == Ints{0, 1, 12, 13, 14});
    REQUIRE(d.held[full].size() == 15);
    REQUIRE(d.budget == (layer == 0 ? Ints{5, 15} : Ints{15, 5}));
  }
}

TEST_CASE("duo_attention: keeps the promises of a pipeline", "[evict][duo_attention]") {
  const Table gates = random_table(3, 4, 4);
  for (index_t heads = 1; heads <= 4; ++heads) {
    const auto with = [&](double sparsity, index_t recent) {
      return DuoAttention{.sparsity = sparsity, .sinks = 4, .recent = recent, .gates = {gates.numbers.data(), 4, heads}};
    };
    for (std::uint32_t seed = static_cast<std::uint32_t>(heads - 1); seed < 24; seed += 4)
      for (const double sparsity : {0.3, 0.5, 1.0})
        check_promises_once(with(sparsity, 20), with(sparsity, 400), {.heads_alone = sparsity == 1.0}, seed, 7);
  }
}

TEST_CASE("duo_attention: under a budget of one size streaming heads fill up with the newest", "[evict][duo_attention]") {
  const float gates[] = {0.1f, 0.9f};
  auto d = drive({.q_heads = 2, .kv_heads = 2},
                 budget::Uniform{DuoAttention{.sinks = 1, .recent = 2, .gates = {gates, 1, 2}}, 5});
  REQUIRE(d.step(20, Phase::prefill_end) == Status::ok);
  REQUIRE(d.held == Rows{{0, 16, 17, 18, 19}, {0, 16, 17, 18, 19}});
}

TEST_CASE("duo_attention: what does not fit the model is refused", "[evict][duo_attention]") {
  const CacheShape shape{.layers = 2, .q_heads = 6, .kv_heads = 3};
  Table gates = random_table(1, 2, 3);
  DuoAttention p{.gates = gates.view()};
  REQUIRE(p.validate(shape) == Status::ok);
  REQUIRE(p.missing() == nullptr);
  REQUIRE(DuoAttention{}.validate(shape) == Status::missing_input);
  REQUIRE(std::string(DuoAttention{}.missing()) == "gates");
  REQUIRE(p.validate({.layers = 3, .q_heads = 6, .kv_heads = 2}) == Status::shape_mismatch);
  for (const double sparsity : {-0.1, 1.1, 50.0, std::nan("")})
    REQUIRE(DuoAttention{.sparsity = sparsity, .gates = gates.view()}.validate(shape) == Status::invalid_argument);
  REQUIRE(DuoAttention{.sinks = -1, .gates = gates.view()}.validate(shape) == Status::invalid_argument);
  REQUIRE(DuoAttention{.recent = 0, .gates = gates.view()}.validate(shape) == Status::invalid_argument);
  gates.numbers[4] = std::nanf("");
  REQUIRE(p.validate(shape) == Status::invalid_argument);
}
